"""What speculation is worth for a pair of models on given prompts: one run, one set of figures."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import eq
from pathlib import Path
from typing import Any

import torch

from megatron_soaes.decoding.draft_length import (
    Acceptance,
    PassCosts,
    acceptance_of,
    break_even,
)
from megatron_soaes.decoding.interface import Prompt, Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.measure import (
    ClockedDecoder,
    Identity,
    Speedup,
    Timed,
    TimeShares,
    identity,
    in_turn,
    logits_digests,
    speedup,
)
from megatron_soaes.decoding.pairing import (
    dtype_name,
    load_model,
    pass_costs,
    shared_tokenizer,
)
from megatron_soaes.decoding.prompt_file import read_prompts
from megatron_soaes.decoding.prompts import stop_ids
from megatron_soaes.decoding.speculative import Speculation, SpeculativeDecoder
from megatron_soaes.errors import UserError
from megatron_soaes.losses.acceptance import expected_tokens, ideal_speedup

PLAIN = "plain"
PLAIN_EXACT = "plain, exact mode"


@dataclass(frozen=True)
class LengthResult:
    """One draft length against plain decoding."""

    draft_length: int
    """The longest, where the length adapts."""
    adaptive: bool
    seconds_per_token: float
    speedup: Speedup
    """Over plain decoding in fast mode, the fastest plain decoding there is."""
    speedup_in_mode: Speedup
    """Over plain decoding in the same mode, the one the text is compared with."""
    acceptance: Acceptance
    ideal_speedup: float | None
    """At the measured acceptance and cost ratio, if judging cost one pass. None where the length
    adapts."""
    expected_speedup: float | None
    """With judging at its measured cost. None where the length adapts."""
    break_even_acceptance: float | None
    """Acceptance of judged tokens at which this length costs no time; None if it always does."""
    time: TimeShares
    """Where the time of these runs went."""
    identity: Identity | None
    """None for sampled text, which is equal in distribution only."""

    @property
    def share_of_ideal(self) -> float | None:
        """The speedup in the mode over the ideal one; None where the length adapts."""
        if self.ideal_speedup is None:
            return None
        return self.speedup_in_mode.value / self.ideal_speedup


@dataclass(frozen=True)
class Recommendation:
    """What to do with this pair on this machine."""

    go: bool
    draft_length: int
    """The fastest length measured; 0 when plain decoding is to stay."""
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Everything that one run found."""

    exact: bool
    prompts: int
    rows: int
    repeats: int
    sampling: Sampling
    target_dtype: str
    draft_dtype: str
    machine: dict[str, Any]
    plain_seconds_per_token: float
    plain_seconds_per_token_in_mode: float
    costs: PassCosts
    lengths: tuple[LengthResult, ...]
    recommendation: Recommendation
    sources: dict[str, str] = field(default_factory=dict)
    """The directories and the file of prompts, where these were read."""

    @property
    def fastest(self) -> LengthResult:
        """The fixed length with the highest speedup."""
        return fastest(self.lengths)

    @property
    def identity_holds(self) -> bool:
        """Whether every text is what the mode promises."""
        return all(one.identity is None or one.identity.holds for one in self.lengths)

    def as_json(self) -> dict[str, Any]:
        """The fields, and what follows from the costs."""
        return {**asdict(self), "cost_ratio": self.costs.cost_ratio}


def compare_directories(
    target_dir: Path,
    draft_dir: Path,
    prompt_file: Path,
    sampling: Sampling,
    *,
    dtypes: tuple[str, str] = ("auto", "auto"),
    most_prompts: int | None = None,
    **options: Any,
) -> Comparison:
    """`compare` for two HF directories, a file of prompts, and the target's stop tokens.

    `dtypes`: of target and draft, see `load_model`; `most_prompts`: so many, evenly spread over the
    file, by default all. Raises UserError for what cannot be read and for models with different
    tokenizers.
    """
    tokenizer = shared_tokenizer(target_dir, draft_dir)
    prompts = evenly_spread(read_prompts(prompt_file, tokenizer), most_prompts)
    target, draft = load_model(target_dir, dtypes[0]), load_model(draft_dir, dtypes[1])
    sampling = replace(sampling, stop_ids=stop_ids(tokenizer, target_dir))
    found = compare(target, draft, prompts, sampling, **options)
    sources = {"target": str(target_dir), "draft": str(draft_dir), "prompts": str(prompt_file)}
    return replace(found, sources=sources)


def evenly_spread(prompts: Sequence[Sequence[int]], most: int | None) -> Sequence[Sequence[int]]:
    """At most so many of the prompts, in order, the first among them; all with None."""
    if most is None or most >= len(prompts):
        return prompts
    return [prompts[place * len(prompts) // most] for place in range(most)]


def compare(
    target: LeanModel,
    draft: LeanModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    draft_lengths: Sequence[int],
    exact: bool = False,
    adaptive: bool = False,
    rows: int = 1,
    repeats: int = 3,
    note: Callable[[str], object] = print,
) -> Comparison:
    """Decode the prompts plainly and with each draft length, in turn, and judge.

    `adaptive` adds a variant whose length follows the acceptance, up to the longest of the list.
    Raises UserError for prompts that one of the models cannot take.
    """
    longest = max(draft_lengths)
    _require_positive(min(draft_lengths), repeats, rows)
    rows, window = min(rows, len(prompts)), max(8, longest + 1)
    costs = pass_costs(target, draft, longest, rows, window if exact else None)
    variants = _variants(draft_lengths, exact, window, costs if adaptive else None)
    decoders = {name: ClockedDecoder(target, draft, one) for name, one in variants.items()}
    timed = in_turn(decoders, prompts, sampling, rows=rows, repeats=repeats, note=note)
    plain, same_mode = timed[PLAIN], timed[PLAIN_EXACT if exact else PLAIN]
    same = _identities(target, draft, variants, timed, prompts, sampling=sampling, rows=rows)
    results = [
        _result(
            variant, timed[name], (plain, same_mode), costs,
            time=decoders[name].shares, same=same.get(name),
        )
        for name, variant in variants.items()
        if variant.draft_length
    ]  # fmt: skip
    return Comparison(
        exact=exact,
        prompts=len(prompts),
        rows=rows,
        repeats=repeats,
        sampling=sampling,
        target_dtype=dtype_name(target),
        draft_dtype=dtype_name(draft),
        machine=_machine(),
        plain_seconds_per_token=plain.seconds_per_token,
        plain_seconds_per_token_in_mode=same_mode.seconds_per_token,
        costs=costs,
        lengths=tuple(results),
        recommendation=recommend(results),
    )


def _require_positive(draft_length: int, repeats: int, rows: int) -> None:
    if min(draft_length, repeats, rows) < 1:
        raise UserError(
            "draft length, repeats, rows", f"{draft_length}, {repeats}, {rows}",
            "at least 1 each", "Change the value.",
        )  # fmt: skip


def _variants(
    draft_lengths: Sequence[int], exact: bool, window: int, adaptive: PassCosts | None
) -> dict[str, Speculation]:
    """What is run, by name: plain decoding, that of the mode, then each way to draft."""
    found = {PLAIN: Speculation(0)}
    if exact:
        found[PLAIN_EXACT] = Speculation(0, exact, window)
    for length in sorted(set(draft_lengths)):
        found[f"draft {length}"] = Speculation(length, exact, window)
    if adaptive is not None:
        found["adaptive"] = Speculation(adaptive.longest, exact, window, adaptive)
    return found


def _identities(
    target: LeanModel,
    draft: LeanModel,
    variants: Mapping[str, Speculation],
    timed: Mapping[str, Timed],
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    rows: int,
) -> dict[str, Identity]:
    """Each drafted text, in exact mode its logits too, against plain decoding in the same mode.

    Of sampled text nothing: it is equal in distribution only.
    """
    if not sampling.greedy:
        return {}
    drafted = {name: one for name, one in variants.items() if one.draft_length}
    exact = PLAIN_EXACT in variants
    plain = timed[PLAIN_EXACT if exact else PLAIN].written
    found = {
        name: identity(target, prompts, plain, timed[name].written, exact=exact) for name in drafted
    }
    if not exact:
        return found

    def digests(one: Speculation) -> list[str]:
        decoder = SpeculativeDecoder(target, draft, one)
        return logits_digests(decoder, prompts, sampling, rows)

    wanted = digests(variants[PLAIN_EXACT])
    return {
        name: replace(found[name], equal_logits=sum(map(eq, digests(one), wanted)))
        for name, one in drafted.items()
    }


def _result(
    setting: Speculation,
    found: Timed,
    plain: tuple[Timed, Timed],
    costs: PassCosts,
    *,
    time: TimeShares,
    same: Identity | None,
) -> LengthResult:
    acceptance = acceptance_of(found.rounds)
    alpha, length = acceptance.acceptance_of_judged, setting.draft_length
    adaptive = setting.adaptive is not None
    return LengthResult(
        draft_length=length,
        adaptive=adaptive,
        seconds_per_token=found.seconds_per_token,
        speedup=speedup(plain[0], found),
        speedup_in_mode=speedup(plain[1], found),
        acceptance=acceptance,
        ideal_speedup=None
        if adaptive
        else ideal_speedup(expected_tokens(alpha, length), length, costs.cost_ratio),
        expected_speedup=None if adaptive else costs.speedup(alpha, length),
        break_even_acceptance=break_even(costs, length),
        time=time,
        identity=same,
    )


def fastest(results: Sequence[LengthResult]) -> LengthResult:
    """The fixed length with the highest speedup."""
    return max((one for one in results if not one.adaptive), key=lambda one: one.speedup.value)


def recommend(results: Sequence[LengthResult]) -> Recommendation:
    """Go with the fastest fixed length if its whole interval is above 1 and all texts are right."""
    best = fastest(results)
    gain = f"draft length {best.draft_length} is the fastest: {_interval(best.speedup)}"
    if any(one.identity is not None and not one.identity.holds for one in results):
        return Recommendation(False, 0, "text or logits differ by more than the mode allows")
    if best.speedup.low <= 1:
        return Recommendation(False, 0, f"{gain}, which is not surely above 1")
    return Recommendation(True, best.draft_length, gain)


def _interval(one: Speedup) -> str:
    return f"{one.value:.2f}x, 95 % interval {one.low:.2f} to {one.high:.2f}"


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
