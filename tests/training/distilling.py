"""Small distillations: a teacher whose vocabulary is padded otherwise, running or stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_soaes.data.blend import Mixture, Passes
from megatron_soaes.data.sample import Sample, SampleSource, collate
from megatron_soaes.data.teacher_store import Answers, Capture, Origin, TeacherStore
from megatron_soaes.data.teacher_store import Layout as StoreLayout
from megatron_soaes.losses.teachers import DenseTeacher, top_k
from megatron_soaes.recipe.distillation_settings import DistillationObjective
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.drafting import Window
from megatron_soaes.training.job import TrainingJob
from megatron_soaes.training.objective import running_teacher
from megatron_soaes.training.teaching import FrozenModel, StoredAnswers, Teaching
from tests.training.material import ONE_PROCESS, SEQUENCE, VOCABULARY, make_sft_job

ORIGIN = Origin("0" * 64, "teacher", "samples", 1.0)
HELD_OUT_SAMPLES = 4
WINDOW = Window(longest=5, cost_ratio=0.2)


def frozen(folder: Path, model: str) -> FrozenModel:
    """An imported model of the material that is not trained."""
    shape = read_shape(folder / model / "hf" / "config.json")
    return FrozenModel(shape, folder / model / "imported", at_best=False)


def make_online_job(
    folder: Path,
    out: Path,
    model: str = "qwen3",
    layout: Layout = ONE_PROCESS,
    *,
    objective: dict[str, Any] | None = None,
    reference: str | None = None,
    **changes: Any,
) -> TrainingJob:
    """Packed conversations and documents, with the teacher beside the student (collective)."""
    job = make_sft_job(folder, out, model, layout, **changes)
    settings = DistillationObjective.model_validate(objective or {})
    beside = frozen(folder, reference) if reference else None
    teacher = frozen(folder, "teacher")
    return replace(job, teaching=Teaching(settings, VOCABULARY, WINDOW, teacher, beside))


def make_captured_job(
    folder: Path,
    out: Path,
    model: str = "qwen3",
    layout: Layout = ONE_PROCESS,
    *,
    objective: dict[str, Any] | None = None,
    store: str = "top-k",
    **changes: Any,
) -> TrainingJob:
    """The same samples twice in other orders, the teacher read from `folder`/store (collective)."""
    job = make_online_job(folder, out, model, layout, objective=objective, **changes)
    assert job.teaching is not None
    whole = captured_samples(folder, out)
    mixture = Passes(whole, job.steps * job.stage.global_batch_size, seed=3)
    stores = folder / store
    stored = StoredAnswers(
        TeacherStore(stores / "training", ORIGIN),
        mixture.order,
        {"chats": TeacherStore(stores / "chats", ORIGIN)},
    )
    return replace(job, mixture=mixture, teaching=replace(job.teaching, teacher=stored))


def captured_samples(folder: Path, out: Path) -> Mixture:
    """Half as many samples as a job takes."""
    return make_sft_job(folder, out, steps=4).mixture


def make_store(folder: Path, name: str = "top-k", entries: int = 16) -> None:
    """Write `folder`/NAME/{training,chats} in one process, sample by sample."""
    job = make_online_job(folder, folder / "unused")
    assert job.teaching is not None and isinstance(job.teaching.teacher, FrozenModel)
    teacher = running_teacher(job.teaching.teacher.load(job.build_options))

    def answers_to(sample: Sample) -> Answers:
        dense = teacher(collate([sample], torch.device("cpu")))
        assert isinstance(dense, DenseTeacher)
        best = top_k(dense.logits, entries, VOCABULARY)
        return Answers(best.ids[0], best.log_probs[0], best.log_residual[0])

    whole = captured_samples(folder, folder / "unused")
    held_out = job.validation["chats"]
    parts: dict[str, tuple[Mixture | SampleSource, int]] = {
        "training": (whole, len(whole.source_ids)),
        "chats": (held_out, min(HELD_OUT_SAMPLES, len(held_out))),
    }
    for part, (samples, count) in parts.items():
        layout = StoreLayout("top_k", entries, count, SEQUENCE, samples_per_shard=5)
        capture = Capture(folder / name / part, ORIGIN, layout)
        for shard in capture.missing():
            first = shard * layout.samples_per_shard
            every = [answers_to(samples[i]) for i in range(first, first + layout.samples_of(shard))]
            capture.write(
                shard,
                Answers(
                    torch.stack([one.ids for one in every]),
                    torch.stack([one.log_probs for one in every]),
                    torch.stack([one.rest for one in every]),
                ),
            )
        capture.finish()
