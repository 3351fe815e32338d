"""What a capture stores is what the teacher says, in every layout and after every stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from megatron_soaes.accelerator.launch import launch
from megatron_soaes.data.sample import Sample
from megatron_soaes.data.teacher_store import Answers, Origin, TeacherStore
from megatron_soaes.data.teacher_store import Layout as StoreLayout
from megatron_soaes.errors import UserError
from megatron_soaes.training.capture import Samples, capture, residual_mass
from megatron_soaes.training.stopping import StopSignal
from tests.training.capturing import (
    COUNT,
    LAYOUTS,
    ORIGIN,
    SEED,
    STORES,
    WatchedSamples,
    asked_model,
    wanted_store,
)
from tests.training.material import EOD, SEQUENCE, VOCABULARY, make_sft_job

pytestmark = pytest.mark.usefixtures("one_process")

RTOL, ATOL = 2.0**-10, 1e-4
"""The rounding of stored log-probabilities, and of two computations of one number."""


@pytest.fixture(scope="module")
def samples(material: Path, one_process: None) -> Samples:
    return make_sft_job(material, material / "unused").mixture


@pytest.fixture(scope="module")
def alone(material: Path, samples: Samples) -> dict[str, TeacherStore]:
    """By kind, captured by one process from a model with more rows than the tokenizer has ids."""
    stores = {}
    for model in ("deep", "teacher"):
        teacher = asked_model(material, model)
        for kind, layout in STORES.items():
            name = f"{model}-{kind}"
            wanted = wanted_store(material, name, layout, samples)
            assert capture(teacher, wanted, StopSignal())
            stores[name] = TeacherStore(wanted.directory, ORIGIN)
    return stores


@pytest.fixture(scope="module")
def spread(material: Path) -> Path:
    """Folder of the stores captured on four processes."""
    code = launch("tests.training.capturing", [str(material)], 4, material / "logs-capture")
    assert code == 0, (material / "logs-capture" / "rank1.log").read_text(encoding="utf-8")
    return material / "captures"


@pytest.fixture(scope="module")
def said(material: Path, samples: Samples) -> list[Tensor]:
    """[positions, VOCABULARY] fp64 log-probabilities of each sample, by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(material / "teacher" / "hf")
    return [by_document(model, samples[number]) for number in range(COUNT)]


def by_document(model: transformers.PreTrainedModel, sample: Sample) -> Tensor:
    """Each document read alone, and nothing of the model but the tokenizer's ids."""
    logits = []
    for start, end in zip(sample.cu_seqlens, sample.cu_seqlens[1:], strict=False):
        tokens = torch.from_numpy(sample.tokens[start : min(end, sample.length)])
        if len(tokens):
            with torch.no_grad():
                logits.append(model(tokens[None]).logits[0, :, :VOCABULARY].double())
    return (torch.cat(logits) / ORIGIN.temperature).log_softmax(-1)


def test_the_samples_are_packs_and_documents_and_padding(samples: Samples) -> None:
    read = [samples[number] for number in range(COUNT)]
    assert {sample.source for sample in read} == {0, 1}
    assert any(len(sample.cu_seqlens) > 3 for sample in read)
    assert any((sample.tokens[-3:] == EOD).all() for sample in read), "no pack is filled up"


def test_top_k_is_exact_to_the_storage_dtype(
    alone: dict[str, TeacherStore], said: list[Tensor]
) -> None:
    store = alone["teacher-top_k"]
    assert len(store) == COUNT
    for number, log_probs in enumerate(said):
        found = store[number]
        best = log_probs.topk(8)
        stored = found.log_probs.double()
        torch.testing.assert_close(stored, best.values, rtol=2.0**-11, atol=1e-5)
        torch.testing.assert_close(log_probs.gather(1, found.ids), best.values, rtol=0, atol=1e-5)
        assert all(len(set(row)) == 8 for row in found.ids.tolist())
        others = log_probs.scatter(1, found.ids, -torch.inf).logsumexp(1)
        torch.testing.assert_close(found.rest.double(), others, rtol=0, atol=1e-5)


def test_draws_follow_from_the_seed_and_the_sample(
    alone: dict[str, TeacherStore], said: list[Tensor]
) -> None:
    store, exponent = alone["teacher-sampled"], STORES["sampled"].exponent
    moved = 0
    for number, log_probs in enumerate(said):
        found = store[number]
        torch.testing.assert_close(
            found.log_probs.double(), log_probs.gather(1, found.ids), rtol=2.0**-11, atol=1e-5
        )
        normalizer = (exponent * log_probs).logsumexp(1)
        torch.testing.assert_close(found.rest.double(), normalizer, rtol=0, atol=1e-5)
        uniform = np.random.default_rng((SEED, number)).random(found.ids.shape)
        ends = (exponent * log_probs).softmax(1).cumsum(1)
        drawn = torch.searchsorted(ends, torch.from_numpy(uniform), right=True)
        moved += int((drawn != found.ids).sum())
        # A token may come instead of its neighbour only where rounding decides between them.
        starts = torch.cat((torch.zeros(SEQUENCE, 1), ends[:, :-1]), dim=1).gather(1, found.ids)
        assert (torch.from_numpy(uniform) > starts - 1e-6).all()
        assert (torch.from_numpy(uniform) < ends.gather(1, found.ids) + 1e-6).all()
    assert moved <= 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_finds_the_same_most_likely_tokens(
    alone: dict[str, TeacherStore], spread: Path, layout: str
) -> None:
    found = TeacherStore(spread / f"{layout}-top_k", ORIGIN)
    found.verify()
    same_likely(alone["deep-top_k"], found)


def same_likely(expected: TeacherStore, found: TeacherStore) -> None:
    """Values to rounding; ids but for four of 2816, where neighbours are equally likely."""
    moved = 0
    for number in range(COUNT):
        right, other = expected[number], found[number]
        torch.testing.assert_close(other.log_probs, right.log_probs, rtol=RTOL, atol=ATOL)
        torch.testing.assert_close(other.rest, right.rest, rtol=0, atol=1e-4)
        moved += int((other.ids != right.ids).sum())
    assert moved <= 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_draws_the_same_tokens(
    alone: dict[str, TeacherStore], spread: Path, layout: str
) -> None:
    same_draws(alone["deep-sampled"], TeacherStore(spread / f"{layout}-sampled", ORIGIN))


def same_draws(expected: TeacherStore, found: TeacherStore) -> None:
    """All but two of 2112, where a neighbouring token came by rounding."""
    moved = 0
    for number in range(COUNT):
        right, other = expected[number], found[number]
        torch.testing.assert_close(other.rest, right.rest, rtol=0, atol=1e-4)
        same = other.ids == right.ids
        moved += int((~same).sum())
        torch.testing.assert_close(
            other.log_probs[same], right.log_probs[same], rtol=RTOL, atol=ATOL
        )
    assert moved <= 2


def test_neither_micro_batches_nor_shards_decide_the_draws(
    material: Path, samples: Samples, alone: dict[str, TeacherStore]
) -> None:
    layout = replace(STORES["sampled"], samples_per_shard=6)
    wanted = wanted_store(material, "other-shards", layout, samples)
    assert capture(asked_model(material, micro_batch_size=3), wanted, StopSignal())
    same_draws(alone["deep-sampled"], TeacherStore(wanted.directory, ORIGIN))


def test_the_residual_mass_is_that_of_trained_positions(
    alone: dict[str, TeacherStore], said: list[Tensor], samples: Samples
) -> None:
    masses = []
    for number, log_probs in enumerate(said):
        kept = log_probs.exp().topk(8).values.sum(1)
        masses.append((1 - kept)[samples[number].loss_weights[1:] > 0])
    expected = float(torch.cat(masses).mean())
    assert residual_mass(alone["teacher-top_k"], samples) == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_capture_goes_on_with_the_missing_shards(
    material: Path,
    samples: Samples,
    alone: dict[str, TeacherStore],
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher, layout = asked_model(material), STORES["top_k"]
    stopped = WatchedSamples(samples, stop_at=(5,))
    wanted = wanted_store(material, "interrupted", layout, stopped)
    assert not capture(teacher, wanted, StopSignal())
    assert stopped.read == list(range(8)), "the shard at work is finished, the next not begun"
    with pytest.raises(UserError, match="capture has ended"):
        TeacherStore(wanted.directory, ORIGIN)
    assert "8 of 11 samples" in capsys.readouterr().out

    going_on = WatchedSamples(samples)
    assert capture(teacher, replace(wanted, samples=going_on), StopSignal())
    assert going_on.read == [8, 9, 10, 10]  # the last micro-batch of two is filled up
    said = capsys.readouterr().out
    assert "goes on after 8 samples" in said and "11 of 11 samples" in said
    assert contents(wanted.directory) == contents(material / "captures" / "deep-top_k")


def test_one_rank_that_is_asked_to_stop_stops_all(spread: Path) -> None:
    """Two replicas of two context-parallel ranks; shards 0 and 1 are done when all end."""
    notes = [
        json.loads((spread / f"stopped-rank{rank}.json").read_text(encoding="utf-8"))
        for rank in range(4)
    ]
    assert {tuple(sorted(set(first))) for first, _ in notes} == {(0, 1, 2, 3), (4, 5, 6, 7)}
    assert {number for _, rest in notes for number in rest} == {8, 9, 10}
    assert contents(spread / "stopped") == contents(spread / "cp2-dp2-top_k")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_shard_that_was_cut_short_is_captured_again(
    material: Path, samples: Samples, alone: dict[str, TeacherStore]
) -> None:
    wanted = wanted_store(material, "cut", STORES["top_k"], samples)
    teacher = asked_model(material)
    assert capture(teacher, wanted, StopSignal())
    whole = contents(wanted.directory)
    shard = wanted.directory / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.bin"):
        TeacherStore(wanted.directory, ORIGIN)
    again = WatchedSamples(samples)
    assert capture(teacher, replace(wanted, samples=again), StopSignal())
    assert again.read == [4, 5, 6, 7]
    assert contents(wanted.directory) == whole


@pytest.mark.parametrize(
    "other",
    [
        replace(ORIGIN, tokenizer_sha256="1" * 64),
        replace(ORIGIN, teacher="other weights"),
        replace(ORIGIN, data="other samples"),
        replace(ORIGIN, temperature=1.0),
    ],
    ids=["tokenizer", "teacher", "data", "temperature"],
)
def test_shards_of_something_else_are_refused(
    material: Path, samples: Samples, alone: dict[str, TeacherStore], other: Origin
) -> None:
    wanted = wanted_store(material, "deep-top_k", STORES["top_k"], samples)
    with pytest.raises(UserError, match=r"origin\."):
        capture(asked_model(material), replace(wanted, origin=other), StopSignal())


def test_a_teacher_that_is_not_finite_is_refused(material: Path, samples: Samples) -> None:
    teacher = asked_model(material)
    with torch.no_grad():
        teacher.chunks[0].decoder.final_layernorm.weight[0] = torch.nan
    wanted = wanted_store(material, "broken", STORES["top_k"], samples)
    with pytest.raises(UserError, match="NaN"):
        capture(teacher, wanted, StopSignal())
    assert not wanted.directory.exists()


def test_all_of_the_vocabulary_leaves_nothing(material: Path, samples: Samples) -> None:
    layout = StoreLayout("top_k", VOCABULARY, 2, SEQUENCE, samples_per_shard=2)
    wanted = wanted_store(material, "everything", layout, samples)
    assert capture(asked_model(material), wanted, StopSignal())
    found: Answers = TeacherStore(wanted.directory, ORIGIN)[1]
    assert torch.isneginf(found.rest).all()
    assert found.ids.sort(1).values.equal(torch.arange(VOCABULARY).expand(SEQUENCE, -1))
