"""What FP8 asks for: matrix sizes, and the Transformer Engine that has each recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_soaes.recipe.problems import Problem
from megatron_soaes.recipe.schema import CaptureStage, PreciseStage
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import FP8, Layout

TRANSFORMER_ENGINE_SINCE = {
    "delayed": "1.0.0",
    "tensorwise": "2.2.0",
    "mxfp8": "2.1.0",
    "blockwise": "2.3.0",
}
"""First version with each recipe (Megatron-Core 0.16.1, fp8_utils.get_fp8_recipe)."""

ONLY_DELAYED = frozenset({"attention", "amax_history", "amax_compute", "margin"})
"""Settings of scaling factors that are found from steps before; FP8 attention among them, which is
held back for the other recipes until it was measured with them."""

LAYERNORM_RECOMPUTE_SINCE = "2.6.0"
"""First version that recomputes norms under FP8 (Megatron-Core 0.16.1, TransformerConfig)."""


def fp8_arithmetic(
    stage: PreciseStage, layout: Layout, shape: ModelShape | None
) -> Iterator[Problem]:
    """Broken rules of the stage's FP8 settings that need no machine; the stage has FP8 on."""
    fp8 = stage.precision.fp8
    assert fp8 is not None
    path = f"stages.{stage.name}.precision"
    if stage.precision.dtype != "bf16":
        fix = "Set dtype to bf16, or remove fp8."
        yield Problem(f"{path}.dtype", stage.precision.dtype, "bf16 under fp8", fix)
    if fp8.recipe == "delayed":
        if fp8.first_last_layers_bf16:
            fix = "Set it to false, or choose another FP8 recipe."
            field = f"{path}.fp8.first_last_layers_bf16"
            yield Problem(field, "true", "false with the delayed recipe", fix)
        if _recomputes_norms(stage):
            fix = "Take layernorm out of the list, or choose another FP8 recipe."
            rule = "no layernorm with the delayed FP8 recipe"
            yield Problem(f"stages.{stage.name}.recompute.modules", "layernorm", rule, fix)
    else:
        for field in sorted(ONLY_DELAYED & fp8.model_fields_set):
            fix = "Leave it out, or choose the delayed recipe."
            rule = f"nothing with {fp8.recipe}, which keeps no history"
            yield Problem(f"{path}.fp8.{field}", str(getattr(fp8, field)), rule, fix)
    if fp8.recipe == "mxfp8" and fp8.param_gather:
        fix = "Set it to false, or choose another FP8 recipe."
        rule = "false with mxfp8, whose weights have two forms"
        yield Problem(f"{path}.fp8.param_gather", "true", rule, fix)
    if isinstance(stage, CaptureStage) and fp8.param_gather:
        fix = "Leave it out: nothing is gathered where nothing is trained."
        yield Problem(f"{path}.fp8.param_gather", "true", "false in a capture", fix)
    if shape:
        yield from _dimensions(stage, layout, shape, f"{path}.fp8")


@dataclass(frozen=True)
class Filling:
    """What packed documents are filled up to."""

    document: int = 1
    """A multiple of this: each."""
    whole: int = 1
    """A multiple of this, and of `document`: all of a micro-batch together, with the last."""


def filling_of(layout: Layout, fp8: FP8 | None = None) -> Filling:
    """What a layout asks of documents, and FP8 of the tokens of each process.

    Without context parallelism nothing is filled up: a sample's length is the recipe's, whose
    checks look at it.
    """
    if layout.context_parallel == 1:
        return Filling()
    whole = side_multiple(fp8) * layout.sequence_parts if fp8 else 1
    document = 2 * layout.sequence_parts
    return Filling(document, math.lcm(document, whole))


def side_multiple(fp8: FP8) -> int:
    """What every side of an FP8 matrix is a multiple of: a block's side for mxfp8."""
    return 32 if fp8.recipe == "mxfp8" else 16


def _dimensions(
    stage: PreciseStage, layout: Layout, shape: ModelShape, path: str
) -> Iterator[Problem]:
    """Every side of every FP8 matrix product is a multiple of 16, of a block's 32 for mxfp8."""
    assert stage.precision.fp8 is not None
    step = side_multiple(stage.precision.fp8)
    tensor = layout.tensor_parallel
    tokens = stage.sequence_length * stage.micro_batch_size
    parts = layout.sequence_parts
    sides = {
        "the hidden width": (shape.hidden, 1),
        "the FFN width of a process": (shape.ffn, tensor),
        "the attention width of a process": (shape.query_width, tensor),
        "the QKV width of a process": (shape.query_width + 2 * shape.kv_width, tensor),
        "the tokens of a process": (tokens, parts),
    }
    for what, (size, processes) in sides.items():
        if size % (processes * step):
            found = f"{what}: {size}" + (f" / {processes}" if processes > 1 else "")
            rule = f"a multiple of {step} for the {stage.precision.fp8.recipe} recipe"
            fix = "Choose a layout or a length that gives one, or train this stage in bf16."
            yield Problem(path, found, rule, fix)


def transformer_engine_rules(stage: PreciseStage, version: str) -> Iterator[Problem]:
    """Broken rules of a stage with FP8 under this version of Transformer Engine."""
    fp8 = stage.precision.fp8
    assert fp8 is not None
    path = f"stages.{stage.name}"
    needs: list[tuple[str, str, str]] = [
        (f"{path}.precision.fp8.recipe", fp8.recipe, TRANSFORMER_ENGINE_SINCE[fp8.recipe])
    ]
    if fp8.recipe != "delayed" and _recomputes_norms(stage):
        needs.append((f"{path}.recompute.modules", "layernorm", LAYERNORM_RECOMPUTE_SINCE))
    for field, value, since in needs:
        if release(version) < release(since):
            rule = f"what Transformer Engine {version} has"
            fix = f"Install {since} or later, or choose another value."
            yield Problem(field, value, rule, fix)


def release(version: str) -> tuple[int, ...]:
    """The numbers at the head of a version, (2, 11, 0) of `2.11.0+cu13`; () when there is none."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _recomputes_norms(stage: PreciseStage) -> bool:
    if isinstance(stage, CaptureStage):
        return False
    recompute = stage.recompute
    return recompute.granularity == "selective" and "layernorm" in recompute.modules
