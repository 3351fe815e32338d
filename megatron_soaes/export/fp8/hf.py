"""Write a model as an FP8 HF directory, as TensorRT-LLM's PyTorch backend, vLLM and SGLang read it.

The format is that of NVIDIA ModelOpt's export to HF. Beside each FP8 matrix `weight` stand
`weight_scale` and `input_scale`, beside the key and value projections `k_scale` and `v_scale` of
the cache, all fp32 of shape [].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_soaes import __version__, files
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.errors import UserError
from megatron_soaes.export.fp8.calibration import Fp8, quantise
from megatron_soaes.export.fp8.report import Quality
from megatron_soaes.export.fp8.scales import FP8, GROUPS, Scales, to_fp8
from megatron_soaes.export.hf_directory import (
    Shape,
    copy_model_files,
    tensor_shapes,
    write_tensors,
)
from megatron_soaes.export.source import Source, open_source, stored_dtype
from megatron_soaes.export.trtllm.config import dtype_named
from megatron_soaes.models.families import hf_config

OUTPUT_LAYER = "lm_head"
REPORT_FILE = "fp8_report.json"


@dataclass(frozen=True)
class HFReport:
    """What an export did."""

    directory: Path
    tensors: int
    quality: Quality


def export_hf_fp8(
    source_dir: Path,
    out_dir: Path,
    fp8: Fp8,
    *,
    dtype: str = "bf16",
    iteration: int | None = None,
    progress: Progress | None = None,
    calibration_progress: Progress | None = None,
) -> HFReport:
    """Write an HF directory or a Megatron checkpoint with the matrices of its layers in FP8.

    What is not FP8 has `dtype`, bf16 or fp16. Tokenizer, chat template and generation config come
    along, README.md does not: it describes another model. What FP8 costs is in `REPORT_FILE`.
    `out_dir` appears whole or not at all. Raises UserError when it exists, when the model cannot be
    read, and as `quantise` does.
    """
    if out_dir.exists():
        raise UserError(
            out_dir, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip
    stored = dtype_named(dtype)
    torch_dtype: torch.dtype = getattr(torch, stored)
    source = open_source(source_dir, iteration)
    scales, quality = quantise(source, fp8, torch_dtype, calibration_progress)
    with files.atomic_directory(out_dir) as target:
        copy_model_files(source, target)
        quantization = quantization_fields(source, scales)
        config = hf_config(source.shape, source.config, stored)
        config["quantization_config"] = quantization_config(quantization)
        files.write_json(target / "config.json", config)
        files.write_json(target / "hf_quant_config.json", quantization)
        files.write_json(target / REPORT_FILE, asdict(quality))
        tensors = _write_weights(source, scales, torch_dtype, target, progress)
    return HFReport(out_dir, tensors, quality)


def quantization_fields(source: Source, scales: Scales) -> dict[str, Any]:
    """hf_quant_config.json. Modules that are not FP8 are named one by one."""
    excluded = [
        f"model.layers.{layer}.{module}"
        for layer in range(source.shape.layers)
        for group in scales.excluded
        for module in GROUPS[group]
    ]
    return {
        "producer": {"name": "megatron_soaes", "version": __version__},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8" if scales.caches else None,
            "exclude_modules": [OUTPUT_LAYER, *excluded],
        },
    }


def quantization_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The same as `quantization_config` of config.json, where newer readers look for it."""
    quantization = fields["quantization"]
    number = {"dynamic": False, "num_bits": 8, "type": "float"}
    group = {"input_activations": number, "weights": number, "targets": ["Linear"]}
    config: dict[str, Any] = {
        "quant_method": "modelopt",
        "quant_algo": quantization["quant_algo"],
        "config_groups": {"group_0": group},
        "ignore": quantization["exclude_modules"],
        "producer": fields["producer"],
    }
    if quantization["kv_cache_quant_algo"] is not None:
        config["kv_cache_scheme"] = number
    return config


def scale_tensors(scales: Scales) -> dict[str, Tensor]:
    """The scales by the names that readers know them by."""
    found: dict[str, Tensor] = {}
    for name, scale in scales.weights.items():
        found[name + "_scale"] = scale
        found[name.removesuffix("weight") + "input_scale"] = scales.inputs[name]
    for name, scale in scales.caches.items():
        attention = name.removesuffix("o_proj.weight")
        found |= {f"{attention}{x}_proj.{x}_scale": scale for x in "kv"}
    return found


def _write_weights(
    source: Source, scales: Scales, dtype: torch.dtype, target: Path, progress: Progress | None
) -> int:
    """Write scales, then the model in its order; returns the number of tensors.

    Scales are first so that every number lies at a multiple of its size.
    """
    beside = scale_tensors(scales)
    plan: dict[str, tuple[Shape, torch.dtype]] = dict.fromkeys(beside, ((), torch.float32))
    for name, shape in tensor_shapes(source).items():
        plan[name] = shape, FP8 if name in scales.weights else dtype

    def convert(name: str, tensor: Tensor) -> Tensor:
        converted = stored_dtype(tensor, dtype, name)
        scale = scales.weights.get(name)
        return converted if scale is None else to_fp8(converted, scale)

    write_tensors(source, target, plan, convert, first=beside, progress=progress)
    return len(plan)
