"""What a recipe costs on a cluster, stage by stage, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from megatron_soaes.errors import UserError
from megatron_soaes.planner.memory import (
    RankMemory,
    cache_bytes,
    capture_store_bytes,
    checkpoint_bytes,
    rank_memory,
)
from megatron_soaes.planner.search import GIB, MORE_RECOMPUTE, fullest_stage
from megatron_soaes.planner.time import StepTime, step_time
from megatron_soaes.planner.workload import Workload, workload_of
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.graph import layout_of, model_of, steps_of
from megatron_soaes.recipe.problems import Problem, did_you_mean
from megatron_soaes.recipe.schema import (
    AnyStage,
    AnyTrainingStage,
    CaptureStage,
    Cluster,
    EvaluateStage,
    ModelName,
    Recipe,
    RespondStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout, Precision
from megatron_soaes.wording import counted

DISK_GB_S = 5.0
"""Assumed where nothing is said: what all writers of a checkpoint reach together on a shared disk,
GB/s."""
HOUR, DAY = 3600, 86400
CACHED_TOKENS = 1024
"""How much longer a generated text becomes for the figure that is told of its cache."""


@dataclass(frozen=True)
class Duration:
    """How long a stage takes where its steps are known; validation is not counted."""

    steps: int
    tokens: int
    seconds: float
    """Of all steps, and of all saves that training waits for."""
    gpus: int

    @property
    def days(self) -> float:
        """Of wall clock."""
        return self.seconds / DAY

    @property
    def gpu_hours(self) -> float:
        """On the GPUs of the stage's own layout."""
        return self.seconds * self.gpus / HOUR


@dataclass(frozen=True)
class StagePlan:
    """One stage of a recipe on one kind of GPU."""

    name: str
    kind: str
    workload: Workload
    memory: tuple[RankMemory, ...]
    """Of a rank of each pipeline stage."""
    capacity: int
    """Bytes of one GPU."""
    step: StepTime | None
    """None for stages that generate or judge: their time depends on the texts."""
    duration: Duration | None
    """None where the data decides how many steps there are, or nothing is trained or captured."""
    checkpoint: int | None
    """Bytes of one checkpoint; None for a stage that saves none."""
    save_seconds: float | None
    """To write one."""
    store: int | None
    """Bytes of a capture's store; None for other stages and where the data decides."""
    remark: str
    """What else is to be known, as a sentence; empty where there is nothing."""

    @property
    def fits(self) -> bool:
        """Whether every rank has the memory it needs."""
        return all(one.total <= self.capacity for one in self.memory)


@dataclass(frozen=True)
class RecipePlan:
    """All stages that need GPUs, in the recipe's order."""

    recipe: str
    cluster: Cluster
    disk_gb_s: float
    stages: tuple[StagePlan, ...]


def plan_recipe(
    recipe: Recipe,
    shapes: Mapping[ModelName, ModelShape],
    cluster: Cluster,
    samples: Mapping[str, int] | None = None,
    disk_gb_s: float = DISK_GB_S,
) -> RecipePlan:
    """Memory, time and bytes of each stage of a recipe that has passed its checks.

    `samples` says how many samples of its sequence length a stage goes through in all, for stages
    whose recipe gives epochs; `disk_gb_s` is what writers of a checkpoint reach together. Raises
    UserError for a GPU without figures, and for a name in `samples` that is no such stage.
    """
    if cluster.gpu not in GPUS:
        fix = did_you_mean(cluster.gpu, GPUS)
        raise UserError("cluster.gpu", repr(cluster.gpu), "a GPU kind we have figures of", fix)
    asked = _Asked(recipe, shapes, cluster, samples or {}, disk_gb_s)
    countable = [one.name for one in recipe.stages if _counts_by_data(recipe, one)]
    for name in asked.samples:
        if name not in countable:
            rule = "a stage that goes through epochs; of others the recipe says how long they are"
            fix = did_you_mean(name, countable)
            raise UserError(f"samples of '{name}'", "no such stage", rule, fix)
    stages = []
    for stage in recipe.stages:
        if isinstance(stage, AnyTrainingStage):
            stages.append(_trained(asked, stage))
        elif isinstance(stage, CaptureStage):
            stages.append(_captured(asked, stage))
        elif isinstance(stage, RespondStage | EvaluateStage) and _on_gpus(stage):
            stages.append(_read(asked, stage))
    return RecipePlan(recipe.name, cluster, disk_gb_s, tuple(stages))


@dataclass(frozen=True)
class _Asked:
    recipe: Recipe
    shapes: Mapping[ModelName, ModelShape]
    cluster: Cluster
    samples: Mapping[str, int]
    disk_gb_s: float


def _counts_by_data(recipe: Recipe, stage: AnyStage) -> bool:
    """Whether the data decides how many samples a stage goes through."""
    if isinstance(stage, CaptureStage):
        return stage.samples is None
    return isinstance(stage, AnyTrainingStage) and steps_of(recipe, stage) is None


def _on_gpus(stage: AnyStage) -> bool:
    """Whether the stage holds the model itself; an endpoint is somebody else's."""
    return not (isinstance(stage, RespondStage) and stage.backend == "endpoint")


def _trained(asked: _Asked, stage: AnyTrainingStage) -> StagePlan:
    workload = workload_of(asked.recipe, stage, asked.shapes)
    base = _base(asked, stage, workload)
    assert base.step is not None
    steps = steps_of(asked.recipe, stage)
    if stage.name in asked.samples:
        steps = math.ceil(asked.samples[stage.name] / stage.global_batch_size)
    checkpoint = checkpoint_bytes(workload)
    save_seconds = checkpoint / (asked.disk_gb_s * 1e9)
    duration = None
    if steps is not None:
        seconds = steps * base.step.total
        if not stage.checkpoints.asynchronous:
            seconds += math.ceil(steps / stage.checkpoints.every) * save_seconds
        gpus = workload.layout.processes
        duration = Duration(steps, steps * base.step.tokens, seconds, gpus)
    return replace(
        base,
        duration=duration,
        checkpoint=checkpoint,
        save_seconds=save_seconds,
        remark="" if duration else "Its steps depend on the data.",
    )


def _captured(asked: _Asked, stage: CaptureStage) -> StagePlan:
    workload = workload_of(asked.recipe, stage, asked.shapes)
    base = _base(asked, stage, workload)
    assert base.step is not None
    samples = stage.samples or asked.samples.get(stage.name)
    if samples is None:
        return replace(base, remark="Its samples depend on the data.")
    samples += len(stage.validation) * stage.validation_samples
    steps = math.ceil(samples / workload.global_batch_size)
    tokens = samples * stage.sequence_length
    gpus = workload.layout.processes
    return replace(
        base,
        duration=Duration(steps, tokens, steps * base.step.total, gpus),
        store=capture_store_bytes(stage, samples),
    )


def _read(asked: _Asked, stage: RespondStage | EvaluateStage) -> StagePlan:
    """A stage that generates or judges: its weights, and one forward pass."""
    recipe, judging = asked.recipe, asked.recipe.evaluation
    if isinstance(stage, RespondStage):
        length, samples = stage.document_prefix + stage.sampling.max_new_tokens, 1
        layout = layout_of(recipe, stage) if stage.backend == "megatron" else Layout()
        rows = stage.batch_size
    else:
        length, samples = judging.sequence_length, judging.micro_batch_size
        layout = layout_of(recipe, stage)
        rows = judging.batch_size if judging.questions or judging.choices else 0
    shape = asked.shapes[stage.model]
    # Generating splits no sequence, so what it works with is counted whole.
    layout = layout.model_copy(update={"context_parallel": 1})
    workload = Workload(
        shape=shape,
        vocab_size=shape.padded_vocab_size(model_of(recipe, stage).vocab_size_multiple),
        layout=layout,
        sequence_length=length,
        micro_batch_size=samples,
        global_batch_size=samples * layout.data_parallel,
        precision=Precision(dtype=stage.dtype),
    )
    remark = f"Counted for {counted(samples, 'sample')} of {length:,} tokens."
    if rows:
        more = cache_bytes(workload, rows, CACHED_TOKENS) / GIB
        remark += f" The cache of {counted(rows, 'text')} takes {more:.1f} GiB more for every"
        remark += f" {CACHED_TOKENS:,} tokens of the longest, prompt and answer."
    return replace(_base(asked, stage, workload), step=None, remark=remark)


def _base(asked: _Asked, stage: AnyStage, workload: Workload) -> StagePlan:
    """What all stages have: memory and the time of a step."""
    cluster, stages = asked.cluster, range(workload.layout.pipeline_parallel)
    return StagePlan(
        name=stage.name,
        kind=stage.kind,
        workload=workload,
        memory=tuple(rank_memory(workload, number) for number in stages),
        capacity=GPUS[cluster.gpu].memory_gib * GIB,
        step=step_time(workload, cluster.gpu, cluster.gpus_per_node),
        duration=None,
        checkpoint=None,
        save_seconds=None,
        store=None,
        remark="",
    )


def problems(plan: RecipePlan) -> list[Problem]:
    """Every pipeline stage that needs more memory than its GPUs have, and what would help."""
    return [problem for stage in plan.stages for problem in _too_large(stage, plan.cluster)]


def _too_large(stage: StagePlan, cluster: Cluster) -> Iterator[Problem]:
    layout = stage.workload.layout
    for number, memory in enumerate(stage.memory):
        if memory.total <= stage.capacity:
            continue
        # Pipeline stages are the outermost cut: each has a run of neighbouring ranks.
        rank = number * (layout.processes // layout.pipeline_parallel)
        where = f"stage {stage.name}, rank {rank} (pipeline stage {number})"
        found = f"{memory.total / GIB:.1f} of {stage.capacity // GIB} GiB: {parts_of(memory)}"
        rule = f"what one {cluster.gpu} holds"
        yield Problem(where, found, rule, _what_helps(stage))


def parts_of(memory: RankMemory) -> str:
    """What a rank's memory is made of, in GiB, the parts of the peak that are not zero."""
    in_turn = [("activations", "logits"), ("updating",), ("saving",)]
    peak = max(in_turn, key=lambda names: sum(getattr(memory, name) for name in names))
    elsewhere = {name for names in in_turn if names is not peak for name in names}
    parts = {name: size for name, size in vars(memory).items() if size and name not in elsewhere}
    return ", ".join(f"{name.replace('_', ' ')} {size / GIB:.1f}" for name, size in parts.items())


def _what_helps(stage: StagePlan) -> str:
    """The least recomputation with which the whole stage fits, or where to look instead."""
    workload = stage.workload
    if workload.optimizer is not None:
        for recompute in MORE_RECOMPUTE:
            _, memory = fullest_stage(replace(workload, recompute=recompute))
            if memory.total <= stage.capacity:
                chosen = f"recompute.granularity {recompute.granularity}"
                if recompute.granularity == "selective":
                    chosen += f" of {', '.join(recompute.modules)}"
                return f"Try {chosen}: it needs {memory.total / GIB:.1f} GiB."
    if stage.kind == "respond":
        return "Raise tensor_parallel of its layout, with the backend megatron."
    if stage.kind == "evaluate":
        return "Raise tensor_parallel of its layout."
    return f"Cut the model over more GPUs: --layouts {stage.name} says which layouts fit."
