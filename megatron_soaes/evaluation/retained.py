"""How much of the base's general ability a model keeps: one figure for each, or why there is none.

The account's "kept" of all that measures general ability, as `recipe` gates name it: `retained`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_soaes.evaluation.report import KEPT, is_main
from megatron_soaes.evaluation.statistics import Verdict


@dataclass(frozen=True)
class Retained:
    """What one model keeps of the base."""

    value: float | None
    """The least share over all general measures, 1 for all of it; None where it is not known."""
    why: str
    """Why it is not known; empty where it is."""


def retained(comparison: Mapping[str, Any], general: Collection[str]) -> dict[str, Retained]:
    """What each model but the base keeps, from a comparison as JSON (`statistics.to_json`).

    `general` names the suites that measure general ability. The share of a measure is new / base,
    or base / new where less is better. It counts as known when the retention verdict is that it is
    kept or lost: a base that does not beat guessing has nothing to keep, and an interval that holds
    both answers says neither.
    """
    return {
        model: _of_model([row for row in _general(comparison, general) if row["model"] == model])
        for model in comparison["models"]
        if model != comparison["base"]
    }


def _general(
    comparison: Mapping[str, Any], general: Collection[str]
) -> Iterator[Mapping[str, Any]]:
    """The rows of whole suites and main measures, as the summary shows them."""
    for row in comparison["rows"]:
        if row["suite"] in general and is_main(row["measure"]):
            yield row


def _of_model(rows: list[Mapping[str, Any]]) -> Retained:
    if not rows:
        return Retained(None, "nothing of general ability was measured")
    shares = [_share(row) if _is_judged(row) else None for row in rows]
    known = [share for share in shares if share is not None]
    if len(known) < len(rows):
        lacking = (row for row, share in zip(rows, shares, strict=True) if share is None)
        return Retained(None, "; ".join(map(_why, lacking)))
    return Retained(min(known), "")


def _is_judged(row: Mapping[str, Any]) -> bool:
    return row["retention"]["verdict"] in (Verdict.SHOWN, Verdict.MISSED)


def _share(row: Mapping[str, Any]) -> float | None:
    """None for a ratio to nothing."""
    base, new = (float(row["paired"][which]["value"]) for which in ("base", "new"))
    part, whole = (new, base) if row["higher_is_better"] else (base, new)
    return part / whole if whole else None


def _why(row: Mapping[str, Any]) -> str:
    """The account's word for the row, and the numbers behind it."""
    verdict, base = KEPT[Verdict(row["retention"]["verdict"])], row["paired"]["base"]["value"]
    share = _share(row)
    if row["measurable"] is False:
        numbers = f"the base has {base:.1f}, guessing {row['chance']:.1f}"
    elif share is None:
        numbers = "a ratio to 0"
    else:
        numbers = f"{share:.4g} on {row['paired']['items']} items"
        numbers += f", with a margin of {row['retention']['margin']}"
    return f"{row['suite']}.{row['measure']} is {verdict} ({numbers})"
