"""How many tokens to draft, and from which batch on drafting costs more than it gains."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.losses.acceptance import best_draft_length, expected_tokens

GUESS = 4
"""Without a measurement: the shortest of the 4 to 10 that TensorRT-LLM's example calls usual."""
LONGEST = 10
MACHINES = {
    "A100 80GB SXM": (312e12, 2.039e12),
    "H100 SXM": (989e12, 3.35e12),
    "H200 SXM": (989e12, 4.8e12),
}
"""bf16 operations a second without sparsity, bytes a second; NVIDIA's data sheets."""


@dataclass(frozen=True)
class Measurement:
    """What `soaes speculate --out` found."""

    file: str
    acceptance: float
    """Accepted over judged tokens, at `longest`."""
    cost_ratio: float
    """Time of a draft's token over that of a target's, on the machine that measured."""
    longest: int
    """The longest fixed draft length that was measured."""


@dataclass(frozen=True)
class DraftLength:
    """The number of tokens, and where it comes from."""

    tokens: int
    reason: str
    measured: Measurement | None


def read_measurement(file: Path) -> Measurement:
    """The report of `soaes speculate --out`; UserError when it is not one."""
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        fixed = [one for one in report["lengths"] if not one["adaptive"]]
        longest = max(fixed, key=lambda one: int(one["draft_length"]))
        found = Measurement(
            file.name,
            float(longest["acceptance"]["acceptance_of_judged"]),
            float(report["cost_ratio"]),
            int(longest["draft_length"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            file, f"no readable report ({type(error).__name__}: {error})",
            "the JSON that soaes speculate --out wrote",
            "Measure the pair: soaes speculate TARGET DRAFT --prompts FILE --out REPORT.",
        ) from None  # fmt: skip
    if not (0 <= found.acceptance <= 1 and found.cost_ratio > 0 and found.longest > 0):
        raise UserError(
            file, f"acceptance {found.acceptance:g}, cost ratio {found.cost_ratio:g}, draft length "
            f"{found.longest}",
            "an acceptance of 0 to 1, the others above 0", "Measure the pair again.",
        )  # fmt: skip
    return found


def choose_draft_length(asked: int | None, measured: Measurement | None) -> DraftLength:
    """The number asked for, else the measured one with the best ideal speedup, else `GUESS`.

    The speedup is that of Leviathan et al. (arXiv 2211.17192, theorem 3.8), see
    `losses/acceptance.py`. Raises UserError for a number outside 1 to `LONGEST`, and when by the
    measurement no length gains anything.
    """
    if asked is not None:
        if not 1 <= asked <= LONGEST:
            raise UserError("--draft-length", str(asked), f"1 to {LONGEST}", "Choose another.")
        return DraftLength(asked, "it was asked for", measured)
    if measured is None:
        return DraftLength(GUESS, "a guess: nothing was measured", None)
    best = best_draft_length(
        measured.acceptance, measured.cost_ratio, min(measured.longest, LONGEST)
    )
    if best == 0:
        raise UserError(
            measured.file,
            f"acceptance {measured.acceptance:.3f} at cost ratio {measured.cost_ratio:.3f}",
            "an acceptance above the cost ratio: otherwise no draft length gains anything",
            "Serve the target alone, or train a better draft. --draft-length N exports anyway.",
        )  # fmt: skip
    reason = (
        f"the best ideal speedup at the measured acceptance {measured.acceptance:.3f} and cost "
        f"ratio {measured.cost_ratio:.3f} ({measured.file})"
    )
    return DraftLength(best, reason, measured)


def break_even_batch(
    acceptance: float, draft_length: int, size_ratio: float, tokens_per_pass: float
) -> int:
    """Requests at a time above which speculation is slower than plain decoding, by a roofline.

    A pass costs reading the weights once, until it computes `tokens_per_pass` tokens or more; then
    it costs in proportion to its tokens. With E tokens gained a round of k drafted ones, and the
    draft `size_ratio` times the target, speculation is even where E = k * size_ratio +
    batch * (k + 1) / tokens_per_pass. An upper bound: caches and launches are left out, and no
    machine computes at its data sheet's speed. 0 when nothing is gained at any batch.
    """
    gained = expected_tokens(acceptance, draft_length) - draft_length * size_ratio
    return int(max(0.0, gained) * tokens_per_pass / (draft_length + 1)) if gained > 1 else 0


def tokens_per_pass(machine: str) -> float:
    """Tokens of a pass for which computing takes as long as reading the weights.

    A bf16 weight is 2 bytes, and 2 operations a token. Tensor parallelism divides both alike.
    """
    operations, bandwidth = MACHINES[machine]
    return operations / bandwidth
