"""Figures: what is drawn is in proportion, on the drawing, and named."""

from __future__ import annotations

import lxml.etree
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.report.figures import (
    MOST_REASONS,
    PLOT_END,
    PLOT_START,
    WIDTH,
    Series,
    funnel,
    histogram,
    percent,
    short_number,
)
from data_prep.curation.report.summary import Amount, Loss, Passage

COUNTS = st.integers(0, 10**12)


def passage(name: str, losses: list[int], kept: int) -> Passage:
    """A block that drops so many documents for reasons with made-up names."""
    gone = [Loss(f"reason{n}", "", Amount(count, count)) for n, count in enumerate(losses)]
    return Passage(name, Amount(sum(losses) + kept), Amount(kept), gone)


def parsed(figure: str) -> lxml.etree._Element:
    """The figure as XML, which SVG has to be."""
    return lxml.etree.fromstring(figure)


@given(losses=st.lists(COUNTS.filter(bool), max_size=30), kept=COUNTS)
def test_bars_of_the_funnel_stay_in_the_plot_and_add_up(losses: list[int], kept: int) -> None:
    svg = parsed(funnel([passage("clean", sorted(losses, reverse=True), kept)]))
    bars = svg.xpath(".//rect")
    for bar in bars:
        start, width = float(bar.get("x")), float(bar.get("width"))
        assert start >= PLOT_START - 0.1
        assert start + width <= PLOT_END + 1.1
    assert len(bars) <= MOST_REASONS + 3
    said = [text.text for text in svg.xpath(".//text")]
    assert f"{sum(losses) + kept:,} documents in" in said
    gone = [int(text.split(" ")[0][1:].replace(",", "")) for text in said if text[0] == "\u2212"]
    assert sum(gone) == sum(losses)


@given(values=st.lists(COUNTS, min_size=1, max_size=40))
def test_bars_of_a_histogram_are_in_proportion(values: list[int]) -> None:
    labels = [str(n) for n in range(len(values))]
    svg = parsed(histogram([Series("one", "kept", values)], labels, "x", "documents"))
    heights = [float(bar.get("height")) for bar in svg.xpath(".//rect")]
    assert len(heights) == len(values)
    tallest, most = max(heights), max(values)
    for value, height in zip(values, heights, strict=True):
        assert (height > 0) == (value > 0)
        if most:
            assert height == pytest.approx(max(tallest * value / most, 1.5 * bool(value)), abs=0.2)
    assert all(float(text.get("x")) < WIDTH for text in svg.xpath(".//text"))


def test_two_series_have_a_legend_and_edges_name_the_bars() -> None:
    series = [Series("read", "ghost", [3, 1]), Series("left", "kept", [2, 0])]
    svg = parsed(histogram(series, ["1", "2", "4"], "characters", "documents", at_edges=True))
    titles = [title.text for title in svg.xpath(".//title")]
    assert titles[:2] == ["read, 1–2: 3 documents", "read, 2–4: 1 documents"]
    assert titles[-2:] == ["read", "left"]


def test_names_are_escaped_and_long_ones_shortened() -> None:
    text = funnel([passage("<b>" * 40, [1], 1)])
    assert "<b>" not in text
    assert "&lt;b&gt;" * 40 in text
    label = parsed(text).xpath(".//text[@class='strong']")[0].text
    assert label.startswith("<b><b>")
    assert label.endswith("…")


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 10, "0.0%"),
        (1, 10**6, "<0.1%"),
        (1, 3, "33.3%"),
        (10**6 - 1, 10**6, ">99.9%"),
        (7, 7, "100.0%"),
        (0, 0, "–"),
    ],
)
def test_a_share_is_not_rounded_to_nothing_or_all(part: int, whole: int, words: str) -> None:
    assert percent(part, whole) == words


def test_numbers_of_a_scale_are_short() -> None:
    numbers = [512, 8192, 65_536, 1_048_576]
    assert [short_number(number) for number in numbers] == ["512", "8,192", "65.5k", "1.05M"]
