"""A model's shape, read from an HF config.json: what layouts, layer specs and planners need.

No torch: shapes are read on login nodes and laptops, for models whose weights are elsewhere.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.wording import unreadable

ARCHITECTURES: dict[str, FamilyName] = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3's frequency scaling (Llama 3.1 model card; `rope_type: llama3` in HF configs)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class ModelShape:
    """Dimensions and options of a decoder-only transformer with RMSNorm, RoPE, SwiGLU and GQA."""

    family: FamilyName
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    max_position: int
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    rope_theta: float
    rope_scaling: Llama3Rope | None

    @property
    def query_width(self) -> int:
        """Columns of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of the key (and of the value) projection."""
        return self.kv_heads * self.head_dim

    def padded_vocab_size(self, multiple: int) -> int:
        """Vocabulary rows after padding to a multiple of `multiple`."""
        return math.ceil(self.vocab_size / multiple) * multiple

    @property
    def layer_parameters(self) -> int:
        """Parameters of one transformer layer."""
        qkv = self.hidden * (self.query_width + 2 * self.kv_width)
        bias = (self.query_width + 2 * self.kv_width) if self.qkv_bias else 0
        qk_norm = 2 * self.head_dim if self.qk_norm else 0
        output = self.query_width * self.hidden
        return qkv + bias + qk_norm + output + 3 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, without vocabulary padding; a tied embedding is counted once."""
        embeddings = self.vocab_size * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs of forward and backward for one token, recomputation not counted.

        6 for each parameter that multiplies (embedding look-ups do not, the output layer does), and
        12 * layers * query width * sequence / 2 for causal attention (Korthikanti et al.
        2205.05198).
        """
        multiplying = self.layers * self.layer_parameters + self.vocab_size * self.hidden
        attention = 12 * self.layers * self.query_width * sequence_length / 2
        return 6 * multiplying + attention


def read_shape(config_file: Path) -> ModelShape:
    """The shape in an HF config.json of either generation (v4 `rope_theta`, v5 `rope_parameters`).

    Raises UserError when the file is missing or not JSON, for another architecture, and for options
    that would change the model and that we do not build (sliding windows, other RoPE scalings).
    """
    expected = "an HF config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "Give the model's HF directory as `source`, or its config.json as `config`."
        raise UserError(config_file, unreadable(error), expected, fix) from None
    except ValueError as error:
        found = f"invalid JSON ({error})"
        raise UserError(config_file, found, expected, "Repair the file.") from None
    if not isinstance(config, dict):
        found = f"a JSON {type(config).__name__}"
        raise UserError(config_file, found, expected, "Give the model's own config.json.")
    return shape_from_config(config, config_file)


def shape_from_config(config: dict[str, Any], where: object) -> ModelShape:
    """The shape in the parsed content of a config.json; `where` is named in errors."""
    architectures = config.get("architectures") or ["none"]
    family = ARCHITECTURES.get(architectures[0])
    if family is None:
        raise UserError(
            f"{where}: architectures", repr(architectures[0]), "one of " + ", ".join(ARCHITECTURES),
            "Only these families can be trained; docs/guides/add-a-family.md says how to add one.",
        )  # fmt: skip
    _refuse_unsupported(config, where)
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        theta, scaling = _rope(config, where)
        return ModelShape(
            family=family,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            ffn=int(config["intermediate_size"]),
            vocab_size=int(config["vocab_size"]),
            max_position=int(config["max_position_embeddings"]),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            norm_eps=float(config["rms_norm_eps"]),
            rope_theta=theta,
            rope_scaling=scaling,
        )
    except KeyError as error:
        raise UserError(
            f"{where}: {error.args[0]}", "nothing", "a value", "Complete the model's config.json."
        ) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            where, f"a bad number ({error})", "the numbers of a model", "Repair the config.json."
        ) from None


def _refuse_unsupported(config: dict[str, Any], where: object) -> None:
    """Options that change the model's function and that no layer spec of ours builds."""
    wanted = {
        "hidden_act": ("silu", config.get("hidden_act", "silu")),
        "use_sliding_window": (False, bool(config.get("use_sliding_window", False))),
        "attention_bias": (False, bool(config.get("attention_bias", False))),
        "mlp_bias": (False, bool(config.get("mlp_bias", False))),
        "quantization_config": (None, config.get("quantization_config")),
        "pretraining_tp": (1, config.get("pretraining_tp", 1)),
    }
    for field, (expected, found) in wanted.items():
        if found != expected:
            raise UserError(
                f"{where}: {field}", repr(found), repr(expected),
                "This variant is not supported; use another base.",
            )  # fmt: skip


def _rope(config: dict[str, Any], where: object) -> tuple[float, Llama3Rope | None]:
    """Base and scaling, from `rope_parameters` (v5) or `rope_theta` and `rope_scaling` (v4)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"{where}: rope_scaling", repr(kind), "'default' or 'llama3'",
            "Remove the scaling (it only serves contexts longer than the model was trained on).",
        )  # fmt: skip
    return theta, Llama3Rope(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position=int(parameters["original_max_position_embeddings"]),
    )
