"""What each rank file must hold: names, shapes and dtypes, quantised layers included."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from megatron_soaes.export.trtllm.config import CODES
from megatron_soaes.export.trtllm.config_check import Checked
from megatron_soaes.export.trtllm.layout import LAYER, OUTPUT, RankTensor, rank_tensors

FP8 = ("F8_E4M3", "I8")
"""Of a quantised weight; the loader reads the bytes of the second as the first."""
LINEARS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj", "lm_head")
WEIGHT_SCALE = ".weights_scaling_factor"
INPUT_SCALE = ".activation_scaling_factor"
CACHE_SCALE = "attention.kv_cache_scaling_factor"
CACHE_RECIPROCAL = "attention.kv_cache_rcp_scaling_factor"


@dataclass(frozen=True)
class Expected:
    """One tensor of one rank file."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    tensor: RankTensor | None
    """None for a scale, which all ranks of a stage share."""
    required: bool = True


def expected_tensors(checked: Checked, rank: int) -> dict[str, Expected]:
    """By name, what `rank{rank}.safetensors` holds."""
    config = checked.config
    tensors = rank_tensors(checked.shape, config.vocab_size, checked.parallelism, rank)
    found: dict[str, Expected] = {}
    for tensor in tensors:
        module = tensor.name.removesuffix(".weight")
        if not _quantised(checked, module):
            found[tensor.name] = Expected(tensor.shape, (CODES[config.dtype],), tensor)
            continue
        found[tensor.name] = Expected(tensor.shape, FP8, tensor)
        found |= {module + scale: _scale() for scale in (WEIGHT_SCALE, INPUT_SCALE)}
    if config.quantization.kv_cache_quant_algo is not None:
        layers = sum(tensor.name.endswith("attention.dense.weight") for tensor in tensors)
        for name in map(LAYER.format, range(layers)):
            found[name + CACHE_SCALE] = _scale()
            found[name + CACHE_RECIPROCAL] = _scale(required=False)
    if _output_is_embedding(checked):
        found.pop(OUTPUT, None)
    return found


def _scale(required: bool = True) -> Expected:
    return Expected((1,), ("F32",), None, required)


def _quantised(checked: Checked, module: str) -> bool:
    quantization = checked.config.quantization
    if quantization.quant_algo is None or not module.endswith(LINEARS):
        return False
    return not any(fnmatchcase(module, pattern) for pattern in quantization.excluded)


def _output_is_embedding(checked: Checked) -> bool:
    """Whether the engine takes the embedding for the missing output layer.

    It does so only where one rank holds both, in the same shape. Elsewhere the loader may accept
    the file and leave the output layer without values.
    """
    ways = checked.parallelism
    same_shape = ways.tensor == 1 or ways.embedding_axis == 0
    return checked.config.share_embedding_table and ways.pipeline == 1 and same_shape
