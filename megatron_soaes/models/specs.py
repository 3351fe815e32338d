"""Which module stands at each place of a transformer layer: Transformer Engine's, or our own."""

from __future__ import annotations

import dataclasses

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_soaes.models.attention import SDPACoreAttention
from megatron_soaes.models.norm import RMSNorm


def block_spec(
    config: TransformerConfig, transformer_engine: bool, virtual_stage: int | None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers of this pipeline stage (and virtual stage) with their final norm."""
    if transformer_engine:
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layers = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(
        layer_specs=[local_layer_spec(config)] * layers, layer_norm=RMSNorm
    )


def local_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """Megatron-Core's local layer with our norm and attention in it."""
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    attention = spec.submodules.self_attention
    norms = {"q_layernorm": RMSNorm, "k_layernorm": RMSNorm} if config.qk_layernorm else {}
    attention = dataclasses.replace(
        attention,
        submodules=dataclasses.replace(
            attention.submodules, core_attention=SDPACoreAttention, **norms
        ),
    )
    return dataclasses.replace(
        spec,
        submodules=dataclasses.replace(
            spec.submodules,
            input_layernorm=RMSNorm,
            pre_mlp_layernorm=RMSNorm,
            self_attention=attention,
        ),
    )
