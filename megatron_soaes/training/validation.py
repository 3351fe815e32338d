"""Held-out loss of named datasets under the training layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.data.sample import MicroBatch, Sample, SampleSource, collate
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.step import evaluation_loss


def validate(
    chunks: Sequence[GPTModel],
    vocab_size: int,
    sets: Mapping[str, SampleSource],
    micro_batch_size: int,
    layout: Layout,
    *,
    most_windows: int | None = None,
) -> dict[str, dict[str, float]]:
    """Loss (nats), perplexity and tokens of each set; `most_windows` bounds each (collective)."""
    return {
        name: _one_set(
            chunks, vocab_size, windows, micro_batch_size, layout, most_windows=most_windows
        )
        for name, windows in sets.items()
    }


def _one_set(
    chunks: Sequence[GPTModel],
    vocab_size: int,
    windows: SampleSource,
    micro_batch_size: int,
    layout: Layout,
    *,
    most_windows: int | None,
) -> dict[str, float]:
    count = len(windows) if most_windows is None else min(len(windows), most_windows)
    batches = _micro_batches(windows, count, micro_batch_size, layout)
    loss, weight = evaluation_loss(chunks, vocab_size, batches)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": weight}


def _micro_batches(
    windows: SampleSource, count: int, micro_batch_size: int, layout: Layout
) -> list[MicroBatch]:
    """This replica's share of windows 0..count-1, filled up with windows that weigh nothing.

    Every replica gets the same number of full micro-batches, a multiple of the pipeline stages:
    the pipeline schedules take no less.
    """
    replicas = layout.data_parallel
    unit = micro_batch_size * layout.pipeline_parallel
    share = math.ceil(count / (replicas * unit)) * unit
    first = parallel_state.get_data_parallel_rank() * share
    samples = [
        windows[index] if index < count else _without_weight(windows[0])
        for index in range(first, first + share)
    ]
    device = this_device().torch_device
    return [
        collate(samples[start : start + micro_batch_size], device, layout.document_multiple)
        for start in range(0, share, micro_batch_size)
    ]


def _without_weight(sample: Sample) -> Sample:
    return Sample(
        sample.tokens, np.zeros_like(sample.loss_weights), sample.cu_seqlens, sample.source
    )
