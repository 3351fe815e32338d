"""What stands on the page of a run, and that a stranger's text cannot do anything there."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lxml.html import HtmlElement

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.lock import only_run_of
from megatron_soaes.pipeline.report.page import PAGE, duration, write_report
from megatron_soaes.recipe.schema import Recipe
from tests.pipeline.report.conftest import find, parse, words
from tests.pipeline.report.played import CHINESE, HOSTILE, play, project

SECTIONS = ("graph", "stages", "losses", "comparison", "acceptance", "speed", "data", "lineage")


def section(page: HtmlElement, name: str) -> HtmlElement:
    found: HtmlElement = page.get_element_by_id(name)
    return found


def test_every_section_of_a_finished_run_has_its_figures(page: HtmlElement) -> None:
    drawings = {name: len(find(section(page, name), "svg")) for name in SECTIONS}
    assert drawings == {
        "graph": 1, "stages": 0, "losses": 5, "comparison": 1, "acceptance": 1, "speed": 2,
        "data": 2, "lineage": 0,
    }  # fmt: skip
    assert words(page.get_element_by_id("summary")) == "All 15 stages are done."


def test_the_graph_has_a_box_for_each_stage_and_lines_between(page: HtmlElement) -> None:
    boxes = find(section(page, "graph"), "g.stage")
    assert len(boxes) == 15
    assert {box.get("class") for box in boxes} == {"stage done"}
    lines = {words(line) for line in find(section(page, "graph"), "path.edge")}
    assert {"import-target → cpt", "cpt → broad", "small-hf → pair"} <= lines
    assert "import-target → exams" not in lines, "cpt, broad and narrow imply it"


def test_gates_are_told_with_what_was_measured(page: HtmlElement) -> None:
    rows = {words(find(row, "td")[0]): words(row) for row in find(page, "tr.stage-row")}
    assert "validation.held.loss <= 3: 3 holds" in rows["cpt"]
    assert "trained_tokens >= 100: 640 holds" in rows["cpt"]
    assert "preprocess-news, preprocess-held, import-target" in rows["cpt"]


def test_the_best_checkpoint_is_ringed(page: HtmlElement) -> None:
    rings = find(section(page, "losses"), "circle.ring title")
    assert [words(ring) for ring in rings] == ["best by held: step 20"]
    assert "best by held at step 20 (ringed): 2.5000" in words(section(page, "losses"))


def test_every_measure_has_its_interval_its_items_and_its_profile(
    page: HtmlElement, numbers: dict[str, Any]
) -> None:
    rows = find(section(page, "comparison"), "tr.measure")
    interval = re.compile(r"\d\.\d\d \[\d+\.\d\d, \d+\.\d\d\]")
    for row in rows:
        values = find(row, "td.n")[1:]
        assert all(interval.search(words(value)) for value in values), words(row)
        assert words(find(row, "td.n")[0]) in ("60", "30")
    suites = {words(find(row, "td")[0]) for row in rows}
    assert suites == {"exam", f"exam[{CHINESE}]", f"exam[{HOSTILE}]"}
    profiles = [words(meaning) for meaning in find(section(page, "comparison"), "dl.code dd")]
    assert profiles == [HOSTILE, CHINESE]
    accuracy = numbers["evaluations"][0]["rows"][0]["values"][0]["estimate"]
    shown = f"{accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}]"
    assert shown in words(rows[0])


def test_the_curriculum_stands_beside_its_control(page: HtmlElement) -> None:
    text = words(section(page, "comparison"))
    assert "narrow against its single-stage control control" in text
    assert "better" in text.partition("narrow against")[2]


def test_speed_is_told_with_its_interval(page: HtmlElement) -> None:
    text = words(section(page, "speed"))
    assert "1.62 [1.52, 1.77]" in text
    assert "Go. draft length 3 is the fastest." in text
    assert "1.62×" in words(find(page, "dl.totals")[0])


def test_hashes_are_shortened_and_whole_under_the_mouse(
    page: HtmlElement, numbers: dict[str, Any]
) -> None:
    shown = find(section(page, "lineage"), "td code")
    assert all(code.get("title").startswith(words(code)) for code in shown)
    whole = {file["sha256"] for stage in numbers["stages"] for file in stage["lineage"]["inputs"]}
    assert whole <= {code.get("title") for code in shown}
    assert all(len(code.get("title")) == 64 for code in shown)


def test_a_stopped_run_says_so_and_when_the_page_was_written(stopped: Recipe) -> None:
    page = parse(stopped.workdir)
    summary = words(page.get_element_by_id("summary"))
    assert summary == "6 of 15 stages are done. interrupted broad, step 12."
    assert find(page.get_element_by_id("unfinished"), "time")
    assert [words(h) for h in find(section(page, "losses"), ".curve h3")] == ["cpt", "broad"]
    for name in ("comparison", "acceptance", "speed"):
        assert find(section(page, name), "p.empty"), name
    states = {box.get("class") for box in find(page, "g.stage")}
    assert states == {"stage done", "stage interrupted", "stage waiting"}


def test_a_stage_at_work_is_told_with_its_step(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    play(recipe, until="cpt", left_behind=12)
    with only_run_of(recipe.workdir, "cpt"):
        write_report(recipe)
    summary = words(parse(recipe.workdir).get_element_by_id("summary"))
    assert "running cpt, step 12 of 40, about 0:00:14 left" in summary


def test_before_the_first_run_everything_waits(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    page = parse(write_report(recipe).parent)
    assert words(page.get_element_by_id("summary")) == "0 of 15 stages are done."
    assert sorted(file.name for file in recipe.workdir.iterdir()) == ["report.html", "report.json"]


def test_sections_of_stages_that_the_recipe_has_not_are_left_out(tmp_path: Path) -> None:
    only_cpt = "version: 1\nname: one\nworkdir: work\nmodels: {target: {source: model}}\n"
    page = parse(write_report(project(tmp_path, only_cpt)).parent)
    assert [one.get("id") for one in find(page, "section")] == [
        "graph", "stages", "losses", "comparison", "data", "lineage",
    ]  # fmt: skip


def test_text_of_strangers_stays_text(finished: Recipe) -> None:
    text = (finished.workdir / PAGE).read_text("utf-8")
    tags: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)

    Tags().feed(text)
    assert "script" not in tags
    assert text.count("&lt;script") > 2


def test_the_page_needs_no_other_file(page: HtmlElement) -> None:
    assert not any(find(page, tag) for tag in ("link", "script", "img", "iframe", "object", "base"))
    references = [*page.xpath("//@href"), *page.xpath("//@src"), *page.xpath("//@style")]
    assert all(reference.startswith("#") for reference in references)
    assert not re.search(r"url\(|@import", "".join(page.xpath("//style/text()")))
    ids = page.xpath("//@id")
    assert {reference[1:] for reference in references} <= set(ids)
    assert len(ids) == len(set(ids))


def test_a_damaged_manifest_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    recipe = project(tmp_path)
    damaged = recipe.workdir / "cpt" / "manifest.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{", "utf-8")
    with pytest.raises(UserError, match="a damaged manifest"):
        write_report(recipe)
    assert [file.name for file in recipe.workdir.iterdir()] == ["cpt"]


def test_the_report_needs_no_torch(finished: Recipe) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from megatron_soaes.recipe.load import load_recipe; "
        "from megatron_soaes.pipeline.report.page import write_report; "
        "write_report(load_recipe(Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    file = finished.workdir.parent / "recipe.yaml"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, capture_output=True)


def test_a_duration_is_hours_minutes_and_seconds() -> None:
    assert duration(3725.4) == "1:02:05"
