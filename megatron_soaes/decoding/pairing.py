"""Two models that can work together: one tokenizer, each in the dtype that is fastest here."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from megatron_soaes.decoding.draft_length import PassCosts
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.prompts import load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.models.build import DTYPES, dtype_named

CONTEXT = 128
"""Tokens before a measured pass."""
REPEATS = 24


def shared_tokenizer(target_dir: Path, draft_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of both models.

    Raises UserError at the first difference in vocabulary, merges, added or special tokens:
    drafted ids would mean something else to the target.
    """
    target, draft = load_tokenizer(target_dir), load_tokenizer(draft_dir)
    parts = (_vocabulary, _merges, _added_tokens, _special_tokens)
    for part in parts:
        name, wanted = part(target)
        found = part(draft)[1]
        difference = _first_difference(wanted, found)
        if difference is not None:
            key, here, there = difference
            raise UserError(
                f"{draft_dir}: {name}, {key}", there, f"{here}, as in {target_dir}",
                "Use a draft that was trained with the target's tokenizer.",
            )  # fmt: skip
    return target


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[str, Mapping[Any, Any]]:
    return "vocabulary", {token: f"id {id_}" for token, id_ in tokenizer.get_vocab().items()}


def _merges(tokenizer: PreTrainedTokenizerBase) -> tuple[str, Mapping[Any, Any]]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    return "merges", {f"rank {n}": repr(merge) for n, merge in enumerate(model.get("merges", []))}


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, Mapping[Any, Any]]:
    return "added tokens", {
        f"id {id_}": repr(str(token)) for id_, token in tokenizer.added_tokens_decoder.items()
    }


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, Mapping[Any, Any]]:
    return "special tokens", {k: repr(v) for k, v in tokenizer.special_tokens_map.items()}


def _first_difference(
    wanted: Mapping[Any, Any], found: Mapping[Any, Any]
) -> tuple[str, str, str] | None:
    """Key, wanted and found value; in the order of the first mapping."""
    for key in (*wanted, *(key for key in found if key not in wanted)):
        here, there = wanted.get(key, "nothing"), found.get(key, "nothing")
        if here != there:
            return str(key), str(here), str(there)
    return None


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
