"""The demo at reduced size: the example recipes, run by the real command on real processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import transformers

from data_prep.rehearsal.initial_model import qwen2_config, write_initial_model
from data_prep.rehearsal.make import Options, make
from tests.checkpoint.tensors import tensors_in

pytestmark = pytest.mark.timeout(900)
"""The first test waits for the whole demo."""

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = Options(
    general_megabytes=0.3,
    companies=4,
    regulations=2,
    domain_tokens=30_000,
    domain_valid=40,
    dialogues=30,
    dialogues_valid=5,
    questions_per_fact=3,
    cloze_items=24,
    bytes_documents=4,
    vocab_size=1024,
)
TINY = qwen2_config(1024, layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128)
DRAFT = qwen2_config(1024, layers=1, hidden=32, heads=2, kv_heads=2, head_dim=16, ffn=64)
STEPS = {
    "cpt": 12, "sft-broad": 4, "sft-narrow": 120,
    "draft-cpt": 2, "draft-sft-broad": 2, "draft-sft-narrow": 2, "distil": 30,
}  # fmt: skip


def shortened(steps: dict[str, int]) -> list[str]:
    """Overrides that make each training stage short; those by passes get steps instead."""
    found = []
    for stage, count in steps.items():
        found += [f"{stage}.steps={count}", f"{stage}.warmup_steps=1"]
        found += [f"{stage}.validation.every={max(6, count // 2)}", f"{stage}.batches=2"]
        found += [f"{stage}.epochs=null"] if "sft" in stage or stage == "distil" else []
    return found


BASE = shortened({"pretrain": 4, "draft-pretrain": 2})
RUN = [
    *shortened(STEPS),
    "sft-narrow.checkpoints.every=20",
    "evaluation.max_new_tokens=8",
    "respond.prompts_per_dataset=8",
    "respond.sampling.max_new_tokens=16",
    "pair.most_prompts=4",
    "pair.draft_lengths=[3]",
    "pair.repeats=2",
    "pair.max_new_tokens=8",
]
STEPS_OF_PREPARATION = 10
"""Eight datasets to tokenize and two models to import."""


def soaes(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_soaes", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Demo:
    """A copy of the examples beside a small corpus, laid out as in the repository."""

    root: Path
    output: str

    @property
    def recipe(self) -> Path:
        return self.root / "examples/rehearsal/recipe.yaml"

    @property
    def run_folder(self) -> Path:
        return self.root / "build/demo/run"

    def manifest(self, stage: str) -> dict[str, object]:
        content: dict[str, object] = json.loads(
            (self.run_folder / stage / "manifest.json").read_text(encoding="utf-8")
        )
        return content


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    root = tmp_path_factory.mktemp("demo")
    shutil.copytree(EXAMPLES / "rehearsal", root / "examples/rehearsal")
    corpus = root / "build/demo/corpus"
    make(corpus, 3, SMALL, workers=1)
    for name, config in {"base-init": TINY, "draft-init": DRAFT}.items():
        shutil.rmtree(corpus / name)
        write_initial_model(corpus / name, corpus / "tokenizer", config, seed=3)
    base = soaes("run", root / "examples/rehearsal/base.yaml", *BASE)
    assert base.returncode == 0, base.stdout + base.stderr
    run = soaes("run", root / "examples/rehearsal/recipe.yaml", *RUN)
    assert run.returncode == 0, run.stdout + run.stderr
    return Demo(root, run.stdout)


def test_every_stage_is_recorded(demo: Demo) -> None:
    cpt = demo.manifest("cpt")
    assert cpt["processes"] == 2
    assert set(cpt["inputs"]) >= {"start", "data/domain.bin", "data/general.idx"}  # type: ignore[call-overload]
    assert cpt["outputs"]["checkpoints"]["files"]["latest_checkpointed_iteration.txt"] == 3  # type: ignore[index]
    records = (demo.run_folder / "cpt/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in records]
    assert [r["step"] for r in steps if "loss" in r] == list(range(1, 13))
    last_validation = [r["validation"] for r in steps if "validation" in r][-1]
    assert {"domain_valid", "general_valid"} == set(last_validation)


def test_the_domain_was_learnt_and_the_table_says_so(demo: Demo) -> None:
    metrics = demo.manifest("evaluation")["metrics"]
    before, after = metrics["import"]["domain_valid"], metrics["cpt"]["domain_valid"]  # type: ignore[index]
    assert after["perplexity"] < 0.8 * before["perplexity"]
    assert f"{after['perplexity']:.4g} ({after['loss']:.3f})" in demo.output
    assert "evaluation: held-out perplexity" in demo.output


def test_both_lines_went_through_every_stage_and_were_examined(demo: Demo) -> None:
    for stage, steps in STEPS.items():
        assert demo.manifest(stage)["metrics"]["iteration"] == steps  # type: ignore[index]
    packing = demo.manifest("sft-narrow")["metrics"]["packing"]  # type: ignore[index]
    assert set(packing) == {"expert", "dialogue"}
    for stage in ("evaluation", "draft-evaluation"):
        measured = demo.manifest(stage)["metrics"]["import"]  # type: ignore[index]
        assert {"continuation", "exam", "cloze", "general", "domain_valid"} <= set(measured)
        assert (demo.run_folder / stage / "summary.txt").read_text(encoding="utf-8") in demo.output


def test_the_draft_learns_what_its_target_says(demo: Demo) -> None:
    answers = demo.manifest("respond")["metrics"]
    assert {"dialogue", "expert", "domain"} <= set(answers)  # type: ignore[call-overload]
    acceptance = demo.manifest("distil")["metrics"]["acceptance"]  # type: ignore[index]
    before, after = acceptance["before"]["answers"], acceptance["after"]["answers"]
    assert after["alpha"] > before["alpha"]
    assert f"{before['alpha']:.1%}" in demo.output
    assert f"{after['alpha']:.1%}" in demo.output


def test_the_pair_is_measured_and_its_text_is_the_target_s(demo: Demo) -> None:
    measured = demo.manifest("pair")["metrics"]
    assert measured["exact"]["equal_logits"] == 1  # type: ignore[index]
    assert measured["exact"]["identical"] == 1  # type: ignore[index]
    target, draft = demo.run_folder / "hf/hf", demo.run_folder / "draft-hf/hf"
    assert f"soaes chat {target} --draft {draft}" in demo.output


def test_a_curriculum_killed_in_its_second_stage_goes_on_bitwise(demo: Demo) -> None:
    checkpoints = demo.run_folder / "sft-narrow/checkpoints"
    whole = tensors_in(checkpoints / "iter_0000120")
    shutil.rmtree(demo.run_folder / "sft-narrow")
    command = [sys.executable, "-m", "megatron_soaes", "run", str(demo.recipe), *RUN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        _wait_until((checkpoints / "iter_0000020").exists, process)
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
    assert not (checkpoints / "iter_0000120").exists(), "it was over before it was killed"
    went_on = soaes("run", demo.recipe, *RUN)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert "sft-narrow: goes on" in went_on.stdout
    resumed = tensors_in(checkpoints / "iter_0000120")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_export_loads_in_transformers_with_the_trained_weights(demo: Demo) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(demo.root / "build/demo/base/hf/hf")
    trained = transformers.AutoModelForCausalLM.from_pretrained(demo.run_folder / "hf/hf")
    assert trained.config.vocab_size == base.config.vocab_size
    assert not torch.equal(trained.model.norm.weight, base.model.norm.weight)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.run_folder / "hf/hf")
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_second_run_does_nothing(demo: Demo) -> None:
    again = soaes("run", demo.recipe, *RUN)
    assert again.returncode == 0
    stages = len(STEPS) + len(["evaluations", "exports"]) * len(["target", "draft"])
    stages += len(["respond", "capture", "pair"])
    assert again.stdout.count("unchanged, skipped") == STEPS_OF_PREPARATION + stages
    assert "runs" not in again.stdout


def test_indexes_can_be_built_ahead_and_are_those_of_the_run(demo: Demo) -> None:
    cache = demo.run_folder / "index-cache"
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")}
    built = soaes("prep", "index", demo.recipe, *RUN)
    assert built.returncode == 0, built.stderr
    assert "cpt: 48 training samples, 12 steps" in built.stdout
    assert "sft-broad: 16 training samples, 4 steps" in built.stdout
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.npy")} == before
    other = soaes("prep", "index", demo.recipe, *RUN, "cpt.sequence_length=128")
    assert other.returncode == 0, other.stderr
    assert len(list(cache.rglob("*.npy"))) > len(before)


def test_another_layout_is_not_another_stage(demo: Demo) -> None:
    other = ["models.target.layout={data_parallel: 2}", "cpt.micro_batch_size=2"]
    other += ["sft-narrow.layout={tensor_parallel: 2}"]
    again = soaes("run", demo.recipe, *RUN, *other)
    assert again.returncode == 0
    assert "cpt: unchanged, skipped" in again.stdout


def test_a_gate_that_does_not_hold_stops_the_run_with_the_numbers(demo: Demo) -> None:
    gated = soaes("run", demo.recipe, *RUN, "cpt.gates=['validation.domain_valid.loss <= 0.1']")
    assert gated.returncode == 2
    loss = demo.manifest("cpt")["metrics"]["validation"]["domain_valid"]["loss"]  # type: ignore[index]
    assert f"validation.domain_valid.loss = {loss:.6g}" in gated.stderr
    assert "evaluation" not in gated.stdout


def test_changed_settings_run_again_survive_a_stop_and_keep_the_old_results(demo: Demo) -> None:
    changed = [*RUN, "cpt.steps=300", "cpt.checkpoints.every=150", "cpt.lr=1e-3"]
    command = [sys.executable, "-m", "megatron_soaes", "run", str(demo.recipe), *changed]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        _wait_until(lambda: _steps_done(demo) > 5, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
    assert process.returncode == 75, output
    assert "changed settings: optimizer, steps" in output
    assert "stopped after step" in output
    assert "same command goes on" in output
    kept = list((demo.run_folder / "superseded").glob("cpt-*/manifest.json"))
    assert len(kept) == 1

    reached = int(
        (demo.run_folder / "cpt/checkpoints/latest_checkpointed_iteration.txt").read_text()
    )
    assert 5 < reached < 300
    went_on = soaes("run", demo.recipe, *changed, "cpt.log_every=1000")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert "cpt: goes on" in went_on.stdout
    assert f"cpt goes on after step {reached}" in went_on.stdout
    changed = f"changed inputs: {demo.run_folder}/cpt/checkpoints"
    assert f"evaluation: runs again ({changed}" in went_on.stdout


def _steps_done(demo: Demo) -> int:
    """Steps of the run that set the first one aside."""
    metrics = demo.run_folder / "cpt/metrics.jsonl"
    set_aside = any((demo.run_folder / "superseded").glob("cpt-*"))
    if not set_aside or not metrics.exists():
        return 0
    return metrics.read_text(encoding="utf-8").count('"lr": ')


def _wait_until(condition: object, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.1)
    pytest.fail("the run ended before it was stopped")
