"""Parameters of each rank, as Megatron-Core cuts a model: exact, by arithmetic alone.

A layout that the recipe's checks refuse has no meaning here.
"""

from __future__ import annotations

from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout


def layers_of(layout: Layout, layers: int, stage: int) -> list[int]:
    """Layers of each virtual chunk of a pipeline stage, the first chunk first.

    The rule of Megatron-Core 0.16.1 (transformer_block.get_num_layers_to_build): the ends have what
    is given for them, the other stages share the rest evenly, and a stage cuts its layers evenly
    into chunks.
    """
    return [_stage_layers(layout, layers, stage) // layout.virtual_pipeline] * (
        layout.virtual_pipeline
    )


def _stage_layers(layout: Layout, layers: int, stage: int) -> int:
    first, last = layout.first_stage_layers, layout.last_stage_layers
    if first is not None and stage == 0:
        return first
    if last is not None and is_last(layout, stage):
        return last
    given = [count for count in (first, last) if count is not None]
    return (layers - sum(given)) // (layout.pipeline_parallel - len(given))


def is_last(layout: Layout, stage: int) -> bool:
    """Whether a pipeline stage is the one with the final norm and the output layer."""
    return stage == layout.pipeline_parallel - 1


def layer_parameters(shape: ModelShape, tensor: int) -> int:
    """Parameters of one layer on each of `tensor` ranks.

    Matrices and the QKV bias are cut; norms are on every rank. The QKV matrix is cut by columns
    even where there are fewer KV heads than ranks (its result is then gathered).
    """
    return layer_matrices(shape, tensor) + _vectors(shape, tensor)


def layer_matrices(shape: ModelShape, tensor: int) -> int:
    """Those of `layer_parameters` that multiply: four matrices, which FP8 products take in FP8."""
    attention = shape.hidden * (2 * shape.query_width + 2 * shape.kv_width)
    return (attention + 3 * shape.hidden * shape.ffn) // tensor


def _vectors(shape: ModelShape, tensor: int) -> int:
    bias = (shape.query_width + 2 * shape.kv_width) // tensor if shape.qkv_bias else 0
    head_norms = 2 * shape.head_dim if shape.qk_norm else 0
    return bias + head_norms + 2 * shape.hidden


def rank_parameters(workload: Workload, stage: int) -> int:
    """Parameters of a rank of a pipeline stage, the same on each of its tensor-parallel ranks.

    The first stage has the embedding, the last the final norm and the output layer. A tied output
    layer is the embedding itself on one stage; on several, the last has a copy of its own.
    """
    shape, layout = workload.shape, workload.layout
    return model_parameters(shape, workload.vocab_size, layout, stage)


def model_parameters(shape: ModelShape, vocab_size: int, layout: Layout, stage: int) -> int:
    """`rank_parameters` of any model in a layout; `vocab_size` rows, padding included."""
    tensor = layout.tensor_parallel
    layers = sum(layers_of(layout, shape.layers, stage))
    matrix = vocab_size // tensor * shape.hidden
    total = layers * layer_parameters(shape, tensor)
    if stage == 0:
        total += matrix
    if is_last(layout, stage):
        has_output = not shape.tied_embeddings or layout.pipeline_parallel > 1
        total += shape.hidden + (matrix if has_output else 0)
    return total
