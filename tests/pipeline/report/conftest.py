"""Runs to report on, played once for all tests that only read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lxml.html
import pytest
from lxml.html import HtmlElement

from megatron_soaes.errors import ExitCode
from megatron_soaes.pipeline.report.page import NUMBERS, write_report
from megatron_soaes.recipe.schema import Recipe
from tests.pipeline.report.played import play, project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of which every stage is done, with its report."""
    recipe = project(tmp_path_factory.mktemp("finished"))
    assert play(recipe) == ExitCode.OK
    write_report(recipe)
    return recipe


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run that was stopped in its second training stage, with its report."""
    recipe = project(tmp_path_factory.mktemp("stopped"))
    assert play(recipe, until="broad", left_behind=12) == ExitCode.STOPPED
    write_report(recipe)
    return recipe


@pytest.fixture(scope="session")
def page(finished: Recipe) -> HtmlElement:
    """The finished run's page as a browser would parse it."""
    return parse(finished.workdir)


@pytest.fixture(scope="session")
def numbers(finished: Recipe) -> dict[str, Any]:
    """The finished run's `report.json`."""
    read: dict[str, Any] = json.loads((finished.workdir / NUMBERS).read_text("utf-8"))
    return read


def parse(workdir: Path) -> HtmlElement:
    """A page."""
    return lxml.html.document_fromstring((workdir / "report.html").read_text("utf-8"))


def find(element: HtmlElement, path: str) -> list[HtmlElement]:
    """What lies below an element: `path` is `tag.class`, or several with blanks between."""
    xpath = "."
    for step in path.split():
        tag, _, css = step.partition(".")
        xpath += f"//{tag or '*'}"
        xpath += f"[contains(concat(' ', @class, ' '), ' {css} ')]" if css else ""
    found: list[HtmlElement] = element.xpath(xpath)
    return found


def words(element: HtmlElement) -> str:
    """The text of an element, runs of blanks as one."""
    return " ".join(element.text_content().split())
