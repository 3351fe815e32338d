"""A model's shape from the arguments that Megatron-LM keeps in its checkpoints. No torch.

Names and defaults are those of `megatron/training/arguments.py`; what each of them builds is read
from `gpt_builders.py` and `core_transformer_config_from_args` of the same repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import ARCHITECTURES, Llama3Rope, ModelShape

REQUIRED: dict[str, Any] = {
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "swiglu": True,
    "add_bias_linear": False,
}
"""What the supported families have and Megatron-LM has not by default."""

ABSENT: dict[str, tuple[Any, ...]] = {
    "num_experts": (None, 0),
    "multi_latent_attention": (False,),
    "experimental_attention_variant": (None,),
    "linear_attention_type": (None,),
    "linear_attention_freq": (None,),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None,),
    "is_hybrid_model": (False,),
    "hybrid_override_pattern": (None,),
    "hybrid_layer_pattern": (None,),
    "mtp_num_layers": (None, 0),
    "retro_add_retriever": (False,),
    "use_legacy_models": (False,),
    "spec": (None,),
    "yaml_cfg": (None,),
    "rope_type": (None, "rope"),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "no_rope_freq": (None,),
    "mrope_section": (None,),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "squared_relu": (False,),
    "quick_geglu": (False,),
    "openai_gelu": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
    "window_size": (None,),
    "softmax_type": ("vanilla",),
    "softmax_scale": (None,),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "use_mup": (False,),
}
"""Options that change the model's function and that we do not build, with the values that leave
them off. One that a version of Megatron-LM does not know is off."""

BUILT_ROPE_FACTOR = 8.0
"""Megatron-LM's `gpt_builders.py` hands `use_rope_scaling` to the model but not
`rope_scaling_factor`, so it builds Megatron-Core's default; its later model builders hand on both.
"""


def shape_from_args(
    args: Mapping[str, Any], vocab_size: int, where: object, known: ModelShape | None = None
) -> ModelShape:
    """The shape of the model that Megatron-LM builds from `args`.

    `vocab_size` counts the tokenizer's ids; `args` knows the padded number of rows only. `known` is
    the shape in a config.json of the same model, if there is one; it decides which of two rope
    scaling factors the run really used. Raises UserError naming the argument for everything that
    is missing and for everything that no layer spec of ours builds.
    """
    _refuse_unsupported(args, where)
    heads = _number(args, "num_attention_heads", where)
    qkv_bias, qk_norm = bool(args.get("add_qkv_bias")), bool(args.get("qk_layernorm"))
    if qkv_bias and qk_norm:
        raise _unsupported(where, "add_qkv_bias", True, "False beside qk_layernorm")
    padded = _number(args, "padded_vocab_size", where)
    if vocab_size > padded:
        raise UserError(
            f"{where}: padded_vocab_size", str(padded), f"at least the {vocab_size} token ids",
            "Give the tokenizer that the model was trained with.",
        )  # fmt: skip
    grouped = bool(given(args, "group_query_attention", where))
    return ModelShape(
        family=_family(qkv_bias, qk_norm),
        layers=_number(args, "num_layers", where),
        hidden=_number(args, "hidden_size", where),
        heads=heads,
        kv_heads=_number(args, "num_query_groups", where) if grouped else heads,
        head_dim=_number(args, "kv_channels", where),
        ffn=_number(args, "ffn_hidden_size", where),
        vocab_size=vocab_size,
        max_position=_number(args, "max_position_embeddings", where),
        tied_embeddings=not given(args, "untie_embeddings_and_output_weights", where),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        norm_eps=float(given(args, "norm_epsilon", where)),
        rope_theta=float(given(args, "rotary_base", where)),
        rope_scaling=_rope_scaling(args, where, known),
    )


def config_json(shape: ModelShape, eod_id: int | None) -> dict[str, Any]:
    """A Hugging Face config.json of the shape, as transformers 4 wrote it; 5 reads it too."""
    scaling = shape.rope_scaling
    return {
        "architectures": [next(a for a, family in ARCHITECTURES.items() if family == shape.family)],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position,
        "tie_word_embeddings": shape.tied_embeddings,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        },
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": eod_id,
    }


def refuse_other_shape(shape: ModelShape, known: ModelShape, where: object) -> None:
    """Raise UserError unless a config.json describes the model that the arguments build.

    The number of positions may differ: with rotary embeddings it is no part of the model.
    """
    built, described = asdict(shape), asdict(known)
    for name, value in built.items():
        if name != "max_position" and described[name] != value:
            raise UserError(
                f"{where}: {name}", str(described[name]),
                f"{value}, as the arguments in the checkpoint say",
                "Give the config.json of this model, or a tokenizer folder without one.",
            )  # fmt: skip


def given(args: Mapping[str, Any], name: str, where: object) -> Any:
    """The value of an argument; UserError when the checkpoint does not have it."""
    if args.get(name) is None:
        raise UserError(
            f"{where}: {name}", "nothing", "the arguments of a Megatron-LM run",
            "Give a checkpoint that Megatron-LM's own training saved.",
        )  # fmt: skip
    return args[name]


def _refuse_unsupported(args: Mapping[str, Any], where: object) -> None:
    for name, wanted in REQUIRED.items():
        found = given(args, name, where)
        if found != wanted:
            raise _unsupported(where, name, found, repr(wanted))
    for name, off in ABSENT.items():
        found = args.get(name, off[0])
        if found not in off:
            raise _unsupported(where, name, found, " or ".join(map(repr, off)))


def _unsupported(where: object, name: str, found: object, expected: str) -> UserError:
    return UserError(
        f"{where}: {name}", repr(found), expected,
        "Only dense decoders with RMSNorm, SwiGLU and rotary embeddings, as in Qwen2, Qwen3 and "
        "Llama, can be trained.",
    )  # fmt: skip


def _family(qkv_bias: bool, qk_norm: bool) -> FamilyName:
    if qkv_bias:
        return "qwen2"
    return "qwen3" if qk_norm else "llama"


def _rope_scaling(
    args: Mapping[str, Any], where: object, known: ModelShape | None
) -> Llama3Rope | None:
    """Megatron-Core fixes all parameters of Llama 3's scaling but the factor."""
    if not args.get("use_rope_scaling"):
        return None
    factor = float(args.get("rope_scaling_factor", BUILT_ROPE_FACTOR))
    if factor != BUILT_ROPE_FACTOR:
        described = known.rope_scaling.factor if known and known.rope_scaling else None
        if described not in (factor, BUILT_ROPE_FACTOR):
            raise UserError(
                f"{where}: rope_scaling_factor", str(factor),
                f"{BUILT_ROPE_FACTOR}, or a config.json whose rope_scaling names the factor used",
                f"Megatron-LM's gpt_builders.py ignores the argument and builds "
                f"{BUILT_ROPE_FACTOR}; later model builders use it. Say which your run did in the "
                "config.json of the tokenizer folder.",
            )  # fmt: skip
        factor = described
    return Llama3Rope(factor, 1.0, 4.0, 8192)


def _number(args: Mapping[str, Any], name: str, where: object) -> int:
    value = given(args, name, where)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
            f"{where}: {name}", repr(value), "a whole number above 0",
            "Give a checkpoint that Megatron-LM's own training saved.",
        )  # fmt: skip
    return value
