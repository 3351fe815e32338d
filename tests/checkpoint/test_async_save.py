"""The parts of a save that other tests see from outside only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_soaes.accelerator.safe_pickle import read_common
from megatron_soaes.checkpoint.checksums import recorded
from megatron_soaes.checkpoint.directory import HF_FILES, iteration_directory
from megatron_soaes.checkpoint.shard_writer import ShardWriter, in_host_memory
from megatron_soaes.checkpoint.show import show
from megatron_soaes.recipe.megatron_shapes import shape_from_args
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.recipe.training_settings import Checkpointing
from tests.checkpoint.layouts import LAYOUTS, STEPS

pytestmark = pytest.mark.timeout(900)
"""The first test waits for all the runs."""


def buckets(tensor: torch.Tensor) -> list[Any]:
    """What Megatron-Core hands to a writer: file, key, (objects, [(plan, tensor)])."""
    return [("file", "key", ([], [("plan", tensor)]))]


def staged(tensor: torch.Tensor, *, copy: bool) -> torch.Tensor:
    ((_, _, (_, ((_, result),))),) = in_host_memory(buckets(tensor), copy=copy)
    return torch.as_tensor(result)


def test_a_copy_is_not_changed_by_the_next_step() -> None:
    weights = torch.ones(3, requires_grad=True)
    copied, shared = staged(weights, copy=True), staged(weights, copy=False)
    with torch.no_grad():
        weights += 1
    assert copied.tolist() == [1, 1, 1]
    assert shared.tolist() == [2, 2, 2], "without a copy it would be"


def request(write: Any) -> AsyncRequest:
    return AsyncRequest(write, (0, [], None), [])


def test_a_writer_that_dies_is_an_error() -> None:
    writer = ShardWriter(request(lambda rank, staged, results: os._exit(7)), copy=False)
    with pytest.raises(OSError, match="ended with code 7"):
        writer.finish()


def test_a_writer_that_fails_says_why() -> None:
    def full(rank: int, staged: list[Any], results: Any) -> None:
        results.put(OSError("no space left"))

    writer = ShardWriter(request(full), copy=False)
    with pytest.raises(OSError, match="could not be written: no space left"):
        writer.finish()


def test_a_rank_with_nothing_to_write_is_done() -> None:
    writer = ShardWriter(request(None), copy=True)
    assert writer.done
    assert writer.finish() == {}


def test_the_sums_of_all_files_are_recorded(layout_runs: Path) -> None:
    for kind in ("saved", "delayed"):
        folder = iteration_directory(layout_runs / kind / "tp2-sp" / "checkpoints", STEPS)
        names = {file.name for file in folder.iterdir()} - {"checksums.json"}
        assert set(recorded(folder) or {}) == names
        assert len([name for name in names if name.endswith(".distcp")]) == 4


@pytest.mark.parametrize("name", ["one", "tp2-sp", "dp2"])
def test_the_arguments_are_those_of_megatron_lm(layout_runs: Path, name: str) -> None:
    root = layout_runs / "saved" / name / "checkpoints"
    arguments, layout = show(root).arguments, LAYOUTS[name]
    expected = {
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 8,
        "num_query_groups": 1,
        "kv_channels": 16,
        "padded_vocab_size": 256,
        "untie_embeddings_and_output_weights": False,
        "qk_layernorm": True,
        "tensor_model_parallel_size": layout.tensor_parallel,
        "data_parallel_size": layout.data_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "iteration": STEPS,
        "consumed_train_samples": 4 * STEPS,
        "ckpt_format": "torch_dist",
        "no_save_rng": True,
        "bf16": False,
    }
    assert {key: arguments[key] for key in expected} == expected
    common = read_common(iteration_directory(root, STEPS) / "common.pt")
    assert (common["iteration"], common["checkpoint_version"]) == (STEPS, 3.0)


def test_the_shape_can_be_read_back_from_the_arguments(layout_runs: Path) -> None:
    root = layout_runs / "saved" / "one" / "checkpoints"
    shape = read_shape(root / HF_FILES / "config.json")
    assert shape_from_args(show(root).arguments, shape.vocab_size, root) == shape


def test_by_default_saves_are_in_the_foreground_and_kept() -> None:
    settings = Checkpointing()
    assert not settings.asynchronous
    assert settings.keep_last is None
