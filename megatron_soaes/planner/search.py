"""Every layout of a number of GPUs: what fits, how fast it is, and why the others do not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_soaes.planner.memory import RankMemory, rank_memory
from megatron_soaes.planner.time import StepTime, step_time
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.check_arithmetic import check_arithmetic, divisors
from megatron_soaes.recipe.data_settings import Blend, Data, Dataset
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.schema import CPTStage, Models, ModelSource, Recipe
from megatron_soaes.recipe.training_settings import Layout, Recompute

GIB = 1 << 30
MOST_CONTEXT = 8
"""Larger context parallelism is for samples of hundreds of thousands of tokens."""
MOST_MICRO_BATCH = 8
MORE_RECOMPUTE = (
    Recompute(),
    Recompute(granularity="selective", modules=["mlp"]),
    Recompute(granularity="full"),
)
"""From what is fastest to what needs least memory; each repeats all that the one before does.

Not core_attn: flash attention keeps next to nothing that recomputing it would save."""


@dataclass(frozen=True)
class Candidate:
    """One layout, with the least recomputation that fits."""

    layout: Layout
    micro_batch_size: int
    recompute: Recompute
    stage: int
    """The pipeline stage that needs most memory; 0 where the layout is against a rule."""
    memory: RankMemory | None
    """Of that stage; None where the layout is against a rule."""
    step: StepTime | None
    """None where it cannot run."""
    why_not: str
    """Why it cannot run; empty where it can."""


def search_layouts(
    workload: Workload, gpus: int, gpu_kind: str, gpus_per_node: int
) -> list[Candidate]:
    """All layouts of exactly `gpus` GPUs for the workload's model and batch, the fastest first.

    Those that cannot run come last, each with its reason. Where nothing is trained the batch is one
    micro-batch of every replica. Tensor parallelism stays within a node and always comes with
    sequence parallelism, which never needs more memory or time. KeyError for an unknown GPU kind.
    """
    capacity = GPUS[gpu_kind].memory_gib * GIB
    rules = _Rules(workload)
    found = []
    for layout in _layouts(workload.shape.layers, gpus, gpus_per_node):
        for micro_batch_size in _micro_batches(workload, layout):
            tried = _in_layout(workload, layout, micro_batch_size)
            broken = rules.broken(tried)
            if broken:
                found.append(
                    Candidate(layout, micro_batch_size, tried.recompute, 0, None, None, broken)
                )
            else:
                found.append(_measured(tried, capacity, gpu_kind, gpus_per_node))
    return sorted(found, key=_rank)


def _rank(candidate: Candidate) -> tuple[float, int, int, int]:
    """Fastest first; of equals the one that is cut and batched least."""
    layout, step = candidate.layout, candidate.step
    seconds_a_token = 1 / step.tokens_per_second if step else math.inf
    return (
        seconds_a_token, layout.model_parallel, layout.virtual_pipeline, candidate.micro_batch_size,
    )  # fmt: skip


def _layouts(layers: int, gpus: int, gpus_per_node: int) -> Iterator[Layout]:
    for tensor in divisors(gpus_per_node):
        for pipeline in divisors(gpus, limit=min(gpus, layers)):
            for context in divisors(gpus, limit=MOST_CONTEXT):
                if gpus % (tensor * pipeline * context):
                    continue
                ends = uneven_ends(layers, pipeline)
                each = layers // pipeline
                chunks = divisors(each, limit=each) if pipeline > 1 and not ends else [1]
                for virtual in chunks:
                    yield Layout(
                        tensor_parallel=tensor,
                        sequence_parallel=tensor > 1,
                        pipeline_parallel=pipeline,
                        virtual_pipeline=virtual,
                        context_parallel=context,
                        data_parallel=gpus // (tensor * pipeline * context),
                        **ends,
                    )


def uneven_ends(layers: int, pipeline: int) -> dict[str, int]:
    """Layers of the first and the last stage where the stages cannot have as many; {} if they can.

    The inner stages get one layer more than an even cut, rounded down, would give, and the ends
    share what is left, the last stage, which has the output layer, the smaller part.
    """
    if layers % pipeline == 0:
        return {}
    rest = layers - (layers // pipeline + 1) * (pipeline - 2)
    if rest < 2:
        return {}
    return {"first_stage_layers": rest - rest // 2, "last_stage_layers": rest // 2}


def _micro_batches(workload: Workload, layout: Layout) -> list[int]:
    """Powers of two that leave a replica whole micro-batches; 1 in any case, for its reason."""
    if workload.optimizer is None:
        return [size for size in (1, 2, 4, 8) if size <= MOST_MICRO_BATCH]
    each = workload.global_batch_size // layout.data_parallel
    sizes = [size for size in (2, 4, 8) if size <= MOST_MICRO_BATCH and each % size == 0 and each]
    return [1, *sizes]


def _in_layout(workload: Workload, layout: Layout, micro_batch_size: int) -> Workload:
    batch = workload.global_batch_size
    if workload.optimizer is None:
        batch = micro_batch_size * layout.data_parallel
    return replace(
        workload, layout=layout, micro_batch_size=micro_batch_size, global_batch_size=batch,
        recompute=MORE_RECOMPUTE[0],
    )  # fmt: skip


def _measured(workload: Workload, capacity: int, gpu_kind: str, gpus_per_node: int) -> Candidate:
    """With the least recomputation that fits, or with all of it where none does."""
    rungs = MORE_RECOMPUTE if workload.optimizer is not None else MORE_RECOMPUTE[:1]
    asked = replace(workload, recompute=rungs[-1])
    stage, memory = fullest_stage(asked)
    layout, micro_batch_size = workload.layout, workload.micro_batch_size
    if memory.total > capacity:
        why_not = f"does not fit: {memory.total / GIB:.1f} of {capacity // GIB} GiB"
        why_not += f" at pipeline stage {stage}" + (", all recomputed" if len(rungs) > 1 else "")
        return Candidate(layout, micro_batch_size, asked.recompute, stage, memory, None, why_not)
    for recompute in rungs[:-1]:
        less = replace(workload, recompute=recompute)
        needed = fullest_stage(less)
        if needed[1].total <= capacity:
            asked, (stage, memory) = less, needed
            break
    step = step_time(asked, gpu_kind, gpus_per_node)
    return Candidate(layout, micro_batch_size, asked.recompute, stage, memory, step, "")


def fullest_stage(workload: Workload) -> tuple[int, RankMemory]:
    """The pipeline stage that needs most memory, and what each of its ranks needs.

    The inner stages hold alike, and the later the fewer micro-batches: the second stands for them.
    """
    short, last = _shortened(workload), workload.layout.pipeline_parallel - 1
    stages = sorted({0, min(1, last), last})
    needs = [(stage, rank_memory(short, stage)) for stage in stages]
    return max(needs, key=lambda need: need[1].total)


def _shortened(workload: Workload) -> Workload:
    """The same with fewer micro-batches: memory is at its most once the pipeline is full."""
    layout = workload.layout
    enough = min(workload.micro_batches, 3 * layout.pipeline_parallel)
    return replace(
        workload, global_batch_size=enough * workload.micro_batch_size * layout.data_parallel
    )


class _Rules:
    """The recipe's own rules, asked about one layout after the other."""

    def __init__(self, workload: Workload) -> None:
        self._shape = workload.shape
        # Only what the rules about layouts read is of the workload; the rest has to be something.
        self._stage = CPTStage(
            name="search", kind="cpt", blend="any", steps=1,
            sequence_length=workload.sequence_length,
            global_batch_size=workload.global_batch_size,
            precision=workload.precision, overlap=workload.overlap,
        )  # fmt: skip
        model = ModelSource(source=Path("any"), vocab_size_multiple=workload.vocab_size)
        data = Data(
            datasets={"any": Dataset(text=["any"])}, blends={"any": Blend(weights={"any": 1})}
        )
        self._recipe = Recipe(
            version=1, name="search", workdir=Path("any"), models=Models(target=model), data=data
        )

    def broken(self, workload: Workload) -> str:
        """The rules that the workload's layout breaks, in one line; empty when it keeps all."""
        stage = self._stage.model_copy(
            update={
                "layout": workload.layout,
                "micro_batch_size": workload.micro_batch_size,
                "global_batch_size": workload.global_batch_size,
            }
        )
        recipe = self._recipe.model_copy(update={"stages": [stage]})
        problems = check_arithmetic(recipe, {"target": self._shape})
        if workload.teacher is not None:
            problems += check_arithmetic(recipe, {"target": workload.teacher})
        reasons = (
            f"{problem.path.rpartition('.')[2]} {problem.value}: expected {problem.rule}"
            for problem in dict.fromkeys(problems)
        )
        return "; ".join(reasons)
