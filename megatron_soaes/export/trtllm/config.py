"""The config.json of a TensorRT-LLM checkpoint."""

from __future__ import annotations

from typing import Any

from megatron_soaes import __version__
from megatron_soaes.errors import UserError
from megatron_soaes.export.trtllm.layout import Parallelism
from megatron_soaes.models.families import rope_scaling
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import ModelShape

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float8_e4m3fn": "F8_E4M3"}
"""Names of dtypes in config.json to those in safetensors files."""
ARCHITECTURES: dict[FamilyName, str] = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
READERS: dict[FamilyName, str] = {
    "qwen2": "0.20 to 1.2.1",
    "qwen3": "1.0 to 1.2.1",
    "llama": "0.20 to 1.2.1",
}
"""The TensorRT-LLM versions whose trtllm-build reads the family in this form."""
SEQUENCE_LENGTH = 8192
"""What TensorRT-LLM's own converter takes for Qwen models whose config.json has no `seq_length`."""


NOT_QUANTIZED = {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": None}


def trtllm_config(
    shape: ModelShape,
    hf_config: dict[str, Any],
    dtype: str,
    vocab_size: int,
    parallelism: Parallelism,
) -> dict[str, Any]:
    """The configuration, with every field whose default in TensorRT-LLM may be wrong here.

    `dtype` is "bfloat16" or "float16", that of all tensors; `vocab_size` is the number of rows of
    the embedding. All sizes are those of the whole model, also the number of key heads where ranks
    share them. There is no `rank`, and none of `quant_mode`, `quant_algo`, `kv_dtype` at the top:
    the loader refuses those. Raises UserError for a Qwen model whose config.json has no RoPE base.
    """
    reader = READERS[shape.family]
    return {
        "producer": {"name": "megatron_soaes", "version": __version__, "tensorrt_llm": reader},
        "architecture": ARCHITECTURES[shape.family],
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_size": shape.head_dim,
        "intermediate_size": shape.ffn,
        "hidden_act": "silu",
        "norm_epsilon": shape.norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": shape.max_position,
        "rotary_embedding_dim": shape.head_dim,
        "rotary_base": shape.rope_theta,
        "rotary_scaling": rope_scaling(shape),
        "attn_bias": shape.qkv_bias,
        "mlp_bias": False,
        "use_parallel_embedding": parallelism.embedding_axis is not None,
        "embedding_sharding_dim": parallelism.embedding_axis or 0,
        "share_embedding_table": False,
        "tie_word_embeddings": shape.tied_embeddings,
        "mapping": {
            "world_size": parallelism.world_size,
            "tp_size": parallelism.tensor,
            "pp_size": parallelism.pipeline,
        },
        "quantization": NOT_QUANTIZED,
        **_family_fields(shape, hf_config),
    }


def _family_fields(shape: ModelShape, hf_config: dict[str, Any]) -> dict[str, Any]:
    if shape.family == "llama":
        return {"residual_mlp": False, "remove_duplicated_kv_heads": False}
    if not {"rope_theta", "rope_parameters"} & hf_config.keys():
        raise UserError(
            "config.json: rope_theta", "nothing", "the base that the model was trained with",
            "Complete the model's config.json (Qwen2.5 and Qwen3 have 1000000.0).",
        )  # fmt: skip
    return {
        "qwen_type": shape.family,
        "seq_length": int(hf_config.get("seq_length") or SEQUENCE_LENGTH),
        "use_logn_attn": False,
    }


def dtype_named(name: str) -> str:
    """TensorRT-LLM's name of a dtype; raises UserError for another than bf16 and fp16."""
    if name not in DTYPES:
        raise UserError("dtype", repr(name), "bf16 or fp16", "Choose one of them.")
    return DTYPES[name]
