"""The `soaes` command as a user types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from megatron_soaes.cli import app
from megatron_soaes.errors import ExitCode
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from tests.checkpoint.tiny import Case, edit_config, make_model

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def soaes(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_soaes", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from megatron_soaes.cli import app; app(['--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0


def test_doctor_names_what_is_missing_and_what_it_would_give() -> None:
    result = soaes("doctor")
    assert result.returncode == 0
    for component in ("torch", "megatron-core", "transformer-engine", "apex", "Slurm"):
        assert component in result.stdout


def test_import_and_export_are_the_identity(tmp_path: Path) -> None:
    hf = make_model(tmp_path / "hf", Case(family="qwen2", tied=True))
    imported = soaes("import", hf, tmp_path / "megatron")
    assert imported.returncode == 0, imported.stderr
    assert "logits" in imported.stdout
    exported = soaes("export", "hf", tmp_path / "megatron", tmp_path / "back")
    assert exported.returncode == 0, exported.stderr
    before = load_file(hf / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_bad_model_is_refused_with_code_2_and_nothing_is_left(tmp_path: Path) -> None:
    hf = make_model(tmp_path / "hf")
    edit_config(hf, intermediate_size=64)
    result = soaes("import", hf, tmp_path / "megatron")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "config.json" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_recipe_show_and_check(tmp_path: Path) -> None:
    make_model(tmp_path / "hf")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{version: 1, name: r, workdir: w, models: {target: {source: hf}}, "
        "stages: [{name: hf, kind: export}]}"
    )
    shown = soaes("recipe", "show", recipe, "seed=5")
    assert "seed: 5" in shown.stdout
    checked = soaes("recipe", "check", recipe)
    assert "no rule is broken" in checked.stdout
    broken = soaes("recipe", "check", recipe, "models.target.layout.tensor_parallel=3")
    assert broken.returncode == 2
    assert "models.target.layout.tensor_parallel" in broken.stderr


def test_the_recipe_in_the_readme_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    recipe = tmp_path / "my.yaml"
    recipe.write_text(block[1], encoding="utf-8")
    qwen = REPOSITORY / "examples/shapes/qwen2.5-7b-instruct.json"
    shapes = check(load_recipe(recipe, [f"models.target.config={qwen}", "cpt.lr=2e-5"]))
    assert shapes["target"].parameters == 7_615_616_512


def test_a_preflight_hides_the_gpus_only_while_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is submitted afterwards inherits this environment."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    large = REPOSITORY / "examples/soaes_v2_72b/recipe.yaml"
    wrong = ["--files-elsewhere", "cpt.layout.tensor_parallel=3"]
    done = CliRunner().invoke(app, ["preflight", str(large), *wrong])
    assert done.exit_code == ExitCode.BAD_INPUT
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
