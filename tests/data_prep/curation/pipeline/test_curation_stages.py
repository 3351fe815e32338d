"""The stages of a curation: what they are made of, and how they stand in others' pipelines."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from data_prep.curation.boilerplate import Boilerplate
from data_prep.curation.language import Language, LanguageRule
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.mask import MaskPersonalData
from data_prep.curation.pipeline.account import total_account
from data_prep.curation.pipeline.blocks import Clean, Cleaning
from data_prep.curation.pipeline.executors import run_stages, slurm_executor
from data_prep.curation.pipeline.plan import Plan, make_plan
from data_prep.curation.pipeline.recipe import load_curation
from data_prep.curation.pipeline.stages import plan_stages
from data_prep.curation.pipeline.steps import AfterStage
from data_prep.curation.quality_zh import QualityZh
from data_prep.curation.script_policy import ScriptPolicy
from megatron_soaes.errors import UserError
from tests.data_prep.curation.pipeline.corpora import prose, write_lines

EXAMPLE = Path(__file__).parents[4] / "examples/curation/curation.yaml"


def plan(folder: Path, more: str = "") -> Plan:
    """A plan over three files."""
    for name in "abc":
        write_lines(folder / f"{name}.jsonl", [{"text": prose(random.Random(name))}])
    recipe = "output: out\ncorpora: {all: {input: ['*.jsonl']}}\n" + more
    (folder / "curation.yaml").write_text(recipe, encoding="utf-8")
    return make_plan(load_curation(folder / "curation.yaml"))


def test_the_example_is_a_recipe() -> None:
    recipe = load_curation(EXAMPLE)
    assert recipe.output == EXAMPLE.parent / "curated"
    assert recipe.corpora["reports"].text_key == "content"
    assert recipe.slurm is not None


def test_every_stage_waits_for_all_tasks_of_the_one_before(tmp_path: Path) -> None:
    stages = plan_stages(plan(tmp_path))
    names = ["clean", "copies", "unique", "candidates", "gather", "near-copies"]
    assert [stage.name for stage in stages] == [*names, "documents", "outcome"]
    for before, stage in pairwise(stages):
        gate = stage.steps[0]
        assert isinstance(gate, AfterStage)
        assert (gate.stage, gate.tasks) == (before.name, before.tasks)


def test_what_the_recipe_switches_off_is_no_stage(tmp_path: Path) -> None:
    made = plan(tmp_path, "exact_copies: null\nnear_copies: null\n")
    stages = [stage.name for stage in plan_stages(made)]
    assert stages == ["clean", "unique", "documents", "outcome"]
    run_stages(made, "local", 1)
    assert len(list((tmp_path / "out/documents").iterdir())) == 3


def test_a_stage_does_not_start_on_half_of_the_one_before(tmp_path: Path) -> None:
    marks = tmp_path / "completions"
    marks.mkdir()
    (marks / "00001").touch()
    with pytest.raises(UserError, match=r"2 of 3 tasks not done \(the first: 0\)"):
        AfterStage("clean", tmp_path, 3).run()


def test_on_slurm_a_stage_is_one_array_whatever_its_tasks(tmp_path: Path) -> None:
    activate = tmp_path / "activate"
    activate.touch()
    slurm = f"slurm: {{partition: cpu, account: lab, max_tasks: 2, activate: {activate}}}\n"
    made = plan(tmp_path, slurm)
    executor = slurm_executor(made, plan_stages(made)[0], 8, None)
    assert executor.tasks == 3
    assert executor.tasks_per_job == 2
    script = executor.get_launch_file_contents(executor.get_sbatch_args(2), "run")
    assert "#SBATCH --array=0-1%3" in script
    assert "#SBATCH --account=lab" in script
    assert "--qos" not in script


def test_slurm_needs_its_section_and_an_environment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Add a slurm section"):
        run_stages(plan(tmp_path / "a"), "slurm", 1)
    with pytest.raises(UserError, match=r"slurm\.activate: found no file /nowhere"):
        run_stages(
            plan(tmp_path / "b", "slurm: {partition: cpu, activate: /nowhere}\n"), "slurm", 1
        )


def test_our_blocks_stand_in_a_pipeline_of_datatroves(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": prose(random.Random(n))} for n in range(4)]
    write_lines(tmp_path / "in/raw.jsonl", [*rows, {"id": "short", "text": "无"}])
    rules = {Language.ZH: [QualityZh()], Language.EN: []}
    cleaning = Cleaning(
        Normalise(), LanguageRule(), Boilerplate(), ScriptPolicy(), rules, MaskPersonalData()
    )
    pipeline = [
        JsonlReader(str(tmp_path / "in")),
        LambdaFilter(lambda document: document.id != "2"),
        Clean(cleaning, tmp_path / "account"),
        JsonlWriter(str(tmp_path / "out"), compression=None),
    ]
    LocalPipelineExecutor(pipeline, logging_dir=str(tmp_path / "logs")).run()
    lines = (tmp_path / "out/00000.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "3"]
    assert total_account(tmp_path / "account", 1).totals("read")[0] == 4
