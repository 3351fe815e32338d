"""What packed documents are filled up to, and that filling leaves every process a fair part."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.data.sample import collate, pretraining_sample
from megatron_soaes.recipe.fp8 import Filling, filling_of
from megatron_soaes.recipe.training_settings import FP8, Layout

EOD = 0


def test_without_context_parallelism_nothing_is_filled_up() -> None:
    assert filling_of(Layout(tensor_parallel=8, sequence_parallel=True), FP8()) == Filling(1, 1)


def test_fp8_asks_it_of_the_tokens_of_each_process() -> None:
    layout = Layout(context_parallel=2, tensor_parallel=4, sequence_parallel=True)
    assert filling_of(layout) == Filling(16, 16)
    assert filling_of(layout, FP8()) == Filling(16, 128)
    assert filling_of(layout, FP8(recipe="mxfp8")) == Filling(16, 256)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([None, FP8()]))
def test_every_process_gets_as_many_tokens_and_no_token_is_lost(
    lengths: list[int], fp8: FP8 | None
) -> None:
    layout = Layout(context_parallel=2, tensor_parallel=2, sequence_parallel=True)
    filling = filling_of(layout, fp8)
    tokens = torch.cat([torch.tensor([7] * length + [EOD]) for length in lengths]).numpy()
    sample = pretraining_sample(tokens, EOD, 0)
    batch = collate([sample], torch.device("cpu"), filling)
    bounds = batch.cu_seqlens
    assert int(bounds[-1]) == batch.inputs.shape[1]
    assert not (bounds % filling.document).any()
    assert int(bounds[-1]) % filling.whole == 0
    assert int(bounds[-1]) / layout.sequence_parts % (16 if fp8 else 1) == 0
    assert batch.inputs[0, batch.places].tolist() == tokens[:-1].tolist()
    assert batch.loss_weights.sum() == sample.loss_weights[1:].sum()
