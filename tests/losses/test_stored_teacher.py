"""From a teacher's logits through a store to the student's loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_soaes.data.teacher_store import Answers, Capture, Layout, Origin, TeacherStore
from megatron_soaes.losses.distillation import token_divergences
from megatron_soaes.losses.divergences import ForwardKL
from megatron_soaes.losses.teachers import (
    SampledTeacher,
    Teacher,
    TopKTeacher,
    draw,
    log_weights,
    top_k,
)
from tests.losses.distillation_cases import uniform

ORIGIN = Origin("ab" * 32, "target", "data", temperature=1.5)
VOCABULARY, SAMPLES, POSITIONS = 50, 3, 4

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_the_loss_is_that_of_the_teacher_itself(tmp_path: Path, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (SAMPLES, POSITIONS, VOCABULARY)
    logits, student = (torch.randn(shape, generator=generator) for _ in range(2))
    layout = Layout(kind, 8, SAMPLES, POSITIONS, samples_per_shard=2, exponent=0.8)  # type: ignore[arg-type]

    online: Teacher
    if kind == "top_k":
        online = top_k(logits, 8, VOCABULARY, temperature=1.5)
        rest = online.log_residual
    else:
        numbers = uniform(SAMPLES, POSITIONS, 8, seed=1)
        online, rest = draw(logits, numbers, VOCABULARY, exponent=layout.exponent, temperature=1.5)
    capture = Capture(tmp_path, ORIGIN, layout)
    for shard, rows in enumerate((slice(0, 2), slice(2, 3))):
        capture.write(shard, Answers(online.ids[rows], online.log_probs[rows], rest[rows]))
    capture.finish()

    store = TeacherStore(tmp_path, ORIGIN)
    for sample in (2, 0, 1):
        read = store[sample]
        stored: Teacher
        if kind == "top_k":
            stored = TopKTeacher(read.ids[None], read.log_probs[None], read.rest[None])
        else:
            weights = log_weights(read.log_probs, read.rest[:, None], layout.exponent)
            stored = SampledTeacher(read.ids[None], read.log_probs[None], weights[None])
        found = token_divergences(
            student[sample, None], torch.ones(1, POSITIONS), stored,
            divergence=ForwardKL(), vocab_size=VOCABULARY, temperature=1.5,
        )  # fmt: skip
        right = token_divergences(
            student, torch.ones(SAMPLES, POSITIONS), online,
            divergence=ForwardKL(), vocab_size=VOCABULARY, temperature=1.5,
        )[sample, None]  # fmt: skip
        torch.testing.assert_close(found, right, rtol=5e-3, atol=5e-3)
