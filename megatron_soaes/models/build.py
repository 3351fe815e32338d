"""From a model's shape to a Megatron-Core GPTModel of this rank's part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.errors import UserError
from megatron_soaes.models.rope import rope_inverse_frequencies
from megatron_soaes.models.specs import block_spec
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import FP8, Kernels, Layout, Overlap, Recompute

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BuildOptions:
    """How a shape is built on this machine."""

    dtype: torch.dtype
    padded_vocab_size: int
    """Rows of the embedding and the output layer, all ranks together."""
    layout: Layout = field(default_factory=Layout)
    recompute: Recompute = field(default_factory=Recompute)
    kernels: Kernels = field(default_factory=Kernels)
    overlap: Overlap = field(default_factory=Overlap)
    fp8: FP8 | None = None
    local_layers: bool = False
    """Build from Megatron-Core's local layers even where Transformer Engine is installed: its fp32
    products may be rounded to TF32, too coarse for comparing logits."""


def build_model(
    shape: ModelShape, options: BuildOptions, virtual_stage: int | None = None
) -> GPTModel:
    """This rank's part of the model, on its device, weights not initialised (a checkpoint follows).

    The process group and `accelerator.groups.model_parallel` must be active and agree with
    `options.layout`. Returns a model whose forward gives vocab-parallel logits
    [batch, sequence, padded_vocab_size / tensor_parallel] on the last pipeline stage.
    """
    device = this_device()
    transformer_engine = device.has_transformer_engine and not options.local_layers
    if options.fp8 is not None and not transformer_engine:
        raise ValueError(
            "FP8 needs CUDA and Transformer Engine; Megatron-Core would ignore it here"
        )
    config = transformer_config(shape, options)
    model = GPTModel(
        config=config,
        transformer_layer_spec=block_spec(config, transformer_engine, virtual_stage),
        vocab_size=options.padded_vocab_size,
        max_sequence_length=shape.max_position,
        pre_process=parallel_state.is_pipeline_first_stage(
            ignore_virtual=False, vp_stage=virtual_stage
        ),
        post_process=parallel_state.is_pipeline_last_stage(
            ignore_virtual=False, vp_stage=virtual_stage
        ),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=shape.rope_theta,
        vp_stage=virtual_stage,
    )
    _mark_sharded_weights(model)
    model.rotary_pos_emb.inv_freq = rope_inverse_frequencies(shape).to(device.torch_device)
    return model.to(device.torch_device)


def _mark_sharded_weights(model: GPTModel) -> None:
    """Say which weights are parts of a whole: gradient norms count all others on one rank only.

    Megatron-Core's layers set the mark while they initialise, which is left out here; those of
    Transformer Engine set it always.
    """
    dimensions = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}
    for module in model.modules():
        # An output layer that is tied to the embedding has no weight of its own.
        if type(module) in dimensions and module.weight is not None:
            set_tensor_model_parallel_attributes(module.weight, True, dimensions[type(module)], 1)


def dtype_named(name: str) -> torch.dtype:
    """The dtype a recipe calls `fp32` or `bf16`; UserError for another name."""
    if name not in DTYPES:
        raise UserError("dtype", repr(name), " or ".join(DTYPES), "Choose one of these.")
    return DTYPES[name]


def transformer_config(shape: ModelShape, options: BuildOptions) -> TransformerConfig:
    """Megatron-Core's configuration of the shape under the options."""
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_eps,
        qk_layernorm=shape.qk_norm,
        add_qkv_bias=shape.qkv_bias,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=options.dtype,
        pipeline_dtype=options.dtype,
        bf16=options.dtype == torch.bfloat16,
        # A weight is right or an error: uninitialised memory must never pass for a model.
        perform_initialization=False,
        calculate_per_token_loss=True,
        bias_activation_fusion=options.kernels.swiglu,
        apply_rope_fusion=options.kernels.rope,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=options.kernels.gradient_accumulation,
        **_parallel(options.layout, options.overlap),
        **_graphs(options.kernels),
        **_recompute(options.recompute),
        **fp8_settings(options.fp8),
    )


def _parallel(layout: Layout, overlap: Overlap) -> dict[str, Any]:
    interleaved = layout.virtual_pipeline > 1
    gloo = this_device().backend == "gloo"
    # Batched messages between interleaved chunks are silently wrong over gloo.
    beside = interleaved and (overlap.pipeline or gloo)
    return {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "tp_comm_overlap": overlap.tensor_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline if interleaved else None,
        "num_layers_in_first_pipeline_stage": layout.first_stage_layers,
        "num_layers_in_last_pipeline_stage": layout.last_stage_layers,
        "overlap_p2p_comm": beside,
        "batch_p2p_comm": not beside,
        # Of what a stage has sent on it needs only the way back. Gloo may still be reading what
        # an interleaved schedule sends without waiting.
        "deallocate_pipeline_outputs": not (interleaved and gloo),
        "context_parallel_size": layout.context_parallel,
        # Filling documents up for context parallelism gives micro-batches of different lengths.
        "variable_seq_lengths": layout.context_parallel > 1 and layout.pipeline_parallel > 1,
        # Its other dispatchers refuse lengths that vary, whether the model has experts or not.
        "moe_token_dispatcher_type": "alltoall",
    }


def _graphs(kernels: Kernels) -> dict[str, Any]:
    """Attention stays outside: where documents begin and end differs between micro-batches."""
    if not kernels.mlp_graphs:
        return {}
    return {
        "cuda_graph_impl": "transformer_engine",
        "cuda_graph_scope": ["mlp"],
        "cuda_graph_warmup_steps": 0,
    }


def _recompute(recompute: Recompute) -> dict[str, Any]:
    if recompute.granularity == "none":
        return {}
    if recompute.granularity == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}


def fp8_settings(fp8: FP8 | None) -> dict[str, Any]:
    """Megatron-Core's names for the FP8 settings; none without FP8."""
    if fp8 is None:
        return {}
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "first_last_layers_bf16": fp8.first_last_layers_bf16,
        "fp8_param": fp8.param_gather,
        "fp8_dot_product_attention": fp8.attention != "none",
        "fp8_multi_head_attention": fp8.attention == "multi_head",
        "fp8_amax_history_len": fp8.amax_history,
        "fp8_amax_compute_algo": fp8.amax_compute,
        "fp8_margin": fp8.margin,
    }
