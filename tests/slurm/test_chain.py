"""Recipes as chains of real jobs: across a time limit, a lost node and a stage that fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from megatron_soaes.training.records import read_records
from tests.checkpoint.tensors import newest_tensors
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer
from tests.data_prep.sft_material import CHATML
from tests.slurm.cluster import Cluster, wait_until

pytestmark = pytest.mark.timeout(900)
"""Every job imports torch anew, and there are a dozen of them."""

PATIENCE_S = 20
HARM = 'it\'s $(touch harm) `touch harm`; & "100%" *'
"""In every text that a recipe may hold."""
RECIPE = f"""
version: 1
name: chain
workdir: {json.dumps(HARM)}
models:
  target: {{source: model, layout: {{data_parallel: 2}}}}
  draft: {{source: draft}}
data:
  datasets:
    mine: {{text: [{json.dumps(HARM + ".jsonl")}]}}
    held: {{text: [held.jsonl]}}
    chats: {{conversations: [chats.jsonl]}}
    answers: {{responses: respond}}
  blends:
    mine: {{weights: {{mine: 1}}}}
    chats: {{weights: {{chats: 1}}}}
    answers: {{weights: {{answers: 1}}}}
stages:
  - &cpt
    name: cpt
    kind: cpt
    blend: mine
    steps: 300
    sequence_length: 16
    global_batch_size: 2
    optimizer: {{lr: 1.0e-3}}
    validation: {{sets: [held], every: 100, batches: 2}}
    checkpoints: {{every: 50}}
    log_every: 1
  - name: sft
    kind: sft
    blend: chats
    steps: 200
    sequence_length: 128
    global_batch_size: 2
    checkpoints: {{every: 50}}
    log_every: 1
    hang_timeout_s: {PATIENCE_S}
  - {{<<: *cpt, name: draft-cpt, model: draft}}
  - {{name: evaluation, kind: evaluate, checkpoints: [import, cpt, sft]}}
  - name: respond
    kind: respond
    prompts: [chats]
    prompts_per_dataset: 4
    sampling: {{max_new_tokens: 4}}
  - name: capture
    kind: capture
    blend: answers
    epochs: 1
    sequence_length: 128
    validation: [held]
    store: {{entries: 8}}
  - name: distil
    kind: distill
    captured: capture
    steps: 4
    sequence_length: 128
    global_batch_size: 2
    schedule: {{warmup_steps: 1}}
  - {{name: hf, kind: export}}
  - {{name: draft-hf, kind: export, model: draft}}
  - name: pair
    kind: speculate
    target: hf
    draft: draft-hf
    prompts: {json.dumps(HARM + ".jsonl")}
    most_prompts: 2
    draft_lengths: [2]
    repeats: 2
    max_new_tokens: 4
evaluation: {{perplexity: [held], sequence_length: 16}}
"""
TEXTS = ["the quick brown fox jumps over the lazy dog", "中央企业深化改革，提高核心竞争力。"]


def project(folder: Path, recipe: str = RECIPE) -> Path:
    folder.mkdir()
    tokenizer = train_tokenizer()
    for name, layers in {"model": 2, "draft": 1}.items():
        model = make_model(folder / name, Case(vocab_size=512, layers=layers))
        save_tokenizer(model, tokenizer, chat_template=CHATML)
    for name, times in ((HARM, 40), ("held", 20)):
        lines = [json.dumps({"text": t, "prompt": t}, ensure_ascii=False) for t in TEXTS * times]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    turns = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    chats = "".join(json.dumps({"messages": turns, "id": n}) + "\n" for n in range(40))
    (folder / "chats.jsonl").write_text(chats, encoding="utf-8")
    file = folder / "recipe.yaml"
    file.write_text(recipe, encoding="utf-8")
    return file


def soaes(cluster: Cluster, *arguments: object) -> str:
    """The command with the cluster in reach, and this Python as that of the jobs."""
    environment = cluster.environment | {
        "SOAES_ENV": sys.prefix, "SOAES_DISK_FLOOR_GB": "0", "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "megatron_soaes", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submitted(recipe: Path, workdir: str = HARM) -> dict[str, str]:
    file = recipe.parent / workdir / "slurm/jobs.json"
    return {one["name"]: one["job"] for one in json.loads(file.read_text(encoding="utf-8"))}


def strike(cluster: Cluster, recipe: Path, blows: dict[str, Callable[[], None]]) -> bool:
    """Strike each stage that is at its training, once; whether all of them are struck.

    They train beside each other, and either may be first.
    """
    for job in map(cluster.job, submitted(recipe).values()):
        assert job.get("JobState") not in {"FAILED", "CANCELLED"}, f"{job}\n{cluster.log(job)}"
    for stage in [stage for stage in blows if steps_done(recipe, stage) > 20]:
        blows.pop(stage)()
    return not blows


def rank_of(recipe: Path, stage: str, rank: int) -> psutil.Process:
    """The process of a rank that trains."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "megatron_soaes.stages.worker" in words and words[-1] == stage and words[0] != "srun":
            with suppress(psutil.Error):
                environment = process.environ()
                mine = str(recipe.parent) in " ".join(words)
                if mine and environment.get("SLURM_PROCID") == str(rank):
                    return process
    raise AssertionError(f"no rank {rank} of {stage}")


def is_signalled(process: psutil.Process) -> bool:
    """Whether SIGUSR1 waits for a process that is suspended."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    pending = re.search(r"^ShdPnd:\s*(\w+)", status, re.M)
    return pending is not None and bool(int(pending[1], 16) & 1 << signal.SIGUSR1 - 1)


def steps_done(recipe: Path, stage: str) -> int:
    metrics = recipe.parent / HARM / stage / "metrics.jsonl"
    with suppress(OSError, ValueError):
        return len([one for one in read_records(metrics) if "loss" in one])
    return 0


def curve(recipe: Path, stage: str) -> list[tuple[int, float]]:
    records = read_records(recipe.parent / HARM / stage / "metrics.jsonl")
    return [(one["step"], one["loss"]) for one in records if "loss" in one]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe, run on this machine in one go."""
    recipe = project(tmp_path_factory.mktemp("local") / "project")
    subprocess.run(
        [sys.executable, "-m", "megatron_soaes", "run", recipe, "--to", "draft-cpt"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True,
    )  # fmt: skip
    return recipe


def test_a_chain_survives_its_time_limit_and_a_lost_node_and_ends_bitwise_the_same(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    recipe = project(tmp_path / "project")
    said = soaes(cluster, "slurm", "submit", recipe)
    jobs = submitted(recipe)
    assert f"{jobs['cpt']}: cpt" in said

    def limit_comes() -> None:
        # Slow steps, while Slurm finds that less than the script's ten minutes are left.
        for rank in range(2):
            slow.append(rank_of(recipe, "cpt", rank))
            slow[-1].suspend()
        cluster.answer("scontrol", "update", f"JobId={jobs['cpt']}", "TimeLimit=10")

    def node_is_lost() -> None:
        lost.append(cluster.job(jobs["draft-cpt"])["NodeList"])
        cluster.fail_node(lost[0])

    def rank_hangs() -> None:
        hanging.append(rank_of(recipe, "sft", 1))
        hanging[0].suspend()

    slow: list[psutil.Process] = []
    lost: list[str] = []
    hanging: list[psutil.Process] = []
    blows = {"cpt": limit_comes, "draft-cpt": node_is_lost}
    wait_until(partial(strike, cluster, recipe, blows), 300)
    wait_until(lambda: all(map(is_signalled, slow)), 90)
    cluster.answer("scontrol", "update", f"JobId={jobs['cpt']}", "TimeLimit=60")
    for rank in slow:
        rank.resume()
    wait_until(partial(strike, cluster, recipe, {"sft": rank_hangs}), 300)
    first_log = recipe.parent / HARM / "sft/logs/rank0.log"
    wait_until(lambda: f"no progress for {PATIENCE_S} s" in first_log.read_text("utf-8"), 60)
    hanging[0].resume()
    for name, job in jobs.items():
        ended = cluster.wait_for(job, {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"}, 400)
        assert ended["JobState"] == "COMPLETED", f"{name}: {ended}\n{cluster.log(ended)}"
    cluster.resume_node(lost[0])
    assert cluster.job(jobs["cpt"])["Restarts"] == "1"
    log = recipe.parent / HARM / f"slurm/chain-cpt-{jobs['cpt']}.log"
    assert "exit code 75" in log.read_text(encoding="utf-8")
    assert int(cluster.job(jobs["draft-cpt"])["Restarts"]) >= 1
    log = recipe.parent / HARM / f"slurm/chain-sft-{jobs['sft']}.log"
    assert "exit code 4: " in log.read_text(encoding="utf-8")
    assert cluster.job(jobs["sft"])["Restarts"] == "1"
    assert "where each thread of this rank is:" in first_log.read_text(encoding="utf-8")
    for stage in ("cpt", "sft", "draft-cpt"):
        assert curve(recipe, stage) == curve(undisturbed, stage)
        ours, theirs = (
            newest_tensors(one.parent / HARM / stage / "checkpoints")
            for one in (recipe, undisturbed)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(tmp_path.rglob("harm")), "no text of the recipe was run"
    table = soaes(cluster, "slurm", "status", recipe)
    assert table.count("COMPLETED") == len(jobs) + 2, "the array has three elements"
    done = soaes(cluster, "slurm", "submit", recipe, "--dry-run")
    assert done.count("sbatch --parsable") == 0, "nothing is left to do"


FAILING = """
version: 1
name: failing
workdir: work
models: {target: {source: model}, draft: {source: draft}}
stages:
  - {name: hf, kind: export, gates: ['tensors <= 1']}
  - {name: draft-hf, kind: export, model: draft}
  - {name: pair, kind: speculate, target: hf, draft: draft-hf, prompts: held.jsonl}
"""


def test_a_stage_that_fails_cancels_what_waits_for_it_and_is_named(
    cluster: Cluster, tmp_path: Path
) -> None:
    recipe = project(tmp_path / "project", FAILING)
    soaes(cluster, "slurm", "submit", recipe)
    jobs = submitted(recipe, "work")
    failed = cluster.wait_for(jobs["hf"], "FAILED", 120)
    assert failed["ExitCode"] == "2:0"
    assert "gate 'tensors <= 1'" in cluster.log(failed)
    cluster.wait_for(jobs["pair"], "CANCELLED")
    cluster.wait_for(jobs["draft-hf"], "COMPLETED", 120)
    table = soaes(cluster, "slurm", "status", recipe)
    assert "FAILED with exit code 2" in table
    assert "CANCELLED" in table


def test_waiting_jobs_are_cancelled_and_a_second_submission_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    recipe = project(tmp_path / "project", FAILING)
    cluster.answer("scontrol", "update", "partitionname=batch", "state=down")
    try:
        soaes(cluster, "slurm", "submit", recipe)
        with pytest.raises(AssertionError, match="jobs of this recipe in the queue"):
            soaes(cluster, "slurm", "submit", recipe)
        assert soaes(cluster, "slurm", "cancel", recipe).startswith("cancelled: ")
    finally:
        cluster.answer("scontrol", "update", "partitionname=batch", "state=up")
    for job in submitted(recipe, "work").values():
        cluster.wait_for(job, "CANCELLED")
    assert soaes(cluster, "slurm", "cancel", recipe) == "no job was left to cancel\n"


def test_a_job_that_slurm_refuses_leaves_no_other_in_the_queue(
    cluster: Cluster, tmp_path: Path
) -> None:
    environment = tmp_path / "environment.sh"
    shutil.copy(Path(__file__).parents[2] / "slurm/environment.sh", environment)
    with environment.open("a") as stream:
        stream.write("export SBATCH_PARTITION=nowhere\n")
    recipe = project(tmp_path / "project", FAILING)
    before = cluster.answer("squeue", "--noheader")
    with pytest.raises(AssertionError, match="invalid partition"):
        soaes(cluster, "slurm", "submit", recipe, "--environment", environment)
    assert cluster.answer("squeue", "--noheader") == before
