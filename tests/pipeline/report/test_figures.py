"""The figures: where boxes and ticks stand, for any graph and any numbers."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from megatron_soaes.pipeline.report.curves import Curve, HeldOut
from megatron_soaes.pipeline.report.figures import loss_curve
from megatron_soaes.pipeline.report.graph import graph, place, without_shortcuts
from megatron_soaes.pipeline.report.plots import Dot, Series, estimates, lines
from megatron_soaes.pipeline.report.stages import StageEntry
from megatron_soaes.pipeline.report.svg import element
from megatron_soaes.pipeline.status import State

FINITE = st.floats(-1e6, 1e6)
LOSSES = st.floats(1e-3, 1e3)


@st.composite
def graphs(draw: st.DrawFn) -> list[StageEntry]:
    """Stages that read what some of those before them make."""
    count = draw(st.integers(1, 12))
    reads = [draw(st.sets(st.integers(0, n - 1))) if n else set() for n in range(count)]
    return [stage(f"s{n}", [f"s{maker}" for maker in sorted(one)]) for n, one in enumerate(reads)]


def stage(name: str, reads: list[str], state: State = State.WAITING) -> StageEntry:
    return StageEntry(
        name=name, kind="cpt", state=state, why="", seconds=None, processes=1, finished=None,
        progress=None, reads=reads, gates=[], lineage=None, directory="work",
    )  # fmt: skip


def reachable(name: str, reads: dict[str, list[str]]) -> set[str]:
    return set(reads[name]).union(*(reachable(maker, reads) for maker in reads[name]))


@given(graphs())
def test_every_box_has_a_place_of_its_own_right_of_what_it_reads(stages: list[StageEntry]) -> None:
    places = place(stages)
    assert len(set(places.values())) == len(stages)
    for one in stages:
        assert all(places[maker][0] < places[one.name][0] for maker in one.reads)
        assert min(places[one.name]) >= 0


@given(graphs())
def test_leaving_out_shortcuts_hides_no_dependency(stages: list[StageEntry]) -> None:
    reads = {one.name: one.reads for one in stages}
    shown = without_shortcuts(reads)
    for name, makers in shown.items():
        assert reachable(name, shown) == reachable(name, reads)
        for maker in makers:
            assert not any(maker in reachable(other, reads) for other in makers)


def test_a_model_line_is_straight() -> None:
    stages = [stage("data", []), stage("base", []), stage("cpt", ["data", "base"])]
    places = place([*stages, stage("sft", ["cpt"])])
    assert [places[name] for name in ("cpt", "sft")] == [(1, 0), (2, 0)]


def test_a_box_wears_its_state_and_a_long_name_is_cut() -> None:
    drawn = graph([stage("a-stage-with-a-very-long-name", [], State.BLOCKED)])
    assert '<g class="stage blocked">' in drawn
    assert "a-stage-with-a-v…" in drawn
    assert "a-stage-with-a-very-long-name: blocked" in drawn


def numbers(drawn: Markup) -> list[float]:
    """Every coordinate."""
    found = re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2)="([^"]+)"', drawn)
    return [float(number) for number in found]


@given(st.lists(st.tuples(st.integers(0, 100_000), FINITE), min_size=1, max_size=20))
def test_any_line_stays_on_the_paper(points: list[tuple[float, float]]) -> None:
    drawn = lines([Series("a", points, "c0", dots=True)], "step", "loss")
    assert all(-1 <= number <= 521 for number in numbers(drawn))


@given(st.lists(st.tuples(st.integers(1, 40), LOSSES), min_size=2, max_size=20))
def test_far_apart_losses_stand_on_a_logarithmic_axis(points: list[tuple[float, float]]) -> None:
    values = [value for _, value in points]
    drawn = lines([Series("a", points, "c0", dots=True)], "step", "loss")
    assert ("log scale" in drawn) == (max(values) / min(values) >= 6)
    assert all(-1 <= number <= 521 for number in numbers(drawn))


@given(st.lists(st.tuples(FINITE, FINITE, FINITE).map(sorted), min_size=1, max_size=6))
def test_any_estimate_stays_on_the_paper(found: list[list[float]]) -> None:
    dots = [Dot(str(n), value, low, high, "c0") for n, (low, value, high) in enumerate(found)]
    assert all(-1 <= number <= 861 for number in numbers(estimates([("m", dots)], "%")))


def test_losses_that_are_no_numbers_are_not_drawn() -> None:
    held_out = [HeldOut("held", 10, [(0, math.nan), (10, math.inf)])]
    curve = Curve("cpt", "cpt", "target", 0, None, 1, [], 0, held_out, None, None, {})
    assert loss_curve(curve) == Markup()


def test_everything_in_an_element_is_escaped() -> None:
    drawn = element("text", "<b>", class_='"', stroke_width=1.25)
    assert drawn == '<text class="&#34;" stroke-width="1.2">&lt;b&gt;</text>'
