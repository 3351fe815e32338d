"""The same job in every layout is the same training, and transformers computes the same loss."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.training import objective
from megatron_soaes.training.job import TrainingJob
from megatron_soaes.training.records import METRICS_FILE, read_records
from tests.training import meddling
from tests.training.material import BATCH, EOD, PADDED, VOCABULARY, make_job
from tests.training.watched import Seen, differences, run

SMALL_LAYOUTS = ["dp2", "tp2", "tp2-sp", "cp2"]
RECOMPUTED = ["full", "selective"]
EMBEDDING = "embedding.word_embeddings.weight"


@pytest.mark.parametrize(
    ("reference", "layout"),
    [
        *((ref, name) for ref, name in product(["one"], ["dp2", "tp2", "tp2-sp", "cp2"])),
        *(("one", f"{name}-{kind}") for name, kind in product(SMALL_LAYOUTS, RECOMPUTED)),
        *(("one-deep", name) for name in ("pp2", "pp2-vpp2", "pp2-uneven")),
        *(
            ("one-deep", f"{name}-{kind}")
            for name, kind in product(["pp2", "pp2-vpp2"], RECOMPUTED)
        ),
        *(("one-qwen2", f"{name}-qwen2") for name in ("tp2-sp", "pp2", "cp2")),
        ("one", "dp2-overlap"),
    ],
)
def test_a_layout_does_not_change_the_training(together: Path, reference: str, layout: str) -> None:
    expected, found = Seen(together / reference), Seen(together / layout, ranks=2)
    assert len(found.records) == 20
    assert expected.losses[-1] < 0.8 * expected.losses[0], "nothing is learnt, so nothing is tested"
    assert differences(expected, found) == []


@pytest.mark.parametrize("recompute", ["", "-full", "-selective"])
@pytest.mark.parametrize("layout", ["tp2-pp2", "tp2-cp2", "pp2-cp2", "pp2-dp2"])
def test_four_processes_train_as_one(four: Path, layout: str, recompute: str) -> None:
    expected, found = Seen(four / "one-deep"), Seen(four / f"{layout}{recompute}", ranks=4)
    assert len(found.records) == 20
    assert differences(expected, found) == []


def test_batched_messages_between_interleaved_chunks_would_be_noticed(together: Path) -> None:
    found = differences(Seen(together / "one-deep"), Seen(together / "pp2-vpp2-batched", ranks=2))
    assert any(line.startswith("loss of step") for line in found)


def test_keys_left_in_gathered_order_would_be_noticed(together: Path) -> None:
    found = differences(Seen(together / "one"), Seen(together / "cp2-order", ranks=2))
    assert any(line.startswith("loss of step 1") for line in found)


@pytest.mark.parametrize(
    ("layout", "symptom"),
    [
        ("dp2-unreduced", "gradient of decoder.layers.0.mlp.linear_fc1.weight"),
        ("tp2-sp-unreduced", "gradient of decoder.layers.0.input_layernorm.weight"),
        ("tp2-sp-unmarked", "gradient of decoder.final_layernorm.weight"),
    ],
)
def test_a_missing_reduction_is_noticed(together: Path, layout: str, symptom: str) -> None:
    found = differences(Seen(together / "one"), Seen(together / layout, ranks=2))
    assert any(line.startswith("loss of step 2") for line in found)
    assert any(line.startswith(symptom) for line in found)


@pytest.mark.parametrize("layout", SMALL_LAYOUTS)
def test_a_layout_does_not_change_the_validation(together: Path, layout: str) -> None:
    def validations(name: str) -> list[dict[str, float]]:
        records = read_records(together / name / METRICS_FILE)
        return [record["validation"]["held_out"] for record in records if "validation" in record]

    expected, found = validations("one"), validations(layout)
    assert len(found) == 2
    for one, two in zip(expected, found, strict=True):
        assert two["tokens"] == one["tokens"]
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["perplexity"] == pytest.approx(np.exp(two["loss"]))


def test_vocabulary_padding_is_not_trained(alone: Path) -> None:
    seen = Seen(alone / "one")
    for weights in (seen.seen[0]["gradients"][EMBEDDING], seen.tensors()[EMBEDDING]):
        assert weights.shape[0] == PADDED
        assert not weights[VOCABULARY:].any()
        assert weights[:VOCABULARY].any()


@torch.no_grad()
def loss_by_transformers(job: TrainingJob) -> float:
    """Mean over the tokens of the first global batch, each document on its own."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.start.parent / "hf", dtype=torch.float32
    )
    total, count = 0.0, 0
    for position in range(BATCH):
        window = job.mixture[position].tokens
        documents = np.split(window, np.flatnonzero(window == EOD) + 1)
        assert len(documents) >= 2
        for document in documents:
            if len(document) > 1:
                tokens = torch.from_numpy(document)
                logits = model(tokens[None, :-1]).logits[0]
                total += float(
                    torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
                )
                count += len(document) - 1
    return total / count


def first_loss(material: Path, out: Path, model: str = "qwen3", **changes: Any) -> float:
    job = make_job(material, out, model, **changes)
    run(job, meddling.terminate_in(1))
    return Seen(out).losses[0]


@pytest.mark.parametrize("model", ["qwen3", "qwen2"])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.usefixtures("one_process")
def test_the_loss_is_that_of_transformers(
    material: Path, tmp_path: Path, model: str, micro_batch_size: int
) -> None:
    loss = first_loss(material, tmp_path, model, micro_batch_size=micro_batch_size)
    reference = loss_by_transformers(make_job(material, tmp_path, model))
    assert loss == pytest.approx(reference, abs=1e-5)


@pytest.mark.usefixtures("one_process")
def test_padding_left_in_the_softmax_would_be_noticed(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = objective.token_losses

    def over_padding(
        logits: torch.Tensor, labels: torch.Tensor, size: int, *, fused: bool
    ) -> torch.Tensor:
        return original(logits, labels, logits.shape[2], fused=fused)

    monkeypatch.setattr(objective, "token_losses", over_padding)
    reference = loss_by_transformers(make_job(material, tmp_path))
    assert first_loss(material, tmp_path) - reference > 1e-4


@pytest.mark.usefixtures("one_process")
def test_documents_that_run_into_each_other_would_be_noticed(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MicroBatch.packed_seq_params

    def without_one_boundary(batch: MicroBatch) -> object:
        params = original(batch)
        params.cu_seqlens_q = torch.cat((params.cu_seqlens_q[:1], params.cu_seqlens_q[2:]))
        params.cu_seqlens_kv = params.cu_seqlens_q
        params.max_seqlen_q = params.max_seqlen_kv = int(params.cu_seqlens_q.diff().max())
        return params

    monkeypatch.setattr(MicroBatch, "packed_seq_params", without_one_boundary)
    reference = loss_by_transformers(make_job(material, tmp_path))
    assert abs(first_loss(material, tmp_path) - reference) > 1e-4


def test_the_micro_batch_size_does_not_change_the_training(
    material: Path, alone: Path, tmp_path: Path
) -> None:
    run(make_job(material, tmp_path, micro_batch_size=2))
    assert differences(Seen(alone / "one"), Seen(tmp_path)) == []
