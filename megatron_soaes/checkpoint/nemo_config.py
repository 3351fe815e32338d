"""A model's shape and the configuration that NeMo 2.7.x keeps of it: one table, both directions.

Names and defaults are those of `GPTConfig` and the classes made from it in
nemo/collections/llm/gpt/model/{base,llama,qwen2,qwen3}.py, and of Megatron-Core's
`TransformerConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import Llama3Rope, ModelShape

MODULES: dict[FamilyName, str] = {
    "qwen2": "nemo.collections.llm.gpt.model.qwen2",
    "qwen3": "nemo.collections.llm.gpt.model.qwen3",
    "llama": "nemo.collections.llm.gpt.model.llama",
}
MODELS: dict[FamilyName, str] = {
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "llama": "LlamaModel",
}
CONFIGS: dict[FamilyName, str] = {
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "llama": "LlamaConfig",
}
SCALED_LLAMA_CONFIG = "Llama31Config"
SCALED_LLAMAS = ("Llama31", "Llama32")
"""Beginnings of the class names that scale rotary frequencies."""

SIZES = {
    "layers": "num_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "ffn": "ffn_hidden_size",
    "norm_eps": "layernorm_epsilon",
    "rope_theta": "rotary_base",
    "tied_embeddings": "share_embeddings_and_output_weights",
    "qkv_bias": "add_qkv_bias",
    "qk_norm": "qk_layernorm",
}
"""Attributes of `ModelShape` to fields that all three families have."""

ROPE_SCALING = {
    "factor": "scale_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position": "old_context_len",
}
"""Attributes of `Llama3Rope` to fields of `Llama31Config`."""

POSITIONS: dict[FamilyName, str] = {
    "qwen2": "seq_length",
    "qwen3": "max_position_embeddings",
    "llama": "seq_length",
}
"""The field that NeMo's exporters take `max_position_embeddings` of config.json from."""

BUILT: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "activation_func": ("torch.nn.functional.silu",),
    "gated_linear_unit": (True,),
    "add_bias_linear": (False,),
    "position_embedding_type": ("rope",),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "seq_len_interpolation_factor": (None, 1),
    "layernorm_zero_centered_gamma": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "num_moe_experts": (None, 0),
    "multi_latent_attention": (False,),
    "experimental_attention_variant": (None,),
    "linear_attention_freq": (None,),
    "heterogeneous_block_specs": (False,),
    "mtp_num_layers": (None, 0),
    "window_size": (None,),
    "no_rope_freq": (None,),
    "mrope_section": (None,),
    "softmax_type": ("vanilla",),
    "softmax_scale": (None,),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
}
"""Fields that change the model's function, with the values that we build: what the three families
have where a class does not say otherwise."""


def nemo_config(shape: ModelShape) -> tuple[str, dict[str, Any]]:
    """The name of NeMo's configuration class for a shape, and its arguments.

    Raises UserError for a shape that no class of NeMo describes.
    """
    name = CONFIGS[shape.family]
    arguments = {field: getattr(shape, attribute) for attribute, field in SIZES.items()}
    arguments |= {
        "vocab_size": shape.vocab_size,
        "seq_length": shape.max_position,
        POSITIONS[shape.family]: shape.max_position,
    }
    if shape.rope_scaling is not None:
        if shape.family != "llama":
            raise UserError(
                "config.json: rope_scaling", "Llama 3's scaling of rotary frequencies",
                f"none, because NeMo 2.7 has no such {shape.family} model",
                "Export it as a Hugging Face model.",
            )  # fmt: skip
        name = SCALED_LLAMA_CONFIG
        arguments |= {
            field: getattr(shape.rope_scaling, attribute)
            for attribute, field in ROPE_SCALING.items()
        }
    return name, arguments


def shape_of(
    module: str, name: str, settings: Mapping[str, Any], vocab_size: int, where: object
) -> ModelShape:
    """The shape of the model that NeMo builds from the class `module.name` and its settings.

    `vocab_size` counts where the settings name none. Raises UserError for a class of another
    module, for what we do not build and for a size that `settings` do not tell.
    """
    family = next((family for family, known in MODULES.items() if known == module), None)
    if family is None or name.startswith("Llama4"):
        raise UserError(
            where, f"the class {module}.{name}", "a configuration of Qwen2, Qwen3 or Llama 2 to 3",
            "Only these families can be trained; export the model to Hugging Face with NeMo if it "
            "is one of them.",
        )  # fmt: skip
    for field, built in BUILT.items():
        if settings.get(field, built[0]) not in built:
            raise UserError(
                f"{where}: {field}", repr(settings[field]), " or ".join(map(repr, built)),
                "Only dense decoders with RMSNorm, SwiGLU and rotary embeddings, as in Qwen2, "
                "Qwen3 and Llama, can be trained.",
            )  # fmt: skip
    _refuse_another_attention(family, settings, where)
    heads = int(_given(settings, "num_attention_heads", where))
    hidden = int(_given(settings, "hidden_size", where))
    return ModelShape(
        family=family,
        layers=int(_given(settings, "num_layers", where)),
        hidden=hidden,
        heads=heads,
        kv_heads=int(_told(settings, "num_query_groups", where) or heads),
        head_dim=int(_told(settings, "kv_channels", where) or hidden // heads),
        ffn=int(_given(settings, "ffn_hidden_size", where)),
        vocab_size=int(settings.get("vocab_size") or vocab_size),
        max_position=int(_given(settings, POSITIONS[family], where)),
        tied_embeddings=bool(_told(settings, SIZES["tied_embeddings"], where)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        norm_eps=float(_given(settings, "layernorm_epsilon", where)),
        rope_theta=float(_given(settings, "rotary_base", where)),
        rope_scaling=_rope_scaling(name, settings, where),
    )


def _refuse_another_attention(
    family: FamilyName, settings: Mapping[str, Any], where: object
) -> None:
    """A class of a family may be given the biases or norms of another one."""
    for field, usual in (("add_qkv_bias", family == "qwen2"), ("qk_layernorm", family == "qwen3")):
        if settings.get(field, usual) != usual:
            raise UserError(
                f"{where}: {field}", repr(settings[field]), f"{usual}, as in every {family} model",
                "This variant is not supported; use another base.",
            )  # fmt: skip


def _rope_scaling(name: str, settings: Mapping[str, Any], where: object) -> Llama3Rope | None:
    if not name.startswith(SCALED_LLAMAS):
        return None
    values = {
        attribute: _given(settings, field, where) for attribute, field in ROPE_SCALING.items()
    }
    return Llama3Rope(
        factor=float(values["factor"]),
        low_freq_factor=float(values["low_freq_factor"]),
        high_freq_factor=float(values["high_freq_factor"]),
        original_max_position=int(values["original_max_position"]),
    )


def _given(settings: Mapping[str, Any], field: str, where: object) -> Any:
    value = _told(settings, field, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(
            f"{where}: {field}", repr(value), "a number above 0",
            "Give a checkpoint that NeMo itself saved.",
        )  # fmt: skip
    return value


def _told(settings: Mapping[str, Any], field: str, where: object) -> Any:
    """A setting that may be None but must not be missing: its default is known to NeMo alone."""
    if field not in settings:
        raise UserError(
            f"{where}: {field}", "nothing", "a value",
            "The class has a default that io.json leaves out. Put the model.yaml that NeMo wrote "
            "beside it.",
        )  # fmt: skip
    return settings[field]
