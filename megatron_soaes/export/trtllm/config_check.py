"""The rules for config.json of a TensorRT-LLM checkpoint, whoever wrote it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from megatron_soaes.errors import UserError
from megatron_soaes.export.trtllm.layout import Parallelism, require_legal
from megatron_soaes.export.trtllm.problems import Problem
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import ModelShape

ARCHITECTURES: dict[str, FamilyName | None] = {
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "QWenForCausalLM": None,
}
"""Names that TensorRT-LLM's model map knows; of the last one `qwen_type` says what it is."""
ROPE_TYPES = ("none", "linear", "dynamic", "longrope", "llama3", "yarn", "mrope")
RESERVED = ("quant_mode", "quant_algo", "kv_dtype")
"""Read-only properties of the loader's configuration: as fields they end it with an error."""
VERSION_DEPENDENT = (
    "moe_tp_size", "moe_ep_size", "moe_cluster_size", "attn_tp_size", "attn_cp_size",
    "auto_parallel", "rank",
)  # fmt: skip
MUST_BE_WRITTEN = ("norm_epsilon", "rotary_base")
"""They have a default, but models differ in them."""
KNOWN_ALGORITHMS = (None, "FP8")
EXCLUDED_BY_DEFAULT = (
    "*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding",
    "*shared_expert_gate", "*fused_a",
)  # fmt: skip
"""Modules that are not quantised when `exclude_modules` names none."""


class _Section(BaseModel):
    """Unknown keys are an error: the loader passes each as an argument."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Mapping(_Section):
    """Ranks. Files are shared by the ranks of a context-parallel group."""

    world_size: PositiveInt = 1
    tp_size: PositiveInt = 1
    pp_size: PositiveInt = 1
    cp_size: PositiveInt = 1
    gpus_per_node: PositiveInt = 8


class Quantization(_Section):
    """Which numbers the linear layers are stored in."""

    quant_algo: str | None = None
    kv_cache_quant_algo: Literal["FP8", "INT8"] | None = None
    group_size: int | None = None
    smoothquant_val: float | None = None
    clamp_val: list[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: list[str] | None = None

    @property
    def excluded(self) -> tuple[str, ...]:
        """Patterns of modules that are not quantised; a list of one's own replaces the default."""
        return tuple(self.exclude_modules or EXCLUDED_BY_DEFAULT)


class Config(BaseModel):
    """Fields that decide what the engine computes, with the loader's defaults.

    A size without a default here must be written. Other fields are allowed, as the loader allows
    them.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    architecture: str
    dtype: Literal["float16", "bfloat16", "float32"]
    logits_dtype: Literal["float32", "float16"] = "float32"
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_size: PositiveInt
    intermediate_size: PositiveInt
    hidden_act: str = "gelu"
    norm_epsilon: PositiveFloat = 1e-5
    position_embedding_type: str = "learned_absolute"
    max_position_embeddings: PositiveInt
    rotary_base: PositiveFloat = 10000.0
    rotary_scaling: dict[str, Any] | None = None
    attn_bias: bool | None = None
    mlp_bias: Literal[False] = False
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = Field(default=0, ge=0, le=1)
    share_embedding_table: bool = False
    tie_word_embeddings: bool = False
    mapping: Mapping = Mapping()
    quantization: Quantization = Quantization()
    qwen_type: Literal["qwen2", "qwen3"] | None = None
    seq_length: PositiveInt | None = None


@dataclass(frozen=True)
class Checked:
    """A config.json that follows the rules."""

    config: Config
    shape: ModelShape
    parallelism: Parallelism


def check_config(file: Path) -> tuple[Checked | None, list[Problem], list[str]]:
    """The configuration if it can be understood, what is wrong with it, and remarks."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"a JSON {type(raw).__name__}")
    except (OSError, ValueError) as error:
        return None, [Problem(str(file), f"no readable object ({error})", "JSON fields")], []
    notes = _drop_version_dependent(raw)
    problems = [
        Problem(f"{file}: {field}", "a field", "none of that name: the loader refuses it")
        for field in RESERVED
        if field in raw
    ]
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        return None, problems + [_problem(file, part) for part in error.errors()], notes
    family = ARCHITECTURES.get(config.architecture) or config.qwen_type
    if config.architecture not in ARCHITECTURES or family is None:
        known = ", ".join(ARCHITECTURES)
        problems.append(Problem(f"{file}: architecture", repr(config.architecture), known))
        return None, problems, notes
    if config.quantization.quant_algo not in KNOWN_ALGORITHMS:
        found = repr(config.quantization.quant_algo)
        rule = "null or 'FP8', which are all that this checker knows"
        problems.append(Problem(f"{file}: quantization.quant_algo", found, rule))
        return None, problems, notes
    problems += [
        Problem(f"{file}: {field}", found, expected)
        for field, found, expected in _broken_rules(config, family)
    ]
    shape, parallelism = _shape(config, family), _parallelism(config)
    try:
        require_legal(shape, parallelism)
    except UserError as error:
        problems.append(Problem(f"{file}: mapping.{error.where}_size", error.found, error.expected))
        return None, problems, notes
    return Checked(config, shape, parallelism), problems, notes


def _drop_version_dependent(raw: dict[str, Any]) -> list[str]:
    """Take out of `mapping` what some versions of the loader know; returns remarks on it."""
    mapping = raw.get("mapping")
    if not isinstance(mapping, dict):
        return []
    found = [key for key in VERSION_DEPENDENT if key in mapping]
    raw["mapping"] = {key: value for key, value in mapping.items() if key not in found}
    return [f"mapping.{key}: only some versions of TensorRT-LLM know it" for key in found]


def _problem(file: Path, error: Any) -> Problem:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return Problem(f"{file}: {where}", "nothing", "a value")
    if error["type"] == "extra_forbidden":
        return Problem(f"{file}: {where}", "a field", "none of that name: the loader refuses it")
    return Problem(
        f"{file}: {where}", repr(error["input"]), error["msg"].removeprefix("Input should be ")
    )


def _broken_rules(config: Config, family: FamilyName) -> list[tuple[str, str, str]]:
    """Field, found and expected, of rules that involve more than one field."""
    found: list[tuple[str, str, str]] = []
    mapping = config.mapping
    ranks = mapping.tp_size * mapping.pp_size * mapping.cp_size
    if mapping.world_size != ranks:
        found.append(("mapping.world_size", str(mapping.world_size), f"{ranks}, tp * pp * cp"))
    for field, wanted in ("hidden_act", "silu"), ("position_embedding_type", "rope_gpt_neox"):
        if getattr(config, field) != wanted:
            found.append((field, _given(config, field), repr(wanted)))
    for field in MUST_BE_WRITTEN:
        if field not in config.model_fields_set:
            found.append((field, _given(config, field), "the model's own value"))
    default = family != "llama"
    bias = default if config.attn_bias is None else config.attn_bias
    if bias != (family == "qwen2"):
        given = repr(bias) if config.attn_bias is not None else f"nothing, which means {bias}"
        found.append(("attn_bias", given, f"{not bias}, for {family}"))
    if family != "llama":
        if config.qwen_type != family:
            found.append(("qwen_type", repr(config.qwen_type), repr(family)))
        if config.seq_length is None:
            found.append(("seq_length", "nothing", "a number: building fails without"))
    scaling = config.rotary_scaling
    if scaling is not None:
        kind = scaling.get("type", scaling.get("rope_type"))
        if kind not in ROPE_TYPES:
            rule = "null, or a type of " + ", ".join(ROPE_TYPES)
            found.append(("rotary_scaling", json.dumps(scaling), rule))
    return found


def _given(config: Config, field: str) -> str:
    written = field in config.model_fields_set
    return "nothing, which means " * (not written) + repr(getattr(config, field))


def _parallelism(config: Config) -> Parallelism:
    axis = config.embedding_sharding_dim if config.use_parallel_embedding else None
    return Parallelism(config.mapping.tp_size, config.mapping.pp_size, axis)


def _shape(config: Config, family: FamilyName) -> ModelShape:
    """The shape that decides the tensors; RoPE scaling does not, so it is left out."""
    return ModelShape(
        family=family,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_size,
        ffn=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position=config.max_position_embeddings,
        tied_embeddings=config.tie_word_embeddings,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        norm_eps=config.norm_epsilon,
        rope_theta=config.rotary_base,
        rope_scaling=None,
    )
