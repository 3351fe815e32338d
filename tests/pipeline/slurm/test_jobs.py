"""The jobs of a recipe, and the commands that submit them; no Slurm is needed to say these."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.run import run
from megatron_soaes.pipeline.selection import Selection
from megatron_soaes.pipeline.slurm.jobs import Job, jobs_of
from megatron_soaes.pipeline.slurm.submission import Chain, chain_of, submit
from megatron_soaes.recipe.load import load_recipe

RECIPE = """
version: 1
name: chain
workdir: "it's $(touch harm) 100%"
models:
  target: {source: model, layout: {data_parallel: 16}}
  draft: {source: model}
data:
  datasets: {one: {text: ["one `touch harm`;.jsonl"]}, two: {text: [two.jsonl]}}
  blends: {mine: {weights: {one: 1}}}
stages:
  - &cpt {name: cpt, kind: cpt, blend: mine, steps: 2, sequence_length: 8, global_batch_size: 16}
  - {<<: *cpt, name: draft-cpt, model: draft}
  - {name: hf, kind: export}
  - {name: draft-hf, kind: export, model: draft}
  - {name: pair, kind: speculate, target: hf, draft: draft-hf, prompts: two.jsonl}
cluster: {gpu: h100-80g, nodes: 2, gpus_per_node: 8}
"""
TOKENIZE = ("preprocess-one", "preprocess-two")


@pytest.fixture
def recipe(tmp_path: Path, source: Path) -> Path:
    for name in ("one `touch harm`;.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": "one"}) + "\n", "utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def test_each_stage_is_a_job_after_those_whose_results_it_reads(recipe: Path) -> None:
    jobs = {job.name: job for job in jobs_of(load_recipe(recipe))}
    assert jobs["preprocess"] == Job("preprocess", "preprocess.sbatch", TOKENIZE, 1, 1, 0, ())
    assert jobs["cpt"] == Job(
        "cpt", "train.sbatch", ("cpt",), 2, 8, 8, ("preprocess", "import-target")
    )
    assert jobs["draft-cpt"].after == ("preprocess", "import-draft"), "beside the target's line"
    assert jobs["pair"].after == ("hf", "draft-hf")


def test_what_is_done_needs_no_job_and_nothing_waits_for_it(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    jobs = {job.name: job for job in jobs_of(loaded, done=[*TOKENIZE, "import-target"])}
    assert "preprocess" not in jobs
    assert jobs["cpt"].after == ()


def test_processes_that_do_not_fill_their_nodes_evenly_are_refused(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["models.target.layout.data_parallel=9"])
    with pytest.raises(UserError, match="stage cpt: found 9 processes on 2 nodes"):
        jobs_of(loaded)


def test_without_a_cluster_a_stage_is_as_many_tasks_on_one_node(recipe: Path) -> None:
    recipe.write_text(RECIPE.partition("cluster:")[0], encoding="utf-8")
    jobs = {job.name: job for job in jobs_of(load_recipe(recipe))}
    assert (jobs["cpt"].nodes, jobs["cpt"].tasks_per_node, jobs["cpt"].gpus_per_node) == (1, 16, 0)


def test_a_dry_run_is_a_script_that_hands_sbatch_exactly_the_arguments(
    recipe: Path, tmp_path: Path
) -> None:
    """Run with a stand-in for sbatch, which writes down its arguments: nothing else happens."""
    stand_in = tmp_path / "bin"
    stand_in.mkdir()
    sbatch = stand_in / "sbatch"
    sbatch.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" "" >>"{tmp_path}/said"\necho $$\n', "utf-8"
    )
    sbatch.chmod(0o755)
    chain = chain_of(load_recipe(recipe))
    script = chain.dry_run()
    assert not chain.folder.exists()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    subprocess.run(
        ["bash"], input=script, text=True, check=True, cwd=tmp_path,
        env={"PATH": f"{stand_in}:/usr/bin:/bin"}, capture_output=True,
    )  # fmt: skip
    said = (tmp_path / "said").read_text(encoding="utf-8").split("\n\n")
    calls = [call.splitlines() for call in said if call]
    assert not list(tmp_path.rglob("harm"))
    assert len(calls) == len(chain.commands)
    for call, command in zip(calls, chain.commands, strict=True):
        assert [word for word in call if not word.startswith("--dependency")] == [
            *command.arguments, *command.script,
        ]  # fmt: skip
    folder = tmp_path / "it's $(touch harm) 100%" / "slurm"
    assert f"--output={str(folder).replace('%', '%%')}/%x-%j.log" in calls[1]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for Slurm's commands, which write down what they are called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scontrol", "scancel"):
        stand_in(folder / name, f'echo "{name} $*" >>"{tmp_path}/said"; echo $((++n))')
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def stand_in(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    file.chmod(0o755)


def calls(tmp_path: Path, name: str) -> list[str]:
    said = (tmp_path / "said").read_text(encoding="utf-8").splitlines()
    return [line for line in said if line.startswith(name)]


def test_what_an_environment_file_prints_is_no_job_s_number(
    recipe: Path, slurm: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment.sh"
    environment.write_text("echo Loading megatron/1.0\n", encoding="utf-8")
    jobs = submit(load_recipe(recipe), environment)
    assert {one.job for one in jobs} == {"1"}


def test_a_submission_that_is_interrupted_leaves_no_job_behind(
    recipe: Path, slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Chain.ask

    def interrupted(chain: Chain, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if calls(tmp_path, "sbatch"):
            raise KeyboardInterrupt
        return ask(chain, words)

    (tmp_path / "said").touch()
    monkeypatch.setattr(Chain, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(load_recipe(recipe))
    assert len(calls(tmp_path, "sbatch")) == 1
    assert calls(tmp_path, "scancel") == ["scancel 1"]


def test_a_damaged_list_of_jobs_is_named(recipe: Path, slurm: Path) -> None:
    loaded = load_recipe(recipe)
    file = loaded.workdir / "slurm/jobs.json"
    file.parent.mkdir(parents=True)
    file.write_text('[{"name": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"jobs\.json: found a damaged list of jobs"):
        submit(loaded)


def test_a_blocked_stage_is_said_before_anything_is_submitted(recipe: Path) -> None:
    (recipe.parent / "two.jsonl").unlink()
    with pytest.raises(UserError, match=r"stage preprocess-two: .*no file at"):
        submit(load_recipe(recipe))


def test_a_done_stage_is_named_in_the_dry_run(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["models.target.layout.data_parallel=1"])
    run(loaded.model_copy(update={"cluster": None}), Selection(only=TOKENIZE[0]))
    chain = chain_of(loaded)
    assert chain.done == (TOKENIZE[0],)
    assert f"need no job: {TOKENIZE[0]}." in chain.dry_run()


def test_an_environment_file_that_is_not_there_is_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"my\.sh: found no file"):
        chain_of(load_recipe(recipe), tmp_path / "my.sh")
