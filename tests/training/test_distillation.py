"""A student learns from a teacher beside it or from what one said before, in every layout alike."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from megatron_soaes.data.sample import Sample
from megatron_soaes.errors import UserError
from megatron_soaes.losses.acceptance import expected_tokens_by_position
from megatron_soaes.training.job import TrainingJob
from megatron_soaes.training.records import METRICS_FILE, read_records
from tests.training import meddling
from tests.training.distilling import WINDOW, make_captured_job, make_online_job, make_store
from tests.training.material import BATCH, VOCABULARY, make_sft_job
from tests.training.watched import Seen, differences, run


@pytest.mark.parametrize("teacher", ["online", "captured"])
@pytest.mark.parametrize("layout", ["tp2-sp", "dp2", "cp2"])
def test_a_layout_does_not_change_the_distillation(
    together: Path, layout: str, teacher: str
) -> None:
    expected, found = Seen(together / f"one-{teacher}"), Seen(together / f"{layout}-{teacher}", 2)
    assert len(found.records) == 8
    assert expected.losses[-1] < 0.9 * expected.losses[0], "nothing is learnt, so nothing is tested"
    assert differences(expected, found) == []


def test_pipeline_stages_read_a_store(together: Path) -> None:
    assert differences(Seen(together / "one-captured"), Seen(together / "pp2-captured", 2)) == []


@pytest.mark.parametrize(
    ("reference", "layout"),
    [
        ("one-captured-deep", "tp2-pp2-captured"),
        ("one-captured-deep", "pp2-cp2-captured"),
        ("one-online", "tp2-cp2-online"),
    ],
)
def test_four_processes_distil_as_one(four: Path, reference: str, layout: str) -> None:
    assert differences(Seen(four / reference), Seen(four / layout, 4)) == []


def test_an_interrupted_distillation_goes_on_bitwise(together: Path) -> None:
    whole, resumed = (Seen(together / f"pp2-captured{end}", 2) for end in ("", "-resumed"))
    for rank in range(2):
        assert resumed.seen[rank]["digests"][-1] == whole.seen[rank]["digests"][-1]
    expected, found = (validations(seen.out)[-1] for seen in (whole, resumed))
    assert found == expected
    # What the start weights were worth is still known.
    assert [entry["step"] for entry in resumed.state.validation] == [0, 8]
    assert resumed.state.validation == whole.state.validation


def validations(out: Path) -> list[dict[str, Any]]:
    records = read_records(out / METRICS_FILE)
    return [record["validation"]["chats"] for record in records if "validation" in record]


@pytest.mark.parametrize(
    ("reference", "layout"),
    [
        *(("one-online", f"{name}-online") for name in ("tp2-sp", "dp2", "cp2")),
        *(("one-captured", f"{name}-captured") for name in ("tp2-sp", "dp2", "cp2", "pp2")),
    ],
)
def test_a_layout_does_not_change_the_acceptance(
    together: Path, reference: str, layout: str
) -> None:
    expected, found = (validations(together / name) for name in (reference, layout))
    assert len(found) == 2
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == pytest.approx(value, abs=1e-4), name


def test_distillation_raises_the_acceptance(alone: Path) -> None:
    for name in ("one-online", "one-captured"):
        before, after = validations(alone / name)
        assert after["alpha"] > before["alpha"] + 0.05
        assert after["tokens_per_pass"][-1] > before["tokens_per_pass"][-1]


@torch.no_grad()
def log_probs(model: Path, samples: Sequence[Sample]) -> list[tuple[Sample, Tensor]]:
    """Each sample with the fp64 log-probabilities [length, vocabulary] after each of its tokens.

    By `transformers`, document by document, over the tokens that both models have.
    """
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    found = []
    for sample in samples:
        bounds = np.append(sample.cu_seqlens[:-1], sample.length)
        parts = [
            network(torch.from_numpy(sample.tokens[a:b])[None]).logits[0, :, :VOCABULARY]
            for a, b in pairwise(bounds)
            if b > a
        ]
        found.append((sample, torch.cat(parts).log_softmax(-1)))
    return found


@pytest.mark.usefixtures("one_process")
def test_the_loss_is_the_divergence_from_the_teacher(material: Path, tmp_path: Path) -> None:
    job = make_online_job(material, tmp_path, objective={"cross_entropy": 0.25})
    run(job, meddling.terminate_in(1))
    samples = [job.mixture[position] for position in range(BATCH)]
    students = log_probs(material / "qwen3" / "hf", samples)
    teachers = log_probs(material / "teacher" / "hf", samples)
    total = weight = 0.0
    for (sample, q), (_, p) in zip(students, teachers, strict=True):
        divergence = (p.exp() * (p - q)).sum(-1)
        nats = -q.gather(1, torch.from_numpy(sample.tokens[1:])[:, None])[:, 0]
        weights = torch.from_numpy(sample.loss_weights[1:])
        total += float(((0.25 * nats + 0.75 * divergence) * weights).sum())
        weight += float(weights.sum())
    assert Seen(tmp_path).losses[0] == pytest.approx(total / weight, abs=1e-5)


@pytest.mark.usefixtures("one_process")
def test_the_acceptance_is_that_of_both_distributions(alone: Path, material: Path) -> None:
    job = make_online_job(material, alone / "unused")
    held_out = [job.validation["chats"][index] for index in range(len(job.validation["chats"]))]
    students = log_probs(material / "qwen3" / "hf", held_out)
    teachers = log_probs(material / "teacher" / "hf", held_out)
    rates, matches, windows = [], [], []
    for (sample, q), (_, p) in zip(students, teachers, strict=True):
        alphas = torch.minimum(p.exp(), q.exp()).sum(-1).tolist()
        counted = (sample.loss_weights[1:] > 0).tolist()
        rates += [alpha for alpha, counts in zip(alphas, counted, strict=True) if counts]
        matches += (p.argmax(-1) == q.argmax(-1))[torch.tensor(counted)].tolist()
        windows += _windows(alphas, counted, set(sample.cu_seqlens.tolist()))
    found = validations(alone / "one-online")[0]
    assert found["alpha"] == pytest.approx(np.mean(rates), abs=1e-5)
    assert found["greedy_match"] == pytest.approx(np.mean(matches), abs=1e-6)
    # Place j: of the drafts that have one, those accepted up to it over those accepted before it.
    by_position = []
    for place in range(WINDOW.longest):
        those = [window for window in windows if len(window) > place]
        reached = sum(np.prod(window[:place]) for window in those)
        by_position.append(sum(np.prod(window[: place + 1]) for window in those) / reached)
    assert found["alpha_by_position"] == pytest.approx(by_position, abs=1e-5)
    tokens = [expected_tokens_by_position(by_position[:n]) for n in range(1, WINDOW.longest + 1)]
    assert found["tokens_per_pass"] == pytest.approx(tokens, abs=1e-4)


def _windows(alphas: list[float], counted: list[bool], starts: set[int]) -> list[list[float]]:
    """The rates of each draft: it begins where a position counts and ends with its run."""
    found = []
    for first in range(len(alphas)):
        window: list[float] = []
        for place in range(first, min(first + WINDOW.longest, len(alphas))):
            if not counted[place] or (place in starts and place > first):
                break
            window.append(alphas[place])
        if window:
            found.append(window)
    return found


@pytest.mark.usefixtures("one_process")
def test_a_store_of_the_whole_vocabulary_is_the_teacher(material: Path, tmp_path: Path) -> None:
    make_store(material, "whole", entries=VOCABULARY)
    stored = make_captured_job(material, tmp_path / "stored", store="whole")
    run(stored, meddling.terminate_in(1))
    online = make_online_job(material, tmp_path / "online")
    online = _with_samples_of(online, stored)
    run(online, meddling.terminate_in(1))
    # fp16 holds log-probabilities to 0.004 at -10 nats.
    losses = Seen(tmp_path / "stored").losses[0], Seen(tmp_path / "online").losses[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def _with_samples_of(job: TrainingJob, other: TrainingJob) -> TrainingJob:
    return TrainingJob(**{**vars(job), "mixture": other.mixture})


@pytest.mark.usefixtures("one_process")
def test_cross_entropy_alone_is_plain_training(material: Path, tmp_path: Path) -> None:
    """The control: the same text and steps without the teacher's probabilities."""
    run(make_online_job(material, tmp_path / "control", objective={"cross_entropy": 1.0}))
    run(make_sft_job(material, tmp_path / "plain"))
    control, plain = Seen(tmp_path / "control"), Seen(tmp_path / "plain")
    assert control.losses == pytest.approx(plain.losses, abs=1e-5)


@pytest.mark.usefixtures("one_process")
def test_selection_trains_where_the_reference_is_better(material: Path, tmp_path: Path) -> None:
    """The reference is the student as it starts, so at the first step no position is ahead."""
    objective = {"selection": {"reference": "import", "share": 0.5}}
    job = make_online_job(material, tmp_path / "half", objective=objective, reference="qwen3")
    run(job, meddling.terminate_in(1))
    run(make_online_job(material, tmp_path / "all"), meddling.terminate_in(1))
    half, every = Seen(tmp_path / "half"), Seen(tmp_path / "all")
    assert half.losses[0] == pytest.approx(every.losses[0], rel=0.3)
    assert half.losses[0] != pytest.approx(every.losses[0], rel=1e-3)


@pytest.mark.usefixtures("one_process")
def test_another_objective_is_no_resumption(alone: Path, material: Path, tmp_path: Path) -> None:
    out = tmp_path / "changed"
    shutil.copytree(alone / "one-online", out)
    with pytest.raises(UserError, match="objective"):
        run(make_online_job(material, out, objective={"divergence": "total_variation"}))
