"""What validation says about a draft: how often its target would take what it drafts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_soaes.data.sample import MicroBatch
from megatron_soaes.losses.acceptance import (
    best_draft_length_by_position,
    expected_tokens_by_position,
    ideal_speedup,
)
from megatron_soaes.losses.agreement import acceptance_rates, greedy_matches, window_sums
from megatron_soaes.losses.teachers import SampledTeacher
from megatron_soaes.models.zigzag import whole_sequence
from megatron_soaes.training.objective import Objective, TeacherOf
from megatron_soaes.training.step import sum_over_world


@dataclass(frozen=True)
class Window:
    """The drafts that are judged, and what a pass of the draft costs."""

    longest: int
    """Most tokens drafted for a pass of the target."""
    cost_ratio: float
    """Time of a draft's pass over a target's."""


class AcceptanceMeter:
    """An objective for validation: another one's loss, and beside it the expected acceptance.

    Forward passes only. Figures are of all positions that were passed through `losses` since the
    last `read`; filled-up positions and those without weight do not count.
    """

    def __init__(
        self,
        loss: Objective,
        teacher: TeacherOf,
        window: Window,
        *,
        vocab_size: int,
        temperature: float,
    ) -> None:
        """`loss` is what is also given back; `vocab_size` ids, from 0, take part in acceptance."""
        self._loss = loss
        self._teacher = teacher
        self._window = window
        self._vocab_size = vocab_size
        self._temperature = temperature
        self._clear()

    def _clear(self) -> None:
        self._positions = self._accepted = self._matches = 0.0
        self._greedy = True
        zeros = torch.zeros(self._window.longest, dtype=torch.float64)
        self._reached, self._passed = zeros, zeros.clone()

    def losses(self, logits: Tensor, batch: MicroBatch) -> Tensor:
        """As `Objective.losses`."""
        self._measure(logits.detach(), batch)
        return self._loss.losses(logits, batch)

    def _measure(self, logits: Tensor, batch: MicroBatch) -> None:
        teacher, counts = self._teacher(batch), batch.loss_weights > 0
        rates = acceptance_rates(
            logits,
            batch.loss_weights,
            teacher,
            vocab_size=self._vocab_size,
            temperature=self._temperature,
        )
        self._greedy = not isinstance(teacher, SampledTeacher)
        matches = torch.zeros_like(counts)
        if not isinstance(teacher, SampledTeacher):
            matches = greedy_matches(logits, teacher, vocab_size=self._vocab_size) & counts
        bounds = batch.cu_seqlens.tolist()
        figures = torch.stack((rates[0], counts[0], matches[0]), dim=1)
        whole = whole_sequence(figures.double(), bounds).unbind(1)
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            return
        if parallel_state.get_context_parallel_rank() != 0:
            return
        rates, counts, matches = whole[0], whole[1] > 0, whole[2]
        self._positions += float(counts.sum())
        self._accepted += float(rates.sum())
        self._matches += float(matches.sum())
        sums = window_sums(rates, runs_of(counts, batch.cu_seqlens), self._window.longest)
        self._reached += sums[0].cpu()
        self._passed += sums[1].cpu()

    def read(self) -> dict[str, Any]:
        """What was measured, over all ranks (collective over the world); starts anew.

        alpha: mean of sum(min(p, q)); greedy_match: share of positions with one most likely token,
        left out where the teacher is only drawn from; alpha_by_position: acceptance at each place
        of the draft window where all before it were accepted; by draft length from 1:
        tokens_per_pass of the target and ideal_speedup, see `losses.acceptance`;
        best_draft_length, 0 for none.
        """
        own = [self._positions, self._accepted, self._matches]
        longest, greedy = self._window.longest, self._greedy
        total = sum_over_world([*own, *self._reached.tolist(), *self._passed.tolist()])
        self._clear()
        positions, accepted, matches = total[:3]
        reached, passed = total[3 : 3 + longest], total[3 + longest :]
        rates = [there / here for here, there in zip(reached, passed, strict=True) if here > 0]
        tokens = [expected_tokens_by_position(rates[:length]) for length in _lengths(rates)]
        ratio = self._window.cost_ratio
        figures: dict[str, Any] = {"alpha": accepted / positions}
        if greedy:
            figures["greedy_match"] = matches / positions
        return figures | {
            "alpha_by_position": rates,
            "tokens_per_pass": tokens,
            "ideal_speedup": [
                ideal_speedup(each, length, ratio)
                for each, length in zip(tokens, _lengths(rates), strict=True)
            ],
            "best_draft_length": best_draft_length_by_position(rates, ratio),
            "cost_ratio": ratio,
        }


def _lengths(rates: list[float]) -> range:
    return range(1, len(rates) + 1)


def runs_of(counts: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[t] int64: one number for positions that count and follow each other in a document, else -1.

    counts [t] bool; cu_seqlens [documents + 1] starts of documents, then t.
    """
    starts = counts & ~counts.roll(1)
    first = cu_seqlens[:-1].long()
    starts[first] = counts[first]
    return torch.where(counts, starts.cumsum(0), -1)
