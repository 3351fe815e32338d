"""Held-out loss of named datasets under the training layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.data.sample import MicroBatch, Sample, SampleSource, collate
from megatron_soaes.data.teacher_store import TeacherStore
from megatron_soaes.recipe.fp8 import filling_of
from megatron_soaes.recipe.training_settings import FP8, Layout
from megatron_soaes.training.objective import Objective
from megatron_soaes.training.step import evaluation_loss
from megatron_soaes.training.teaching import Lessons

LOSS_FIGURES = ("loss", "perplexity", "tokens")
"""What validation says of each set in every stage."""


def validate(
    chunks: Sequence[GPTModel],
    objective: Objective,
    sets: Mapping[str, SampleSource],
    micro_batch_size: int,
    layout: Layout,
    *,
    fp8: FP8 | None = None,
    most_windows: int | None = None,
    lessons: Lessons | None = None,
) -> dict[str, dict[str, Any]]:
    """Loss (nats), perplexity and tokens of each set; `most_windows` bounds each (collective).

    With `lessons` also what their meter reads.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, windows in sets.items():
        answers = lessons.validation_answers(name) if lessons else None
        count = len(windows) if most_windows is None else min(len(windows), most_windows)
        if answers is not None:
            count = min(count, len(answers))
        batches = _micro_batches(windows, answers, count, micro_batch_size, layout, fp8=fp8)
        loss, weight = evaluation_loss(chunks, lessons.meter if lessons else objective, batches)
        found[name] = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "tokens": weight,
            **(lessons.meter.read() if lessons else {}),
        }
    return found


def _micro_batches(
    windows: SampleSource,
    answers: TeacherStore | None,
    count: int,
    micro_batch_size: int,
    layout: Layout,
    *,
    fp8: FP8 | None,
) -> list[MicroBatch]:
    """This replica's share of windows 0..count-1, filled up with windows that weigh nothing.

    Every replica gets the same number of full micro-batches, a multiple of the pipeline stages:
    the pipeline schedules take no less.
    """
    replicas = layout.data_parallel
    unit = micro_batch_size * layout.pipeline_parallel
    share = math.ceil(count / (replicas * unit)) * unit
    first = parallel_state.get_data_parallel_rank() * share
    wanted = range(first, first + share)
    device = this_device().torch_device
    return [
        collate(
            [windows[i] if i < count else _without_weight(windows[0]) for i in part],
            device,
            filling_of(layout, fp8),
            [answers[i if i < count else 0] for i in part] if answers is not None else (),
        )
        for part in (wanted[at : at + micro_batch_size] for at in range(0, share, micro_batch_size))
    ]


def _without_weight(sample: Sample) -> Sample:
    return Sample(
        sample.tokens, np.zeros_like(sample.loss_weights), sample.cu_seqlens, sample.source
    )
