"""A stage tells what it was planned to take and what it took."""

from __future__ import annotations

import pytest

from megatron_soaes.training.forecast import Forecast, compared, told

GIB = 2**30


def test_planned_and_reached_stand_side_by_side() -> None:
    figures = compared(Forecast((60 * GIB, 48 * GIB), 52_000.0), [58 * GIB, 50 * GIB], 49_876.5)
    assert figures["planned_memory_gib"] == [60, 48]
    assert figures["peak_memory_gib"] == [58, 50]
    lines = told(figures)
    assert lines[1].startswith(
        "  memory of pipeline stage 1: planned 48.00 GiB of tensors, peak 50"
    )
    assert lines[2] == "  tokens/s: planned 52,000, reached 49,876"


@pytest.mark.parametrize("peaks", [[GIB], [GIB] * 3])
def test_every_stage_was_planned(peaks: list[int]) -> None:
    with pytest.raises(ValueError, match="zip"):
        told(compared(Forecast((GIB, GIB), None), peaks, 1.0))


def test_a_machine_without_figures_has_no_plan() -> None:
    lines = told(compared(Forecast((GIB,), None), [GIB], 10.0))
    assert lines[-1] == "  tokens/s: no plan for this machine, reached 10"
