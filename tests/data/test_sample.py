"""The invariants of a sample and of a micro-batch, for windows of any content."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.data.sample import MicroBatch, Sample, collate, pretraining_sample

EOD = 0
CPU = torch.device("cpu")

windows = st.lists(st.integers(0, 4), min_size=2, max_size=40).map(
    lambda tokens: pretraining_sample(np.array(tokens, dtype=np.int64), EOD, source=3)
)
equal_windows = st.integers(2, 20).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 4), min_size=size, max_size=size), min_size=1, max_size=5
    )
)


def batch_of(contents: list[list[int]]) -> tuple[list[Sample], MicroBatch]:
    samples = [
        pretraining_sample(np.array(tokens, dtype=np.int64), EOD, source)
        for source, tokens in enumerate(contents)
    ]
    return samples, collate(samples, CPU)


def test_a_window_of_three_documents() -> None:
    tokens = np.array([5, 6, EOD, 8, EOD, 9, 9], dtype=np.int64)
    sample = pretraining_sample(tokens, EOD, source=2)
    assert sample.cu_seqlens.tolist() == [0, 3, 5, 7]
    assert sample.loss_weights.tolist() == [0, 1, 1, 0, 1, 0, 1]
    assert (sample.length, sample.source) == (6, 2)


def test_a_batch_of_two_windows() -> None:
    _, batch = batch_of([[5, EOD, 6, 7], [8, 9, EOD, 4]])
    assert batch.inputs.tolist() == [[5, EOD, 6, 8, 9, EOD]]
    assert batch.labels.tolist() == [[EOD, 6, 7, 9, EOD, 4]]
    assert batch.loss_weights.tolist() == [[1, 0, 1, 1, 1, 0]]
    assert batch.cu_seqlens.tolist() == [0, 2, 3, 6], "the 4 has no input in its window"
    assert batch.longest == 3
    assert batch.sources == (0, 1)


@given(windows)
def test_a_document_ends_where_the_next_begins(sample: Sample) -> None:
    starts = sample.cu_seqlens[:-1]
    assert sample.cu_seqlens[0] == 0
    assert sample.cu_seqlens[-1] == len(sample.tokens)
    assert (np.diff(sample.cu_seqlens) > 0).all()
    assert (sample.tokens[starts[1:] - 1] == EOD).all()
    inside = np.setdiff1d(np.arange(len(sample.tokens) - 1), sample.cu_seqlens[1:] - 1)
    assert (sample.tokens[inside] != EOD).all()


@given(windows)
def test_only_the_first_token_of_a_document_has_no_weight(sample: Sample) -> None:
    untrained = np.flatnonzero(sample.loss_weights == 0)
    assert untrained.tolist() == sample.cu_seqlens[:-1].tolist()
    assert set(np.unique(sample.loss_weights)) <= {0.0, 1.0}


@given(equal_windows)
def test_documents_never_cross_samples(contents: list[list[int]]) -> None:
    samples, batch = batch_of(contents)
    length = samples[0].length
    bounds = batch.cu_seqlens.tolist()
    assert bounds[-1] == batch.inputs.shape[1] == length * len(samples)
    assert batch.longest == max(np.diff(bounds))
    assert (np.diff(bounds) > 0).all()
    assert set(range(0, bounds[-1], length)) <= set(bounds)


@given(equal_windows)
def test_inputs_and_labels_are_one_token_apart(contents: list[list[int]]) -> None:
    samples, batch = batch_of(contents)
    for i, sample in enumerate(samples):
        part = slice(i * sample.length, (i + 1) * sample.length)
        assert batch.inputs[0, part].tolist() == sample.tokens[:-1].tolist()
        assert batch.labels[0, part].tolist() == sample.tokens[1:].tolist()
        assert batch.loss_weights[0, part].tolist() == sample.loss_weights[1:].tolist()


@given(equal_windows)
def test_a_trained_token_and_its_input_are_of_one_document(contents: list[list[int]]) -> None:
    _, batch = batch_of(contents)
    trained = batch.loss_weights[0] > 0
    assert not (batch.inputs[0][trained] == EOD).any(), "after EOD another document begins"
    starts = set(batch.cu_seqlens.tolist()[:-1])
    ends = {i + 1 for i in torch.where(batch.inputs[0] == EOD)[0].tolist()}
    length = batch.inputs.shape[1] // len(contents)
    expected = {0} | ends | set(range(0, batch.inputs.shape[1], length))
    assert starts == expected - {batch.inputs.shape[1]}


@given(equal_windows)
def test_the_documents_reach_the_attention(contents: list[list[int]]) -> None:
    _, batch = batch_of(contents)
    params = batch.packed_seq_params()
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q is params.cu_seqlens_kv is batch.cu_seqlens
    assert params.max_seqlen_q == params.max_seqlen_kv == batch.longest
    assert batch.cu_seqlens.dtype == torch.int32
