"""The page in a real browser without a network: it is drawn, and nothing is complained of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import lxml.html
import pytest

from megatron_soaes.pipeline.report.page import PAGE
from megatron_soaes.recipe.schema import Recipe
from tests.pipeline.report.conftest import find

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium, which has no network."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.fail("this test needs Chromium: sudo make test-packages")
    profile = page.parent / "browser-profile"
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={profile}", *OFFLINE, *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True)


def complaints(stderr: str) -> list[str]:
    """What the page's console has said."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("run", ["finished", "stopped"])
def test_the_page_is_built_without_complaint(run: str, request: pytest.FixtureRequest) -> None:
    recipe: Recipe = request.getfixturevalue(run)
    seen = browse(recipe.workdir / PAGE, "--dump-dom")
    assert complaints(seen.stderr) == []
    page = lxml.html.document_fromstring(seen.stdout)
    for name in ("graph", "stages", "losses", "comparison", "data", "lineage"):
        assert page.get_element_by_id(name) is not None
    assert len(find(page, "g.stage rect")) == 15
    assert find(page.get_element_by_id("losses"), "polyline.line")
    assert not find(page, "script")


def test_a_complaint_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / PAGE
    page.write_text("<!DOCTYPE html><script>console.error('no')</script>", "utf-8")
    assert complaints(browse(page, "--dump-dom").stderr)


def test_the_page_can_be_printed(finished: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    browse(finished.workdir / PAGE, f"--print-to-pdf={out}")
    assert out.read_bytes().startswith(b"%PDF")
