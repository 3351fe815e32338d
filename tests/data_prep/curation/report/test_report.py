"""The page about a finished curation: what stands on it, in which numbers, and how safely."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lxml.html
import pytest
import yaml
from lxml.html import HtmlElement

from data_prep.curation.pipeline.account import SAMPLE_CHARACTERS, SAMPLES
from data_prep.curation.report.page import MOST_SOURCES, NUMBERS, PAGE, write_report
from megatron_soaes.cli_curate import report
from megatron_soaes.recipe.data_settings import Data
from tests.data_prep.curation.report.outcomes import (
    CLUSTER_SIZES,
    HOSTILE,
    SITES,
    curated,
    empty,
    outcome,
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up curation with its report."""
    folder = curated(tmp_path_factory.mktemp("report"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(output: Path) -> HtmlElement:
    """The page as a browser would parse it."""
    return lxml.html.document_fromstring((output / PAGE).read_text("utf-8"))


@pytest.fixture(scope="module")
def numbers(output: Path) -> dict[str, Any]:
    """`report.json`."""
    read: dict[str, Any] = json.loads((output / NUMBERS).read_text("utf-8"))
    return read


def section(page: HtmlElement, name: str) -> HtmlElement:
    """A section of the page."""
    found: HtmlElement = page.get_element_by_id(name)
    return found


def words(element: HtmlElement) -> str:
    """Its text, runs of blanks as one."""
    return " ".join(element.text_content().split())


def rows(table: HtmlElement) -> list[list[str]]:
    """The cells of the rows of a table's body."""
    return [[words(cell) for cell in row] for row in table.xpath(".//tbody/tr")]


def number(cell: str) -> int:
    """A number with separators."""
    return int(cell.replace(",", ""))


def block(name: str) -> dict[str, Any]:
    """The account of a block of the made-up outcome."""
    account: dict[str, Any] = next(b for b in outcome()["blocks"] if b["name"] == name)["account"]
    return account


def total(tallies: dict[str, list[int]]) -> list[int]:
    """Documents and characters over all sources."""
    return [sum(column) for column in zip(*tallies.values(), strict=True)]


def test_the_header_has_the_totals(page: HtmlElement) -> None:
    read, kept = total(block("read")["read"]), total(block("selection")["kept"])
    assert words(page.get_element_by_id("documents-read")) == f"{read[0]:,}"
    assert words(page.get_element_by_id("documents-kept")) == f"{kept[0]:,}"
    assert words(page.get_element_by_id("tokens-made")) == "4,000"
    header = words(page.xpath("//header")[0])
    assert f"{read[1]:,} characters" in header
    assert f"{kept[1]:,} characters" in header
    assert f"{kept[0] / read[0]:.1%}" in header


def test_the_funnel_is_drawn_with_every_block_and_reason(page: HtmlElement) -> None:
    drawn = [words(text) for text in section(page, "funnel").xpath(".//svg/text")]
    for name in ("read", "clean", "copies", "near-copies", "scores", "selection", "left"):
        assert name in drawn
    for reason, documents in (("zh_symbols", 10), ("top_ngram", 23), ("near_copy", 14)):
        assert drawn[drawn.index(reason) + 1] == f"\N{MINUS SIGN}{documents} ({documents}.0%)"


def test_bars_of_reasons_step_down_to_what_the_next_block_reads(page: HtmlElement) -> None:
    bars = section(page, "funnel").xpath(".//svg/rect")
    for bar, after in itertools.pairwise(bars):
        if bar.get("class") == "gone" and after.get("class") != "gone":
            end = float(after.get("x")) + float(after.get("width"))
            assert float(bar.get("x")) == pytest.approx(end, abs=0.2)


def test_the_table_of_the_funnel_loses_nothing(page: HtmlElement) -> None:
    for body in section(page, "funnel").xpath(".//table/tbody"):
        cells = [[words(cell) for cell in row] for row in body]
        read, kept = cells[0], cells[-1]
        between = cells[1:-1]
        assert number(read[1]) == number(kept[1]) + sum(number(row[1] or "0") for row in between)
        assert number(read[3]) == number(kept[3]) + sum(number(row[3]) for row in between)


def test_characters_that_edits_added_are_told(tmp_path: Path) -> None:
    content = outcome()
    for one in content["blocks"][:2]:
        one["account"]["read"]["site00"][1] -= 1000
    content["blocks"][0]["account"]["kept"]["site00"][1] -= 1000
    page = lxml.html.document_fromstring(
        write_report(curated(tmp_path, content)).read_text("utf-8")
    )
    clean = section(page, "funnel").xpath(".//table/tbody")[1]
    edits = next(row for row in clean if "taken out by edits" in words(row))
    assert words(edits[3]) == "-934"
    assert "added more than they took out" in words(edits)


def test_the_largest_sources_have_a_row_and_the_rest_one(page: HtmlElement) -> None:
    table = section(page, "sources").xpath(".//table")[0]
    cells = rows(table)
    assert len(cells) == MOST_SOURCES + 1
    others = SITES + 2 - MOST_SOURCES
    assert cells[-1][0] == f"{others} other sources"
    assert f"the other {others} are summed in one row" in words(section(page, "sources"))
    assert cells[0][:4] == ["gazette", "30", "2", "6.7%"]
    assert cells[0][-1] == "top_ngram 23, copy 2, low_credibility 2, 1 more"
    read, kept = total(block("read")["read"]), total(block("selection")["kept"])
    wholes = {1: read[0], 2: kept[0], 4: read[1], 5: kept[1]}
    for column, whole in wholes.items():
        assert sum(number(row[column]) for row in cells) == whole


def test_lengths_and_scores_are_plotted_with_named_axes(page: HtmlElement) -> None:
    plots = section(page, "texts").xpath(".//svg")
    assert len(plots) == 2
    for plot, along in zip(plots, ("characters in a document", "score from 0 to 1"), strict=True):
        axes = [words(text) for text in plot.xpath("./text[@class='axis']")]
        assert axes[0] == "documents"
        assert axes[1].startswith(along)
    bars = [words(title) for title in plots[0].xpath(".//title")]
    for series, name in (("read", "read"), ("left", "selection")):
        for length, documents in block(name)["lengths"].items():
            edges = f"{int(length):,}\N{EN DASH}{2 * int(length):,}"
            assert f"{series}, {edges}: {documents} documents" in bars


def test_scores_are_shown_before_and_after_the_selection(page: HtmlElement) -> None:
    bars = [words(title) for title in section(page, "texts").xpath(".//svg")[1].xpath(".//title")]
    assert "scored, 0.10\N{EN DASH}0.15: 5 documents" in bars
    assert "left, 0.10\N{EN DASH}0.15: 0 documents" in bars


def test_copies_are_counted_and_the_largest_clusters_shown(page: HtmlElement) -> None:
    copies = section(page, "copies")
    assert "Exact copies: 2 documents" in words(copies)
    removed = sum(size - 1 for size in CLUSTER_SIZES)
    assert (
        f"4 clusters of documents that are nearly alike. One document of each stays; {removed}"
        in (words(copies))
    )
    bars = [words(title) for title in copies.xpath(".//title")]
    assert bars == [
        "clusters, 2: 2 clusters",
        "clusters, 3–4: 0 clusters",
        "clusters, 5–8: 1 clusters",
        "clusters, 9–16: 1 clusters",
    ]
    largest = rows(copies.xpath(".//table")[0])
    assert [row[:2] for row in largest] == [
        ["9", "00000:3"], ["5", "00000:2"], ["2", "00000:0"], ["2", "00000:1"]
    ]  # fmt: skip
    assert largest[0][2].startswith("文文")
    assert largest[1][2] == "not among the samples"


def test_masks_edits_and_skipped_lines_are_counted_by_kind(page: HtmlElement) -> None:
    masked, edits = (rows(table) for table in section(page, "edits").xpath(".//table"))
    assert [row[:2] for row in masked] == [["PHONE", "7"], ["EMAIL", "2"]]
    assert masked[0][2] == "Mobile numbers of mainland China."
    assert [row[:2] for row in edits] == [["blanks", "15"], ["share", "3"]]
    skipped = rows(section(page, "skipped").xpath(".//table")[0])
    assert [row[:2] for row in skipped] == [["blank", "7"], ["invalid_json", "2"]]


def test_the_blend_can_be_pasted_into_a_recipe(page: HtmlElement, numbers: dict[str, Any]) -> None:
    pasted = yaml.safe_load(page.get_element_by_id("recipe").text)
    data = Data(**pasted["data"])
    assert data.blends["curated"].shares() == pytest.approx({"policy": 6 / 7, "notes": 1 / 7})
    assert data.datasets["policy"].indexed == Path("/data/o'ne: two/policy_text_document")
    assert "Datasets without tokens are left out" in words(section(page, "tokens"))
    assert pasted["data"] == numbers["recipe"]


def test_every_reason_has_samples_behind_a_summary(page: HtmlElement) -> None:
    shown = section(page, "samples").xpath("./details")
    summaries = [words(details.find("summary")) for details in shown]
    assert summaries[:2] == [
        "top_ngram clean: 23 documents dropped, 20 shown",
        "zh_symbols clean: 10 documents dropped, 10 shown",
    ]
    assert len(shown[0].xpath(".//article")) == SAMPLES
    assert "makes up too much of the text" in words(shown[0].find("p"))
    longest = max(len(pre.text) for pre in section(page, "samples").xpath(".//article/pre"))
    assert longest <= SAMPLE_CHARACTERS + 1
    assert not any(details.get("open") for details in shown)


def test_a_reason_of_a_teams_own_is_said_to_be_one(page: HtmlElement) -> None:
    own = next(d for d in section(page, "samples") if "of_our_own" in d.text_content())
    assert "a block or rule of your own" in words(own.find("p"))


def test_what_a_sample_was_dropped_for_is_told(tmp_path: Path) -> None:
    content = outcome()
    samples = content["blocks"][-1]["account"]["samples"]["low_credibility"]
    samples[0]["scores"] = {"credibility": 0.1, "relevance": 0.75}
    folder = curated(tmp_path, content)
    assert "credibility 0.1, relevance 0.75" in write_report(folder).read_text("utf-8")


def test_hostile_text_is_only_text(output: Path, page: HtmlElement) -> None:
    text = (output / PAGE).read_text("utf-8")
    assert "<script" not in text
    assert "\x00" not in text
    assert not page.xpath("//script | //iframe | //img | //object | //link | //form")
    assert not [name for each in page.iter() for name in each.attrib if name.startswith("on")]
    symbols = next(d for d in section(page, "samples") if "zh_symbols" in d.text_content())
    assert symbols.xpath(".//article/p/bdi")[0].text.startswith(HOSTILE)
    assert symbols.xpath(".//article/pre")[0].text.startswith(f"{HOSTILE}\N{SYMBOL FOR NULL}")
    assert HOSTILE in words(section(page, "sources"))


@pytest.mark.parametrize("place", ["block", "reason", "score", "language", "corpus", "kind"])
def test_names_are_no_more_trusted_than_texts(tmp_path: Path, place: str) -> None:
    content = outcome()
    last = content["blocks"][-1]["account"]
    if place == "block":
        content["blocks"][-1]["name"] = HOSTILE
    elif place == "reason":
        for reasons in last["dropped"].values():
            reasons[HOSTILE] = reasons.pop("low_credibility")
        last["samples"][HOSTILE] = last["samples"].pop("low_credibility")
    elif place == "score":
        for one in content["blocks"][-2:]:
            one["account"]["scores"][HOSTILE] = one["account"]["scores"].pop("credibility")
    elif place == "language":
        last["languages"][HOSTILE] = last["languages"].pop("zh")
    elif place == "corpus":
        content["documents"][HOSTILE] = [HOSTILE]
        content["tokens"][HOSTILE] = content["tokens"].pop("policy")
        content["blend"][0]["name"] = HOSTILE
    else:
        last["masked"] = {"a": {HOSTILE: 1}}
        last["skipped"] = {HOSTILE: 1}
    text = write_report(curated(tmp_path, content)).read_text("utf-8")
    assert "&lt;script" in text
    assert "<script" not in text


def test_the_page_needs_nothing_from_outside(output: Path) -> None:
    references: list[str] = []

    class References(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            references.extend(value or "" for name, value in attrs if name in ("src", "href"))

    text = (output / PAGE).read_text("utf-8")
    References().feed(text)
    assert references
    assert all(reference.startswith("#") for reference in references)
    style = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "prefers-color-scheme: dark" in style[1]
    assert "@media print" in style[1]
    assert "default-src 'none'" in text


def test_links_lead_to_sections(page: HtmlElement) -> None:
    for link in page.xpath("//nav/a"):
        assert page.get_element_by_id(link.get("href")[1:]) is not None


def test_the_numbers_are_those_of_the_outcome(numbers: dict[str, Any]) -> None:
    content = outcome()
    read, kept = total(block("read")["read"]), total(block("selection")["kept"])
    assert numbers["totals"] == {
        "read": {"documents": read[0], "characters": read[1]},
        "kept": {"documents": kept[0], "characters": kept[1]},
        "share_of_documents": kept[0] / read[0],
        "share_of_characters": kept[1] / read[1],
        "tokens": 4000,
    }
    assert [passage["name"] for passage in numbers["funnel"]] == [
        one["name"] for one in content["blocks"]
    ]
    assert sum(reason["dropped"]["documents"] for reason in numbers["reasons"]) == read[0] - kept[0]
    assert len(numbers["sources"]) == SITES + 2
    assert sum(source["kept"]["characters"] for source in numbers["sources"]) == kept[1]
    for source in numbers["sources"]:
        gone = sum(source["reasons"].values())
        assert source["read"]["documents"] == source["kept"]["documents"] + gone
    assert numbers["blend"] == content["blend"]
    assert numbers["tokens"] == content["tokens"]
    assert numbers["clusters"]["clusters_by_size"] == {"2": 2, "5": 1, "9": 1}


def test_the_same_outcome_gives_the_same_bytes(output: Path, tmp_path: Path) -> None:
    again = curated(tmp_path)
    write_report(again)
    for name in (PAGE, NUMBERS):
        assert (again / name).read_bytes() == (output / name).read_bytes()


def test_an_empty_curation_has_a_page_too(tmp_path: Path) -> None:
    folder = curated(tmp_path, empty())
    page = lxml.html.document_fromstring(write_report(folder).read_text("utf-8"))
    assert words(page.get_element_by_id("documents-read")) == "0"
    assert "There are no documents." in words(section(page, "texts"))
    assert "Exact copies were not looked for." in words(section(page, "copies"))
    assert "Near copies were not looked for." in words(section(page, "copies"))
    assert "No tokens were made" in words(section(page, "tokens"))
    assert "Nothing was dropped." in words(section(page, "samples"))


def test_the_command_says_where_the_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = curated(tmp_path)
    report(folder)
    said = capsys.readouterr().out
    assert str(folder / PAGE) in said
    assert str(folder / NUMBERS) in said
    assert not list(folder.glob(".*tmp*"))
