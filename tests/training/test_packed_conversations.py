"""Packed conversations train as the same conversations alone, in every layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from megatron_soaes.accelerator import rotary
from megatron_soaes.data.conversations import ConversationRange, Packs
from megatron_soaes.data.sample import MicroBatch, Sample, collate
from megatron_soaes.training.engine import Engine, build_engine, build_options, load_model
from megatron_soaes.training.objective import CrossEntropy
from megatron_soaes.training.step import evaluation_loss, train_step
from tests.training.material import VOCABULARY, chat_settings, make_sft_job
from tests.training.watched import Seen, differences, whole_gradients

LAYOUTS = ["tp2-sp-sft", "dp2-sft", "pp2-sft", "cp2-sft"]
PACKS = 6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_packed_conversations_as_one_process(
    together: Path, layout: str
) -> None:
    expected, found = Seen(together / "one-sft"), Seen(together / layout, ranks=2)
    assert len(found.records) == 8
    assert expected.losses[-1] < expected.losses[0]
    assert differences(expected, found) == []


def test_a_stopped_stage_of_conversations_goes_on_bitwise(together: Path) -> None:
    whole = Seen(together / "pp2-sft", ranks=2)
    resumed = Seen(together / "pp2-sft-resumed", ranks=2)
    assert resumed.losses == whole.losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


@pytest.fixture
def packed(material: Path) -> list[Sample]:
    chosen = ConversationRange("chats", material / "chats", 0.0, 0.8)
    packs = Packs(chosen, chat_settings(material), 0)
    samples = [packs[index] for index in range(PACKS)]
    assert all(len(sample.cu_seqlens) > 2 for sample in samples)
    return samples


def alone(samples: list[Sample]) -> list[Sample]:
    """Each conversation of the packs as a sample of its own."""
    found = []
    for sample in samples:
        for start, end in zip(sample.cu_seqlens, sample.cu_seqlens[1:], strict=False):
            weights = sample.loss_weights[start:end]
            if weights.any():
                bounds = np.array([0, end - start], dtype=np.int32)
                found.append(Sample(sample.tokens[start:end], weights, bounds, sample.source))
    return found


def loss_by_transformers(material: Path, samples: list[Sample]) -> float:
    """Weighted mean over the conversations, each read alone by the model it was imported from."""
    model = transformers.AutoModelForCausalLM.from_pretrained(material / "qwen3" / "hf")
    total = weight = 0.0
    for sample in alone(samples):
        tokens, weights = torch.from_numpy(sample.tokens), torch.from_numpy(sample.loss_weights)
        with torch.no_grad():
            logits = model(tokens[None, :-1]).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        total += float((losses * weights[1:]).sum())
        weight += float(weights[1:].sum(dtype=torch.float64))
    return total / weight


def engine_of(material: Path, tmp_path: Path) -> Engine:
    job = make_sft_job(material, tmp_path)
    options = build_options(job.shape, job.source, job.layout, job.stage.precision)
    return build_engine(job.shape, load_model(job.shape, options, job.start), job.stage, job.steps)


def loss_of(engine: Engine, batches: list[MicroBatch]) -> float:
    return evaluation_loss(engine.chunks, CrossEntropy(VOCABULARY), batches)[0]


def gradients_of(engine: Engine, batches: list[MicroBatch]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    config = engine.chunks[0].config
    finalize: Callable[..., None] = config.finalize_model_grads_func

    def keep(*args: object, **kwargs: object) -> None:
        finalize(*args, **kwargs)
        seen.update({name: grad.clone() for name, grad in whole_gradients(engine).items()})

    config.finalize_model_grads_func = keep
    train_step(engine, CrossEntropy(VOCABULARY), batches, len(batches), stop_here=False)
    return seen


def one_by_one(samples: list[Sample]) -> list[MicroBatch]:
    return [collate([sample], torch.device("cpu")) for sample in samples]


@pytest.mark.usefixtures("one_process")
def test_packed_loss_and_gradients_are_those_of_the_conversations_alone(
    material: Path, tmp_path: Path, packed: list[Sample]
) -> None:
    packs, singles = one_by_one(packed), one_by_one(alone(packed))
    engine = engine_of(material, tmp_path)
    assert loss_of(engine, packs) == pytest.approx(loss_of(engine, singles), rel=1e-6)
    expected = loss_by_transformers(material, packed)
    assert loss_of(engine, packs) == pytest.approx(expected, rel=1e-6)
    together = gradients_of(engine, packs)
    apart = gradients_of(engine_of(material, tmp_path), singles)
    for name, gradient in apart.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(together[name], gradient, rtol=1e-5, atol=1e-6 * largest)


def merged_boundary(batch: MicroBatch) -> MicroBatch:
    """The first two conversations see each other."""
    bounds = batch.cu_seqlens[[0, *range(2, len(batch.cu_seqlens))]]
    return replace(batch, cu_seqlens=bounds, longest=int(bounds.diff().max()))


def label_across(batch: MicroBatch) -> MicroBatch:
    """The first token of the second conversation is predicted from the end of the first."""
    weights = batch.loss_weights.clone()
    weights[0, int(batch.cu_seqlens[1]) - 1] = 1.0
    return replace(batch, loss_weights=weights)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("leak", [merged_boundary, label_across])
def test_a_planted_leak_is_noticed(
    material: Path,
    tmp_path: Path,
    packed: list[Sample],
    leak: Callable[[MicroBatch], MicroBatch],
) -> None:
    first, *rest = one_by_one(packed)
    found = loss_of(engine_of(material, tmp_path), [leak(first), *rest])
    assert found != pytest.approx(loss_by_transformers(material, packed), rel=1e-5)


@pytest.mark.usefixtures("one_process")
def test_a_position_that_does_not_restart_is_noticed(
    material: Path, tmp_path: Path, packed: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions are relative, so it takes a restart at the wrong token to change anything."""
    original = rotary.Rotation.apply

    def one_late(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return original(x, *(torch.cat((table[:1], table[:-1])) for table in (cos, sin)))

    monkeypatch.setattr(rotary.Rotation, "apply", one_late)
    found = loss_of(engine_of(material, tmp_path), one_by_one(packed))
    assert found != pytest.approx(loss_by_transformers(material, packed), rel=1e-5)
