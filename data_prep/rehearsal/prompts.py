"""Prompts on which speculative decoding is measured: questions that no training file holds."""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_prep.rehearsal.exam import Dialogue

PROMPTS = 40


def held_out_prompts(
    expert: Sequence[Dialogue], general: Sequence[Dialogue], seed: int, most: int = PROMPTS
) -> list[Dialogue]:
    """Up to `most` held-out dialogues without their last answer, half of each kind, mixed.

    Where one kind has too few the other gives more. The first is a question to the expert.
    """
    count = min(len(expert), max(most // 2, most - len(general)))
    first, *rest = [*expert[:count], *general[: most - count]]
    random.Random(f"prompts {seed}").shuffle(rest)
    return [{"messages": one["messages"][:-1]} for one in (first, *rest)]
