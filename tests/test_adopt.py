"""Going on with a run of Megatron-LM: the recipe that is written, and that it trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from megatron_soaes.checkpoint.directory import HF_FILES, latest_iteration
from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode, UserError
from megatron_soaes.pipeline.adopt import Adoption, adopt
from megatron_soaes.pipeline.manifest import read_manifest
from megatron_soaes.pipeline.run import run
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from tests.checkpoint.megatron_lm import edit_arguments, make_runs
from tests.training.material import write_dataset

OTHER_LAYOUT = ["models.target.layout.tensor_parallel=1", "models.target.layout.data_parallel=2"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two tensor-parallel ranks that is to go on with 60 steps, and its data."""
    folder = make_runs(tmp_path_factory.mktemp("material"), "llama")
    documents = [[*range(3, 3 + length), 0] for length in range(5, 60)]
    for name in ("domain_text_document", "other/domain_text_document"):
        (folder / name).parent.mkdir(exist_ok=True)
        write_dataset(folder / name, documents)
    return folder


@pytest.fixture
def source(material: Path, tmp_path: Path) -> Path:
    """A run whose arguments a test may change."""
    return Path(shutil.copytree(material / "llama/run", tmp_path / "run"))


def adopted(material: Path, out: Path, *overrides: str, run: Path | None = None) -> Adoption:
    data = [material / "domain_text_document"]
    return adopt(run or material / "llama/run", data, material / "tokenizer", out, overrides)


def stage_of(out: Path) -> dict[str, Any]:
    (stage,) = yaml.safe_load(out.read_text())["stages"]
    return dict(stage)


def test_a_recipe_that_goes_on_where_the_run_stood(material: Path, tmp_path: Path) -> None:
    adoption = adopted(material, tmp_path / "soe-7b.yaml")
    assert (adoption.iteration, adoption.steps) == (40, 60)
    recipe = load_recipe(tmp_path / "soe-7b.yaml")
    assert check(recipe)["target"].rope_theta == 500000
    target = recipe.models.target
    assert target.weights == material / "llama/run/iter_0000040"
    assert (target.layout.tensor_parallel, target.layout.data_parallel) == (2, 1)
    (stage,) = recipe.stages
    assert stage.model_dump(
        include={"sequence_length", "micro_batch_size", "global_batch_size"}
    ) == {
        "sequence_length": 32,
        "micro_batch_size": 1,
        "global_batch_size": 4,
    }
    assert stage.model_dump()["recompute"]["modules"] == ["core_attn", "layernorm"]
    assert recipe.seed == 42


def test_the_learning_rate_is_the_one_the_run_had_reached(material: Path, tmp_path: Path) -> None:
    """A third of the way down a cosine from 1e-3 to 1e-4."""
    adopted(material, tmp_path / "r.yaml")
    optimizer = stage_of(tmp_path / "r.yaml")["optimizer"]
    assert optimizer["lr"] == pytest.approx(1e-4 + 9e-4 * 0.75)
    assert optimizer["min_lr"] == 1e-4


def test_what_differs_heads_the_recipe(material: Path, tmp_path: Path) -> None:
    adoption = adopted(material, tmp_path / "r.yaml")
    text = (tmp_path / "r.yaml").read_text()
    assert all(f"# - {difference}\n" in text for difference in adoption.differences)
    told = " ".join(adoption.differences)
    for part in ("moments", "new shuffled order", "padding", "hidden_dropout was 0.1", "cosine"):
        assert part in told
    assert "attention_dropout" not in told


def test_the_recipe_trains_at_another_layout(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.yaml"
    adopted(material, out, *OTHER_LAYOUT, "continue.steps=2")
    assert run(load_recipe(out)) == ExitCode.OK
    stage = tmp_path / "runs/r/continue"
    manifest = read_manifest(stage)
    assert manifest is not None
    assert (manifest.processes, manifest.metrics["iteration"]) == (2, 2)
    assert manifest.metrics["skipped_steps"] == 0
    assert latest_iteration(stage / "checkpoints") == 2
    config = json.loads((stage / "checkpoints" / HF_FILES / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 8.0
    imported = read_manifest(tmp_path / "runs/r/import-target")
    assert imported is not None
    assert imported.inputs["weights"]["path"] == str(material / "llama/run/iter_0000040")
    assert imported.metrics["logit_error"] <= 1e-4


def test_a_config_json_beside_the_tokenizer_is_used(material: Path, tmp_path: Path) -> None:
    adopted(material, tmp_path / "r.yaml")
    base = Path(shutil.copytree(material / "tokenizer", tmp_path / "base"))
    (tmp_path / "r.config.json").rename(base / "config.json")
    (tmp_path / "r.yaml").unlink()
    data = [material / "domain_text_document"]
    adopt(material / "llama/run", data, base, tmp_path / "r.yaml")
    assert not (tmp_path / "r.config.json").exists()
    assert load_recipe(tmp_path / "r.yaml").models.target.config is None


def test_datasets_are_named_after_their_files(material: Path, tmp_path: Path) -> None:
    data = [material / "domain_text_document", material / "other/domain_text_document"]
    adopt(material / "llama/run", data, material / "tokenizer", tmp_path / "7b.v1.yaml")
    recipe = load_recipe(tmp_path / "7b.v1.yaml")
    assert recipe.name == "data-7b-v1"
    assert list(recipe.data.datasets) == ["domain_text_document", "domain_text_document-2"]
    assert recipe.data.blends["mixture"].shares() == {
        "domain_text_document": 0.5,
        "domain_text_document-2": 0.5,
    }


def test_warm_up_stable_decay_keeps_its_decay(material: Path, source: Path, tmp_path: Path) -> None:
    edit_arguments(
        source, lr_decay_style="WSD", lr_wsd_decay_iters=20, lr_wsd_decay_style="minus_sqrt"
    )
    adopted(material, tmp_path / "r.yaml", run=source)
    schedule = stage_of(tmp_path / "r.yaml")["schedule"]
    assert schedule == {
        "shape": "wsd",
        "decay_shape": "minus_sqrt",
        "warmup_steps": 0,
        "decay_steps": 20,
    }
    adopted(material, tmp_path / "short.yaml", "continue.steps=10", run=source)
    assert stage_of(tmp_path / "short.yaml")["schedule"]["decay_steps"] == 10


def test_a_constant_rate_and_full_recomputation(
    material: Path, source: Path, tmp_path: Path
) -> None:
    edit_arguments(source, lr_decay_style="constant", recompute_granularity="full", fp16=True)
    adoption = adopted(material, tmp_path / "r.yaml", run=source)
    stage = stage_of(tmp_path / "r.yaml")
    assert stage["schedule"]["shape"] == "constant"
    assert "min_lr" not in stage["optimizer"]
    assert stage["recompute"] == {"granularity": "full"}
    assert stage["precision"] == {"dtype": "bf16"}
    assert "The run was in fp16; here it is in bf16." in adoption.differences


def test_steps_may_be_counted_in_samples(material: Path, source: Path, tmp_path: Path) -> None:
    edit_arguments(source, train_iters=None, train_samples=200)
    assert adopted(material, tmp_path / "r.yaml", run=source).steps == 10


def test_a_finished_run_needs_steps(material: Path, source: Path, tmp_path: Path) -> None:
    edit_arguments(source, train_iters=40)
    with pytest.raises(UserError, match=r"stages\.continue\.steps: found nothing"):
        adopted(material, tmp_path / "r.yaml", run=source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert adopted(material, tmp_path / "r.yaml", "continue.steps=7", run=source).steps == 7


def test_a_recipe_that_breaks_a_rule_is_not_left(material: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"models\.target\.layout\.tensor_parallel: found 3"):
        adopted(material, tmp_path / "r.yaml", "models.target.layout.tensor_parallel=3")
    assert list(tmp_path.iterdir()) == []


def test_missing_arguments_and_data_are_named(material: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.idx: found no such file"):
        adopt(source, [tmp_path / "absent"], material / "tokenizer", tmp_path / "r.yaml")
    edit_arguments(source, adam_beta2=None)
    with pytest.raises(UserError, match="args: adam_beta2: found nothing"):
        adopted(material, tmp_path / "r.yaml", run=source)


@pytest.mark.parametrize("name", ["r.yaml", "r.config.json"])
def test_nothing_is_written_over(material: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="something already there"):
        adopted(material, tmp_path / "r.yaml")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_the_commands(material: Path, tmp_path: Path) -> None:
    command = ["adopt", material / "llama/run", "--tokenizer", material / "tokenizer"]
    command += ["--data", material / "domain_text_document", "--out", tmp_path / "r.yaml"]
    result = CliRunner().invoke(app, [*map(str, command), *OTHER_LAYOUT])
    assert result.exit_code == 0, result.output
    assert f"iteration 40, 60 steps to go -> {tmp_path / 'r.yaml'}" in result.output
    assert load_recipe(tmp_path / "r.yaml").models.target.layout.data_parallel == 2
    command = ["import", material / "llama/run", tmp_path / "out"]
    command += ["--tokenizer", material / "tokenizer"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    assert "left behind: optimizer state" in result.output
    assert "parity: all 4 layers" in result.output
