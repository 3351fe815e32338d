"""What an SFT dataset holds, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.indexed import TokenLengths
from data_prep.sft.shards import SFTCounts

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class SourceReport:
    """One source of a dataset."""

    conversations: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class SFTReport:
    """The `report` of an SFT dataset. It depends on the inputs and the options alone."""

    conversations: int
    turns: int
    """Assistant turns."""
    trained_turns: int
    """Those with loss weights."""
    tokens: int
    trained_tokens: int
    trained_share: float
    longest: int
    length_quantiles: dict[str, int]
    """Tokens of a conversation: the shortest one that as many are not longer than."""
    length_histogram: dict[str, int]
    """Conversations by the power of two that they fit in."""
    end_of_turn: str
    """The token that ends an answer: a server must stop at it."""
    truncated: int
    dropped: dict[str, int]
    """Good records that were left out, by reason."""
    bad_lines: dict[str, int]
    """By reason; they stand in the file of `skip_bad_lines`."""
    blank_lines: int
    sources: dict[str, SourceReport]


def make_report(
    counts: SFTCounts, lengths: TokenLengths, sources: list[str], end_of_turn: str
) -> SFTReport:
    """Sum up a dataset of at least one conversation; `lengths` is int32 [conversations]."""
    tokens, trained = sum(counts.tokens.values()), sum(counts.trained_tokens.values())
    quantiles = np.quantile(lengths, QUANTILES, method="inverted_cdf").astype(int).tolist()
    powers = np.ceil(np.log2(lengths)).astype(int)
    found, frequencies = np.unique(powers, return_counts=True)
    return SFTReport(
        conversations=counts.documents,
        turns=counts.turns,
        trained_turns=counts.trained_turns,
        tokens=tokens,
        trained_tokens=trained,
        trained_share=round(trained / tokens, 6),
        longest=int(lengths.max()),
        length_quantiles={f"{q:.0%}": n for q, n in zip(QUANTILES, quantiles, strict=True)},
        length_histogram={
            str(2**power): count
            for power, count in zip(found.tolist(), frequencies.tolist(), strict=True)
        },
        end_of_turn=end_of_turn,
        truncated=counts.truncated,
        dropped=counts.dropped,
        bad_lines=counts.bad,
        blank_lines=counts.blank,
        sources={
            name: SourceReport(
                counts.conversations[name], counts.tokens[name], counts.trained_tokens[name]
            )
            for name in sources
        },
    )
