"""The machine-free check: does the recipe fit together, and does each layout fit its model?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from megatron_soaes.recipe.check_distillation import check_distillation
from megatron_soaes.recipe.check_evaluation import check_evaluation
from megatron_soaes.recipe.check_references import check_references
from megatron_soaes.recipe.check_schedule import check_schedule
from megatron_soaes.recipe.engine import engine_arithmetic
from megatron_soaes.recipe.fp8 import fp8_arithmetic
from megatron_soaes.recipe.graph import layout_of, steps_of
from megatron_soaes.recipe.problems import Problem
from megatron_soaes.recipe.schema import (
    CaptureStage,
    DistillStage,
    EvaluateStage,
    ModelName,
    Recipe,
    Stage,
    TrainingStage,
)
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout, Recompute


def check_arithmetic(recipe: Recipe, shapes: Mapping[ModelName, ModelShape]) -> list[Problem]:
    """Every broken rule that needs no machine. A model that is not in `shapes` is not measured."""
    problems = [
        *check_references(recipe),
        *check_evaluation(recipe, shapes),
        *check_distillation(recipe, shapes),
    ]
    for name, shape in shapes.items():
        problems += _model(recipe, name, shape)
    for stage in recipe.stages:
        model = recipe.models.get(stage.model)
        if model is None:
            continue
        layout = layout_of(recipe, stage)
        path = layout_path(stage)
        shape_or_none = shapes.get(stage.model)
        problems += _layout(layout, path, model.vocab_size_multiple)
        if shape_or_none:
            problems += _layout_of_shape(layout, path, shape_or_none)
        if isinstance(stage, EvaluateStage) and recipe.evaluation.has_windows:
            length, field = recipe.evaluation.sequence_length, "evaluation.sequence_length"
            problems += _sequence(length, field, layout, shape_or_none)
        if isinstance(stage, CaptureStage):
            path = f"stages.{stage.name}"
            problems += _sequence(
                stage.sequence_length, f"{path}.sequence_length", layout, shape_or_none
            )
            if stage.precision.fp8:
                problems += fp8_arithmetic(stage, layout, shape_or_none)
        if isinstance(stage, DistillStage) and stage.teacher and "target" in shapes:
            problems += _layout_of_shape(layout, path, shapes["target"])
        if isinstance(stage, TrainingStage):
            problems += _training(stage, steps_of(recipe, stage), layout, shape_or_none)
    return list(dict.fromkeys(problems))


def layout_path(stage: Stage) -> str:
    """Where the layout of a stage is written: in the stage, or in its model."""
    return f"stages.{stage.name}.layout" if stage.layout else f"models.{stage.model}.layout"


def _model(recipe: Recipe, name: ModelName, shape: ModelShape) -> Iterator[Problem]:
    model = recipe.models.get(name)
    if model and model.family not in (None, shape.family):
        fix = "Give the source you meant, or correct the family."
        rule = f"{shape.family}, which its config.json says"
        yield Problem(f"models.{name}.family", str(model.family), rule, fix)
    if shape.heads % shape.kv_heads:
        found = f"{shape.heads} heads and {shape.kv_heads} KV heads"
        rule = "KV heads that divide the heads"
        yield Problem(f"models.{name}.source", found, rule, "Repair its config.json.")


def _layout(layout: Layout, path: str, vocab_multiple: int) -> Iterator[Problem]:
    tensor, pipeline = layout.tensor_parallel, layout.pipeline_parallel
    if vocab_multiple % tensor:
        fix = f"Set the model's vocab_size_multiple to {math.lcm(vocab_multiple, tensor)}."
        rule = f"a divisor of vocab_size_multiple, {vocab_multiple}"
        yield Problem(f"{path}.tensor_parallel", str(tensor), rule, fix)
    if layout.sequence_parallel and tensor == 1:
        fix = "Set it to false, or tensor_parallel to 2 or more."
        rule = "false, because tensor_parallel is 1"
        yield Problem(f"{path}.sequence_parallel", "true", rule, fix)
    if layout.virtual_pipeline > 1 and pipeline == 1:
        fix = "Set it to 1, or pipeline_parallel to 2 or more."
        rule = "1, because pipeline_parallel is 1"
        yield Problem(f"{path}.virtual_pipeline", str(layout.virtual_pipeline), rule, fix)


def _layout_of_shape(layout: Layout, path: str, shape: ModelShape) -> Iterator[Problem]:
    tensor = f"{path}.tensor_parallel"
    yield from _divisor(tensor, layout.tensor_parallel, shape.heads, "attention heads")
    yield from _divisor(tensor, layout.tensor_parallel, shape.ffn, "FFN width")
    # Megatron-Core repeats KV heads over processes when there are fewer heads than processes.
    if shape.kv_heads % layout.tensor_parallel and layout.tensor_parallel % shape.kv_heads:
        rule = f"a divisor or a multiple of the KV heads, {shape.kv_heads}"
        value = str(layout.tensor_parallel)
        yield Problem(tensor, value, rule, f"Use {_listed(divisors(shape.kv_heads))}.")
    yield from _pipeline_stages(layout, path, shape.layers)


def _pipeline_stages(layout: Layout, path: str, layers: int) -> Iterator[Problem]:
    """Layers of every pipeline stage: those given for the ends, the rest cut evenly."""
    ends = {
        "first_stage_layers": layout.first_stage_layers,
        "last_stage_layers": layout.last_stage_layers,
    }
    given = {field: count for field, count in ends.items() if count is not None}
    for field, count in given.items():
        if layout.pipeline_parallel == 1:
            rule = "nothing, because pipeline_parallel is 1"
            yield Problem(f"{path}.{field}", str(count), rule, "Remove it, or add stages.")
            return
        yield from _multiple(f"{path}.{field}", count, layout.virtual_pipeline, "virtual_pipeline")
    rest, stages = layers - sum(given.values()), layout.pipeline_parallel - len(given)
    if given and (rest < stages or (stages == 0 and rest) or (stages and rest % stages)):
        found = f"{rest} of {layers} layers for the other {stages} stages"
        rule = "as many for each, and at least one"
        fix = "Change first_stage_layers or last_stage_layers."
        yield Problem(f"{path}.{next(iter(given))}", found, rule, fix)
        return
    if stages == 0 and layout.virtual_pipeline > 1:
        # Megatron-Core 0.16.1 divides by the stages between the ends (get_num_layers_to_build).
        rule = "1, because the two ends are all stages"
        fix = "Give the layers of one end only: those of the other follow."
        yield Problem(f"{path}.virtual_pipeline", str(layout.virtual_pipeline), rule, fix)
    if not given:
        yield from _divisor(f"{path}.pipeline_parallel", stages, layers, "layers")
    if layout.pipeline_parallel > 1 and stages and rest % stages == 0:
        chunks, each = layout.virtual_pipeline, rest // stages
        yield from _divisor(f"{path}.virtual_pipeline", chunks, each, "layers of a pipeline stage")


def _training(
    stage: TrainingStage, steps: int | None, layout: Layout, shape: ModelShape | None
) -> Iterator[Problem]:
    path = f"stages.{stage.name}"
    yield from _sequence(stage.sequence_length, f"{path}.sequence_length", layout, shape)
    yield from _batch(stage, layout)
    yield from check_schedule(stage, steps)
    if stage.overlap.param_gather and not stage.overlap.grad_reduce:
        rule, fix = "false, because overlap.grad_reduce is false", "Set both, or neither."
        yield Problem(f"{path}.overlap.param_gather", "true", rule, fix)
    yield from _recompute(stage.recompute, f"{path}.recompute")
    if stage.profile:
        yield from _profile(stage, steps, layout)
    if stage.precision.fp8:
        yield from fp8_arithmetic(stage, layout, shape)
    yield from engine_arithmetic(stage, layout)


def _sequence(
    length: int, path: str, layout: Layout, shape: ModelShape | None
) -> Iterator[Problem]:
    """Context parallelism cuts a sequence into 2 x CP chunks, sequence parallelism into TP more."""
    context = layout.context_parallel
    if context > 1:
        yield from _multiple(path, length, 2 * context, "2 x context_parallel")
    if layout.sequence_parallel:
        parts = context * layout.tensor_parallel
        yield from _multiple(path, length, parts, "context_parallel x tensor_parallel")
    if shape and length > shape.max_position:
        rule = f"at most {shape.max_position}, the positions the model was built for"
        yield Problem(path, str(length), rule, f"Use {shape.max_position} or less.")


def _batch(stage: TrainingStage, layout: Layout) -> Iterator[Problem]:
    path = f"stages.{stage.name}.global_batch_size"
    batch, step = stage.global_batch_size, stage.micro_batch_size * layout.data_parallel
    yield from _multiple(path, batch, step, "micro_batch_size x data_parallel")
    if layout.virtual_pipeline > 1 and batch % step == 0:
        parts = "micro_batch_size x data_parallel x pipeline_parallel: the interleaved schedule"
        yield from _multiple(path, batch, step * layout.pipeline_parallel, parts)


def _recompute(recompute: Recompute, path: str) -> Iterator[Problem]:
    modules, listed = recompute.modules, ", ".join(recompute.modules) or "nothing"
    if recompute.granularity == "selective":
        if not modules or len(set(modules)) < len(modules):
            fix = "List what to recompute, each once, or set granularity to none."
            yield Problem(f"{path}.modules", listed, "modules, each once", fix)
    elif modules != Recompute.model_fields["modules"].default:
        fix = "Remove the list, or set granularity to selective."
        rule = f"no list, because granularity is {recompute.granularity}"
        yield Problem(f"{path}.modules", listed, rule, fix)


def _profile(stage: TrainingStage, steps: int | None, layout: Layout) -> Iterator[Problem]:
    assert stage.profile is not None
    path = f"stages.{stage.name}.profile"
    first, last = stage.profile.steps
    if not first <= last <= (steps or last):
        upto = f", up to {steps}" if steps else ""
        fix = f"Choose a first and a last step, in order{upto}."
        yield Problem(f"{path}.steps", f"{first} to {last}", f"a range of steps{upto}", fix)
    for rank in stage.profile.ranks:
        if rank >= layout.processes:
            rule = f"a rank below {layout.processes}, the stage's processes"
            yield Problem(f"{path}.ranks", str(rank), rule, "Choose a rank that exists.")


def _divisor(path: str, number: int, whole: int, what: str) -> Iterator[Problem]:
    if whole % number:
        rule = f"a divisor of the {what}, {whole}"
        yield Problem(path, str(number), rule, f"Use {_listed(divisors(whole))}.")


def _multiple(path: str, number: int, step: int, what: str) -> Iterator[Problem]:
    if number % step:
        below = number // step * step
        options = [option for option in (below, below + step) if option]
        rule = f"a multiple of {step} ({what})"
        yield Problem(path, str(number), rule, f"Use {_listed(options)}.")


def divisors(number: int, limit: int = 64) -> list[int]:
    """Divisors of `number` up to `limit`, ascending: layouts one could choose."""
    return [divisor for divisor in range(1, limit + 1) if number % divisor == 0]


def _listed(options: list[int]) -> str:
    *head, last = map(str, options)
    return f"{', '.join(head)} or {last}" if head else last
