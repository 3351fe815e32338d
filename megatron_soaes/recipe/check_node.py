"""Can this node run the recipe, and what does the recipe mean here?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_soaes.accelerator.machine import Machine
from megatron_soaes.recipe.check_arithmetic import layout_path
from megatron_soaes.recipe.engine import engine_settings, engine_versions
from megatron_soaes.recipe.fp8 import transformer_engine_rules
from megatron_soaes.recipe.graph import layout_of
from megatron_soaes.recipe.problems import Problem
from megatron_soaes.recipe.schema import EvaluateStage, PreciseStage, Recipe, Stage, TrainingStage

NO_GPU = "this node has no GPU"


@dataclass(frozen=True)
class Substitution:
    """Something that has another form on this machine, with the same result up to rounding."""

    wanted: str
    used: str
    reason: str

    def __str__(self) -> str:
        return f"{self.wanted} -> {self.used}: {self.reason}"


def check_node(recipe: Recipe, machine: Machine) -> list[Problem]:
    """What this node cannot do of the recipe; a job asks this on the node where it starts."""
    problems: list[Problem] = []
    if recipe.cluster and machine.device == "cpu":
        rule = "nothing on a node without a GPU"
        fix = "Start the run on the cluster, or rehearse it here with the override cluster=null."
        problems.append(Problem("cluster.gpu", recipe.cluster.gpu, rule, fix))
    if any(isinstance(stage, EvaluateStage) for stage in recipe.stages):
        problems += _task_files(recipe)
    for stage in recipe.stages:
        if recipe.models.get(stage.model) is None:
            continue
        if machine.device == "cuda":
            problems += _processes(recipe, stage, machine)
        if isinstance(stage, PreciseStage) and stage.precision.fp8:
            problems += _fp8(stage, machine)
        if isinstance(stage, TrainingStage):
            problems += _needing_engine(stage, machine)
    return list(dict.fromkeys(problems))


def _task_files(recipe: Recipe) -> Iterator[Problem]:
    """An evaluation comes late in a run: what it reads must be there when the run starts."""
    for task, file in recipe.evaluation.tasks.items():
        if not file.is_file():
            path = "evaluation." + task.replace("/", ".")
            yield Problem(path, f"no file at {file}", "a JSONL file", "Correct the path.")


def _processes(recipe: Recipe, stage: Stage, machine: Machine) -> Iterator[Problem]:
    """A stage fills whole nodes of the declared cluster; without one it runs on this node alone."""
    processes = layout_of(recipe, stage).processes
    here = min(processes, recipe.cluster.gpus_per_node) if recipe.cluster else processes
    if here > machine.gpu_count:
        found = f"{here} processes on this node"
        rule = f"at most {machine.gpu_count}, its GPUs"
        fix = "Change the layout, or start the stage where there are enough GPUs."
        yield Problem(layout_path(stage), found, rule, fix)


def _fp8(stage: PreciseStage, machine: Machine) -> Iterator[Problem]:
    """Without its hardware Megatron-Core would train in bf16 and say nothing; that is refused."""
    assert stage.precision.fp8 is not None
    path, recipe = f"stages.{stage.name}.precision.fp8", stage.precision.fp8.recipe
    fix = (
        "Run it where this works, or remove fp8: a recipe never runs silently in another precision."
    )
    if machine.device == "cpu":
        yield Problem(path, recipe, "no FP8 on a node without a GPU", fix)
    elif recipe not in machine.fp8_recipes:
        able = ", ".join(machine.fp8_recipes)
        rule = f"one of {able}" if able else "no FP8"
        yield Problem(f"{path}.recipe", recipe, f"{rule} on {machine.gpu_name}", fix)
    version = machine.versions.get("transformer-engine")
    if version is None:
        yield Problem(path, recipe, "no FP8 without the package transformer-engine", fix)
    else:
        yield from transformer_engine_rules(stage, version)


def _needing_engine(stage: TrainingStage, machine: Machine) -> Iterator[Problem]:
    """What only a GPU with Transformer Engine does, and apex for one of it."""
    wanted = dict(engine_settings(stage))
    engine = machine.device == "cuda" and "transformer-engine" in machine.versions
    for field, value in wanted.items():
        if not engine:
            rule = "nothing without a GPU and the package transformer-engine"
            yield Problem(field, value, rule, "Run it where these are, or leave it out.")
    if engine:
        yield from engine_versions(stage, machine.versions["transformer-engine"])
    gradients = f"stages.{stage.name}.kernels.gradient_accumulation"
    if engine and gradients in wanted and machine.apex != "nvidia":
        rule = "false without NVIDIA's apex, which has the kernel for the output layer"
        yield Problem(gradients, "true", rule, "Install apex, or leave it out.")


def substitutions(recipe: Recipe, machine: Machine) -> list[Substitution]:
    """What the recipe's stages use here instead of what they use on a fully equipped GPU node.

    These change speed, not meaning. What would change meaning is a problem of `check_node`.
    """
    layouts = [layout_of(recipe, stage) for stage in recipe.stages]
    training = any(isinstance(stage, TrainingStage) for stage in recipe.stages)
    found = []
    cpu = machine.device == "cpu"
    if cpu and any(layout.processes > 1 for layout in layouts):
        found.append(Substitution("NCCL collectives", "gloo collectives", NO_GPU))
    if cpu and any(
        isinstance(stage, TrainingStage)
        and not stage.overlap.pipeline
        and layout_of(recipe, stage).virtual_pipeline > 1
        for stage in recipe.stages
    ):
        reason = "batched messages give wrong results over gloo"
        found.append(
            Substitution("batched pipeline messages", "single overlapped messages", reason)
        )
    if cpu or "transformer-engine" not in machine.versions:
        reason = NO_GPU if cpu else "transformer-engine is not installed"
        found.append(
            Substitution("Transformer Engine layers", "local layers with PyTorch SDPA", reason)
        )
        if any(layout.context_parallel > 1 for layout in layouts):
            found.append(Substitution("ring attention", "attention over all-gathered keys", reason))
        if training and (cpu or machine.apex != "nvidia"):
            found.append(Substitution("fused AdamW kernels", "PyTorch's fused AdamW", reason))
    return found
