"""A run whose stages are played: the runner is the real one, what ranks would do is written here.

Manifests, gates and hashes are therefore those of a run; no model is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from megatron_soaes.accelerator.machine import Machine
from megatron_soaes.decoding.comparison import Comparison, LengthResult, Recommendation
from megatron_soaes.decoding.comparison_report import write_comparison
from megatron_soaes.decoding.draft_length import PassCosts, Round, acceptance_of
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.measure import Identity, Speedup, TimeShares
from megatron_soaes.errors import ExitCode
from megatron_soaes.evaluation.compare import compare
from megatron_soaes.evaluation.result import EvaluationResult, Measure, Model, Suite
from megatron_soaes.evaluation.statistics import to_json
from megatron_soaes.files import write_json, write_text
from megatron_soaes.pipeline.run import Runner
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan
from megatron_soaes.stages.registry import stages_of
from megatron_soaes.stages.worker import RESULT_FILE
from megatron_soaes.training.telemetry import Telemetry
from tests.data_prep.curation.report.outcomes import curated

HOSTILE = "<script src='http://evil.example/x.js'>alert(1)</script>"
CHINESE = "法规问答"
STEPS = 40
RECIPE = """
version: 1
name: played
workdir: work
models: {target: {source: model}, draft: {source: small}}
data:
  datasets:
    news: {text: [curated/documents/news.jsonl]}
    chats: {conversations: [chats.jsonl]}
    held: {text: [held.jsonl]}
    own: {responses: respond, holdout: 0.1}
  blends:
    documents: {weights: {news: 1}}
    talk: {weights: {chats: 1}}
stages:
  - &cpt
    name: cpt
    kind: cpt
    blend: documents
    steps: 40
    sequence_length: 16
    global_batch_size: 1
    validation: {sets: [held], every: 10, best: held}
    gates: ['validation.held.loss <= 3', 'trained_tokens >= 100']
  - {name: broad, kind: sft, blend: talk, epochs: 1, sequence_length: 16, global_batch_size: 1}
  - {name: narrow, kind: sft, blend: talk, epochs: 1, sequence_length: 16, global_batch_size: 1}
  - name: control
    kind: sft_single_stage
    of: [broad, narrow]
    sequence_length: 16
    global_batch_size: 1
  - {name: exams, kind: evaluate, checkpoints: [import, cpt, narrow, control]}
  - {name: respond, kind: respond, prompts: [chats]}
  - name: distil
    kind: distill
    teacher: narrow
    blend: talk
    steps: 40
    sequence_length: 16
    global_batch_size: 1
    validation: {sets: [held]}
  - {name: hf, kind: export}
  - {name: small-hf, kind: export, model: draft}
  - {name: pair, kind: speculate, target: hf, draft: small-hf, prompts: prompts.jsonl}
evaluation:
  perplexity: [held]
  questions: {exam: exam.jsonl}
"""
FILES = ("model/config.json", "small/config.json", "chats.jsonl", "held.jsonl", "prompts.jsonl",
         "exam.jsonl", "curated/documents/news.jsonl")  # fmt: skip

METRICS: dict[str, dict[str, Any]] = {
    "preprocess": {"documents": 20, "empty_documents": 1, "tokens": 1000},
    "preprocess-chats": {
        "conversations": 8, "bad_lines": {"no_messages": 1}, "dropped": {"too_long": 1},
        "tokens": 400, "trained_tokens": 100,
    },
    "respond": {
        "chats": {
            "prompts": 8, "answers": 16, "tokens": 90, "left_out": {"no_answer": 0, "repeated": 2},
        }
    },
}  # fmt: skip
"""Of stages that only count, by name or kind."""


def project(folder: Path, recipe: str = RECIPE) -> Recipe:
    """A recipe and the files that its stages read."""
    curated(folder)
    for name in FILES:
        write_text(folder / name, "{}\n")
    write_text(folder / "recipe.yaml", recipe)
    return load_recipe(folder / "recipe.yaml")


def play(recipe: Recipe, until: str | None = None, left_behind: int = 0) -> int:
    """Run the recipe; a signal stops it at stage `until` after `left_behind` training steps."""
    plans = {name: stage.plan() for name, stage in stages_of(recipe).items()}

    def launcher(_: str, arguments: Sequence[str], __: int, ___: Path) -> int:
        plan = plans[arguments[1]]
        if plan.name == until:
            if left_behind:
                train(plan, left_behind)
            return ExitCode.STOPPED
        metrics = perform(recipe, plan)
        for output in plan.outputs.values():
            if not output.exists():
                write_text(output, plan.name)
        write_json(plan.directory / RESULT_FILE, metrics)
        return ExitCode.OK

    machine = Machine(
        device="cuda", gpu_name=HOSTILE, gpu_count=2, compute_capability=(9, 0),
        gpu_memory_bytes=0, cores=4, memory_bytes=0, versions={"torch": "2.13"}, apex=None,
        commands={},
    )  # fmt: skip
    runner = Runner(recipe, machine, Console(quiet=True), launcher)
    return runner.run([], list(plans.values()), [])


def perform(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Leave what a stage leaves; its metrics."""
    match plan.kind:
        case "cpt" | "sft" | "sft_single_stage" | "distill":
            return train(plan, STEPS)
        case "evaluate":
            return evaluate(recipe, plan)
        case "speculate":
            for mode in plan.config["modes"]:
                write_comparison(decoding(mode == "exact"), plan.directory / f"{mode}.json")
    return METRICS.get(plan.name, METRICS.get(plan.kind, {}))


def train(plan: Plan, steps: int) -> dict[str, Any]:
    """Steps with a falling loss; the held-out loss is lowest at step 20."""
    write_text(plan.outputs["checkpoints"] / "weights", plan.name)
    telemetry = Telemetry(plan.directory, 0, STEPS, STEPS)
    figures: dict[str, Any] = {}
    for step in range(steps + 1):
        if step:
            loss = math.nan if step == 5 else 4 - step / 20
            record = {"loss": loss, "lr": 1e-3, "grad_norm": 1.0, "finite": step != 5,
                      "seconds": 0.5, "tokens_per_second": 100.0, "tflops_per_process": 1.0,
                      "mfu": 0.1, "peak_memory_gib": 1.0}  # fmt: skip
            telemetry.step(step, record)
        if step % 10 == 0:
            figures = {"held": held_out(step, drafting=plan.kind == "distill")}
            telemetry.validation(step, figures)
    telemetry.close()
    packing = {"chats": {"conversations": 8, "dropped": 0, "truncated": 1, "packs": 3,
                         "efficiency": 0.9}}  # fmt: skip
    return {
        "iteration": steps, "validation": figures, "consumed_samples": {"news": steps},
        "trained_tokens": 16 * steps, "skipped_steps": 0, "best": None, "packing": packing,
    }  # fmt: skip


def held_out(step: int, drafting: bool) -> dict[str, Any]:
    """Figures of a validation."""
    loss = 2.5 + abs(step - 20) / 40
    figures = {"loss": loss, "perplexity": math.exp(loss), "tokens": 640.0}
    if not drafting:
        return figures
    alpha = 0.5 + step / 100
    tokens = list(itertools.accumulate(alpha**n for n in range(5)))[1:]
    ideal = [tokens[n] / (1 + 0.1 * (n + 1)) for n in range(4)]
    return {**figures, "alpha": alpha, "greedy_match": alpha, "tokens_per_pass": tokens,
            "ideal_speedup": ideal, "best_draft_length": 4}  # fmt: skip


def evaluate(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """An exam at which later checkpoints are better, and the control not as good as the stages."""
    abilities = {"import": 0.3, "cpt": 0.5, "narrow": 0.9, "control": 0.7}
    paths = []
    for name in plan.config["checkpoints"]:
        path = plan.directory / f"{name}.json"
        result = EvaluationResult(Model(name, f"runs/{name}", "0" * 64, 40), exam(abilities[name]))
        result.write(path)
        paths.append(path)
    if len(paths) > 1:
        found = compare(paths, ["accuracy >= 1.2"], seed=recipe.seed)
        write_json(plan.directory / "comparison.json", to_json(found))
    return {name: {"held": held_out(0, drafting=False)} for name in plan.config["checkpoints"]}


def exam(ability: float, items: int = 60) -> Mapping[str, Suite]:
    """Questions of two sources, one with a hostile name, one with a Chinese one."""
    hard = np.random.default_rng(7).uniform(size=items)
    right = tuple((100.0 * (hard < ability)).tolist())
    words = tuple((100.0 * ability * hard).tolist())
    return {
        "exam": Suite(
            kind="questions", data="exam.jsonl", data_sha256="d" * 64,
            ids=tuple(map(str, range(items))),
            measures={
                "facts.accuracy": Measure(right, "%", binary=True),
                "words.rouge1": Measure(words, "%"),
            },
            profiles={"facts": HOSTILE, "words": CHINESE}, versions={},
            sources=tuple((HOSTILE, CHINESE)[n % 2] for n in range(items)),
        )
    }  # fmt: skip


def decoding(exact: bool) -> Comparison:
    """A pair that gains, the most with 3 drafted tokens."""
    costs = PassCosts(0.1, (1.0, 1.0, 1.0, 1.0))
    speeds = {1: 1.2, 3: 1.625}
    lengths = [
        LengthResult(
            length, False, 0.004 / speed, Speedup(speed, speed - 0.1, speed + 0.15),
            Speedup(speed + 0.2, speed + 0.1, speed + 0.3),
            acceptance_of([Round(length, length, length, length + 1)]), speed + 0.5, speed + 0.4,
            0.3, TimeShares(0.2, 0.7, 0.1), Identity(5, 5, (), 5 if exact else None),
        )
        for length, speed in speeds.items()
    ]  # fmt: skip
    return Comparison(
        exact=exact, prompts=5, rows=1, repeats=3, sampling=Sampling(8), target_dtype="bf16",
        draft_dtype="fp32", machine={"cores": 2}, plain_seconds_per_token=0.004,
        plain_seconds_per_token_in_mode=0.005, costs=costs,
        lengths=(*lengths, replace(lengths[-1], adaptive=True, ideal_speedup=None)),
        recommendation=Recommendation(True, 3, "draft length 3 is the fastest"),
    )  # fmt: skip
