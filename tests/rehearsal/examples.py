"""The example recipes for clusters, rehearsed whole (`make test-rehearse`).

Some minutes each, so outside the quick suite.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.errors import ExitCode
from megatron_soaes.recipe.graph import nodes
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.rehearsal.run import rehearse

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.timeout(3600)


@pytest.mark.parametrize("name", ["soaes_v2_72b", "soaes_v2_7b"])
def test_every_stage_of_an_example_runs_to_its_end(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(EXAMPLES / name / "recipe.yaml")
    report = rehearse(recipe, tmp_path / "out")
    print(report.text())
    assert report.exit_code == ExitCode.OK
    assert [one.name for one in report.stages] == nodes(recipe)
    assert all(one.seconds is not None for one in report.stages)
