"""FP8 in a TensorRT-LLM checkpoint: the tensors and the fields that it adds.

Each matrix is float8_e4m3fn and has two scales beside it, fp32 of shape [1], the same on all ranks:
what the stored numbers stand for is they times `weights_scaling_factor`, and the engine divides the
input by `activation_scaling_factor` before it rounds it. A layer's cached keys and values share
`kv_cache_scaling_factor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from megatron_soaes.export.fp8.scales import Scales
from megatron_soaes.export.trtllm.config_check import EXCLUDED_BY_DEFAULT
from megatron_soaes.export.trtllm.expected import CACHE_SCALE, INPUT_SCALE, WEIGHT_SCALE
from megatron_soaes.export.trtllm.layout import RankTensor

MODULES = {
    "qkv": ("*attention.qkv",),
    "o_proj": ("*attention.dense",),
    "gate_up": ("*mlp.fc", "*mlp.gate"),
    "down_proj": ("*mlp.proj",),
}
"""Groups of matrices to patterns of modules. Modules of every stage count their layers from 0, so
no pattern can name a layer of the whole model."""


def quantization_fields(scales: Scales) -> dict[str, Any]:
    """`quantization` of config.json."""
    patterns = [pattern for group in scales.excluded for pattern in MODULES[group]]
    return {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8" if scales.caches else None,
        # A list of one's own replaces the default one, which keeps the output layer out.
        "exclude_modules": [*EXCLUDED_BY_DEFAULT, *patterns] if patterns else None,
    }


def quantised(tensors: Sequence[RankTensor], scales: Scales) -> list[RankTensor]:
    """The tensors of a rank with FP8: scales, then what keeps its dtype, then FP8 matrices.

    In this order every number of the file lies at a multiple of its size.
    """
    matrices = [t for t in tensors if t.pieces[0].source in scales.weights]
    kept = [t for t in tensors if t not in matrices]
    as_fp8 = [replace(tensor, dtype="float8_e4m3fn") for tensor in matrices]
    return [*scale_tensors(tensors, scales), *kept, *as_fp8]


def scale_tensors(tensors: Sequence[RankTensor], scales: Scales) -> dict[RankTensor, Tensor]:
    """The scales that belong to the tensors of a rank, and their values."""
    values: dict[str, Tensor] = {}
    for tensor in tensors:
        if not tensor.pieces:
            continue
        source, module = tensor.pieces[0].source, tensor.name.removesuffix(".weight")
        if source in scales.weights:
            values[module + WEIGHT_SCALE] = scales.weights[source]
            values[module + INPUT_SCALE] = scales.inputs[source]
        if source in scales.caches:
            values[module.removesuffix("attention.dense") + CACHE_SCALE] = scales.caches[source]
    return {RankTensor(name, (1,), (), True, "float32"): v for name, v in values.items()}
