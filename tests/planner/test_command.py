"""`soaes plan`, as a user sees it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.planner.command import Asked, cluster_of, counts_of, plan
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import RecipeErrors

EXAMPLES = Path(__file__).parents[2] / "examples"
LARGE = EXAMPLES / "soaes_v2_72b/recipe.yaml"
SMALL = EXAMPLES / "soaes_v2_7b/recipe.yaml"
GUIDE = EXAMPLES.parent / "docs/guides/plan-a-cluster-run.md"


def said(asked: Asked, *overrides: str, recipe: Path = LARGE) -> str:
    out = StringIO()
    plan(load_recipe(recipe, overrides), asked, Console(file=out))
    return out.getvalue()


@pytest.mark.parametrize("recipe", [LARGE, SMALL], ids=["72b", "7b"])
def test_the_examples_fit_their_clusters(recipe: Path) -> None:
    told = said(Asked(), recipe=recipe)
    assert "Every stage fits on h100-80g. Next: soaes preflight" in told
    assert "Its steps depend on the data." in told


def test_what_does_not_fit_is_refused_with_its_stage_and_rank() -> None:
    without = ["cpt.recompute.granularity=none", "cpt.micro_batch_size=4"]
    done = CliRunner().invoke(app, ["plan", str(LARGE), *without])
    assert done.exit_code == ExitCode.BAD_INPUT
    refused = [line for line in done.output.splitlines() if line.startswith("does not fit: ")]
    assert refused[0].startswith("does not fit: stage cpt, rank 0 (pipeline stage 0): found ")
    assert "of 79 GiB: weights 4.4, gradients 8.8, optimizer 13.1, activations " in refused[0]
    assert "Every stage fits" not in done.output
    (shown,) = (line for line in GUIDE.read_text().splitlines() if "does not fit: " in line)
    assert refused[0].startswith(shown.strip().removesuffix(" ..."))


def test_samples_make_steps_of_epochs() -> None:
    told = said(Asked(samples=("sft-broad=128000",)))
    (row,) = (line for line in told.splitlines() if "sft-broad" in line and "1,000" in line)
    assert "1.05 B" in row, "128,000 samples of 8,192 tokens"


def test_other_gpus_take_the_place_of_the_cluster() -> None:
    cluster = cluster_of(load_recipe(LARGE), Asked(gpus=256, gpu="h800-80g"))
    assert (cluster.gpu, cluster.nodes, cluster.gpus_per_node) == ("h800-80g", 32, 8)
    assert "time on h800-80g" in said(Asked(gpu="h800-80g"))
    alone = load_recipe(LARGE, ["cluster=null"])
    with pytest.raises(UserError, match="give --gpu and --gpus"):
        cluster_of(alone, Asked(gpus=8))
    assert cluster_of(alone, Asked(gpus=4, gpu="h100-80g")).gpus_per_node == 4
    with pytest.raises(UserError, match=r"--gpus 60.*a multiple of 8.*Say 56 or 64"):
        cluster_of(alone, Asked(gpus=60, gpu="h100-80g"))


def test_layouts_are_ranked_and_the_others_explained() -> None:
    told = said(Asked(layouts="draft-cpt"))
    ranked, refused = told.split("Layouts that cannot run")
    assert "The fastest of " in ranked
    assert "TP 2, SP, DP 32" in ranked
    assert "expected a divisor of the layers, 28" in refused


def test_fewer_gpus_than_the_recipe_has_are_still_ranked() -> None:
    out = StringIO()
    with pytest.raises(RecipeErrors, match="found 64 processes; expected at most 32, the GPUs"):
        plan(load_recipe(LARGE), Asked(gpus=32, layouts="cpt"), Console(file=out))
    assert "The fastest of " in out.getvalue()
    assert "GiB on each GPU" not in out.getvalue()


def test_a_ranking_does_not_hide_what_else_is_wrong() -> None:
    out = StringIO()
    with pytest.raises(RecipeErrors, match="no FP8 on a100-80g"):
        plan(load_recipe(LARGE), Asked(gpu="a100-80g", layouts="cpt"), Console(file=out))
    assert out.getvalue() == ""


def test_a_stage_that_is_not_there_is_told_before_the_tables() -> None:
    out = StringIO()
    with pytest.raises(UserError, match=r"no such stage.*Did you mean 'cpt'"):
        plan(load_recipe(LARGE), Asked(layouts="ctp"), Console(file=out))
    assert out.getvalue() == ""


@pytest.mark.parametrize("text", ["sft", "sft=", "sft=0", "sft=1.5", "sft=-1"])
def test_samples_are_a_name_and_a_number(text: str) -> None:
    with pytest.raises(UserError, match="STAGE=N"):
        counts_of([text])


def test_the_disk_may_be_said() -> None:
    assert "Saving at 40 GB/s" in said(Asked(disk_gb_s=40.0))
