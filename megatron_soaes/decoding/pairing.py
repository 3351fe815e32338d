"""Two models that can work together: one tokenizer, each in the dtype that is fastest here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data_prep.same_tokenizer import require_same_tokenizer
from megatron_soaes.decoding.draft_length import PassCosts
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.prompts import load_tokenizer
from megatron_soaes.models.build import DTYPES, dtype_named

CONTEXT = 128
"""Tokens before a measured pass."""
REPEATS = 24


def shared_tokenizer(target_dir: Path, draft_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of both models; raises UserError as `require_same_tokenizer`."""
    tokenizer = load_tokenizer(target_dir)
    require_same_tokenizer(target_dir, draft_dir)
    return tokenizer


def load_model(hf_dir: Path, dtype: str) -> LeanModel:
    """Read a model as `fp32`, `bf16`, or with `auto` as what passes one token faster here.

    Which it is depends on the size of the model and on the instructions of the processor. Raises
    UserError for another name and as `LeanModel` does.
    """
    if dtype != "auto":
        return LeanModel(hf_dir, dtype_named(dtype))
    best: tuple[float, LeanModel] | None = None
    for one in DTYPES.values():
        model = LeanModel(hf_dir, one)
        seconds = pass_seconds(model, [1])[0]
        if best is None or seconds < best[0]:
            best = seconds, model
    assert best is not None
    return best[1]


def dtype_name(model: LeanModel) -> str:
    """The name of a model's dtype in recipes."""
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype)


def pass_costs(
    target: LeanModel, draft: LeanModel, longest: int, rows: int, window: int | None
) -> PassCosts:
    """Measure one pass of the draft and those of the target up to `longest` + 1 tokens.

    `window`: the tokens of every target pass, in exact mode.
    """
    if window is None:
        costs = pass_seconds(target, range(1, longest + 2), rows)
    else:
        costs = pass_seconds(target, [window], rows, fixed_keys=True) * (longest + 1)
    return PassCosts(pass_seconds(draft, [1], rows)[0], tuple(costs))


@torch.inference_mode()
def pass_seconds(
    model: LeanModel, widths: Sequence[int], rows: int = 1, *, fixed_keys: bool = False
) -> list[float]:
    """Seconds of a pass over each number of tokens, logits included, the widths in turn.

    The lower quartile: what disturbs a measurement only ever makes it longer.
    """
    context = min(CONTEXT, model.max_position - max(widths))
    cache = model.new_cache(rows, context + max(widths))
    cache.lengths = [context] * rows
    keys = cache.capacity if fixed_keys else None
    seconds: list[list[float]] = [[] for _ in widths]
    for _ in range(REPEATS):
        for times, width in zip(seconds, widths, strict=True):
            ids = torch.zeros((rows, width), dtype=torch.int64, device=model.device)
            started = time.perf_counter()
            model.logits(model.hidden(ids, cache, key_length=keys)).argmax(-1).tolist()
            times.append(time.perf_counter() - started)
    return [statistics.quantiles(times, n=4)[0] for times in seconds]
