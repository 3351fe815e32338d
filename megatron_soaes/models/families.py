"""The families, by name: their weight tables and the config.json an export carries."""

from __future__ import annotations

from typing import Any

from megatron_soaes.models import llama, qwen2, qwen3
from megatron_soaes.models.weights import OUTPUT, Weight
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import ModelShape

WEIGHTS: dict[FamilyName, tuple[Weight, ...]] = {
    "qwen2": qwen2.WEIGHTS,
    "qwen3": qwen3.WEIGHTS,
    "llama": llama.WEIGHTS,
}


def weight_table(shape: ModelShape) -> tuple[Weight, ...]:
    """The weights that a model of this shape has; a tied one has no output layer of its own."""
    table = WEIGHTS[shape.family]
    if shape.tied_embeddings:
        return tuple(weight for weight in table if weight.key != OUTPUT)
    return table


def hf_config(shape: ModelShape, original: dict[str, Any], torch_dtype: str) -> dict[str, Any]:
    """config.json of an exported model: the original one, written as transformers 4 did.

    transformers 5 writes `rope_parameters` and `dtype`, which TensorRT-LLM and older vLLM do not
    read (they would fall back to a base frequency of 10000 without a word); transformers 5 itself
    reads both forms. Dimensions that a reader may otherwise derive are written out. `torch_dtype`
    is the dtype of the exported tensors, such as "bfloat16".
    """
    config = {k: v for k, v in original.items() if k not in ("rope_parameters", "dtype")}
    return config | {
        "head_dim": shape.head_dim,
        "num_key_value_heads": shape.kv_heads,
        "tie_word_embeddings": shape.tied_embeddings,
        "rope_theta": shape.rope_theta,
        "rope_scaling": rope_scaling(shape),
        "torch_dtype": torch_dtype,
    }


def rope_scaling(shape: ModelShape) -> dict[str, Any] | None:
    """RoPE scaling as HF and TensorRT-LLM configs write it, None for none."""
    scaling = shape.rope_scaling
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position,
    }
