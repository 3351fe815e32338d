"""The recipes that people copy keep every rule, on any machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("example", "target", "draft"),
    [
        ("soaes_v2_7b", 7_615_616_512, 494_032_768),
        ("soaes_v2_72b", 72_706_203_648, 7_615_616_512),
    ],
)
def test_an_example_has_models_of_the_published_sizes(
    example: str, target: int, draft: int
) -> None:
    shapes = check(load_recipe(EXAMPLES / example / "recipe.yaml"))
    assert (shapes["target"].parameters, shapes["draft"].parameters) == (target, draft)


def test_the_command_for_256_gpus_in_the_readme_uses_them_all() -> None:
    readme = (EXAMPLES / "soaes_v2_72b/README.md").read_text(encoding="utf-8")
    command = re.search(r"soaes recipe check \S+ (cluster\.nodes=.*?)\n\n", readme, re.DOTALL)
    assert command is not None
    overrides = shlex.split(command[1].replace("\\\n", " "))
    recipe = load_recipe(EXAMPLES / "soaes_v2_72b/recipe.yaml", overrides)
    check(recipe)
    assert recipe.cluster is not None
    assert recipe.cluster.gpus == recipe.models.target.layout.processes == 256
