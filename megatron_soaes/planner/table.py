"""A plan and a ranking of layouts as tables for the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Column, Table

from megatron_soaes.planner.plan import RecipePlan, StagePlan
from megatron_soaes.planner.search import GIB, Candidate
from megatron_soaes.recipe.training_settings import Layout, Recompute

MEMORY_PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "fp8_copies",
    "teacher",
    "updating",
    "saving",
    "margin",
)
STEP_PARTS = (
    "compute",
    "pipeline_bubble",
    "tensor_parallel",
    "context_parallel",
    "pipeline_parallel",
    "data_parallel",
    "optimizer",
)


def memory_table(plan: RecipePlan) -> Table:
    """GiB of a rank of each pipeline stage of each stage; parts that none has are left out."""
    ranks = [memory for stage in plan.stages for memory in stage.memory]
    names = [name for name in MEMORY_PARTS if any(getattr(memory, name) for memory in ranks)]
    table = Table(
        Column("stage", no_wrap=True), "layout", "pipeline stage",
        *(name.replace("_", " ") for name in names), "total", "of",
        title=f"{plan.recipe}: GiB on each GPU",
        caption="Activations and logits, an update and a save are never there together: the total "
        "has the largest.",
    )  # fmt: skip
    for stage in plan.stages:
        for number, memory in enumerate(stage.memory):
            parts = (_gib(getattr(memory, name)) for name in names)
            first = number == 0
            table.add_row(
                stage.name if first else "",
                layout_words(stage.workload.layout) if first else "",
                str(number), *parts, _gib(memory.total), _gib(stage.capacity),
                style="red" if memory.total > stage.capacity else None,
            )  # fmt: skip
    return table


def time_table(plan: RecipePlan) -> Table:
    """Seconds of a step by cause, and what becomes of them."""
    cluster = plan.cluster
    table = Table(
        Column("stage", no_wrap=True), *(name.replace("_", " ") for name in STEP_PARTS),
        "step, s", "MFU", "tokens/s", "steps", "tokens", "days", "GPU-hours",
        title=f"{plan.recipe}: time on {cluster.gpu}, {cluster.gpus_per_node} a node",
        caption="By a model calibrated on published runs (docs/planner.md), not measured.",
    )  # fmt: skip
    for stage in plan.stages:
        if stage.step is None:
            continue
        parts = (f"{getattr(stage.step, name):.2f}" for name in STEP_PARTS)
        table.add_row(
            stage.name, *parts, f"{stage.step.total:.2f}", f"{stage.step.mfu:.1%}",
            f"{stage.step.tokens_per_second:,.0f}", *_duration(stage),
        )  # fmt: skip
    return table


def disk_table(plan: RecipePlan) -> Table:
    """Checkpoints and stores, and what is to be said of a stage."""
    table = Table(
        Column("stage", no_wrap=True), "a checkpoint, GB", "to save it, s",
        "capture store, GB", Column("remark", overflow="fold"),
        title=f"{plan.recipe}: on the disk",
        caption=f"Saving at {plan.disk_gb_s:g} GB/s, all writers together.",
    )  # fmt: skip
    for stage in plan.stages:
        table.add_row(
            stage.name,
            "" if stage.checkpoint is None else f"{stage.checkpoint / 1e9:,.1f}",
            "" if stage.save_seconds is None else f"{stage.save_seconds:,.0f}",
            "" if stage.store is None else f"{stage.store / 1e9:,.1f}",
            stage.remark,
        )
    return table


def layouts_table(candidates: Sequence[Candidate], most: int = 10) -> Table:
    """The fastest layouts that run."""
    running = [one for one in candidates if one.step]
    table = Table(
        "layout", "micro batch", "recompute", "GiB", "fullest at", "step, s", "MFU", "tokens/s",
        title=f"The fastest of {len(running)} layouts that fit, of {len(candidates)}",
    )  # fmt: skip
    for one in running[:most]:
        assert one.step is not None
        assert one.memory is not None
        table.add_row(
            layout_words(one.layout), str(one.micro_batch_size), recompute_words(one.recompute),
            _gib(one.memory.total), f"pipeline stage {one.stage}", f"{one.step.total:.2f}",
            f"{one.step.mfu:.1%}", f"{one.step.tokens_per_second:,.0f}",
        )  # fmt: skip
    return table


def why_not_table(candidates: Sequence[Candidate]) -> Table:
    """Every layout that cannot run with the reason, once for all its micro-batches and chunks."""
    table = Table("layout", "why not", title="Layouts that cannot run")
    reasons: dict[str, str] = {}
    runs = {_outline(one.layout) for one in candidates if one.step}
    for one in candidates:
        if one.why_not and _outline(one.layout) not in runs:
            reasons.setdefault(_outline(one.layout), one.why_not)
    for layout, why_not in reasons.items():
        table.add_row(layout, why_not)
    return table


def _outline(layout: Layout) -> str:
    """A layout without its chunks."""
    return layout_words(layout.model_copy(update={"virtual_pipeline": 1}))


def layout_words(layout: Layout) -> str:
    """Such as `TP 8, SP, PP 4, VP 5, DP 2`; what is 1 is left out, data parallelism never."""
    sizes = {
        "TP": layout.tensor_parallel,
        "PP": layout.pipeline_parallel,
        "VP": layout.virtual_pipeline,
        "CP": layout.context_parallel,
    }
    words = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if layout.sequence_parallel:
        words.insert(1, "SP")
    ends = layout.first_stage_layers, layout.last_stage_layers
    if any(ends):
        words.append("ends " + "/".join(str(count or "even") for count in ends))
    return ", ".join([*words, f"DP {layout.data_parallel}"])


def recompute_words(recompute: Recompute) -> str:
    """Such as `core_attn, mlp`, or `none`, or `full`."""
    selective = recompute.granularity == "selective"
    return ", ".join(recompute.modules) if selective else recompute.granularity


def _duration(stage: StagePlan) -> tuple[str, str, str, str]:
    duration = stage.duration
    if duration is None:
        return "by the data", "", "", ""
    return (
        f"{duration.steps:,}", f"{duration.tokens / 1e9:.2f} B", f"{duration.days:.2f}",
        f"{duration.gpu_hours:,.0f}",
    )  # fmt: skip


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size else ""
