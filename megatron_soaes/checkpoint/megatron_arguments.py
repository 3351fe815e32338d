"""The `args` of a checkpoint, by the names under which Megatron-LM keeps its command line.

Two programs read them. Megatron-LM's `check_checkpoint_args`, `load_args_from_checkpoint` and
`load_checkpoint` (megatron/training/checkpointing.py at commit 0032978f) keep their own value where
one is missing. Megatron-Bridge 0.3.1 builds the model from them alone when a checkpoint has no
run_config.yaml (`_transformer_config_from_args` and `_gpt_provider` in
megatron/bridge/training/mlm_compat) and fails on a missing one, so options that these models do not
use stand here too, switched off.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from megatron_soaes.checkpoint.distributed import CHECKPOINT_VERSION
from megatron_soaes.checkpoint.trainer_state import TrainerState
from megatron_soaes.recipe.schema import ModelSource, TrainingStage
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout


def megatron_arguments(
    shape: ModelShape,
    source: ModelSource,
    layout: Layout,
    stage: TrainingStage,
    state: TrainerState,
) -> argparse.Namespace:
    """The arguments of a training checkpoint: of its model, its layout and its training."""
    return argparse.Namespace(
        **UNUSED,
        **_model(shape, source.vocab_size_multiple, source.source),
        **_parallelism(layout),
        **_training(stage),
        train_iters=state.identity.steps,
        **_saving(state.iteration, state.consumed_samples),
        no_save_optim=False,
    )


def weights_state(shape: ModelShape, tokenizer: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The common.pt of a checkpoint that holds weights alone, without vocabulary padding."""
    arguments = argparse.Namespace(
        **UNUSED,
        **_model(shape, 1, tokenizer),
        **_parallelism(Layout()),
        **_precision(dtype),
        seq_length=shape.max_position,
        **_saving(iteration=0, consumed_samples=0),
        no_save_optim=True,
    )
    return {"args": arguments, "checkpoint_version": CHECKPOINT_VERSION, "iteration": 0}


UNUSED: dict[str, object] = {
    "bias_gelu_fusion": False,
    "config_logger_dir": "",
    "cp_comm_type": ["p2p"],
    "fp16_lm_cross_entropy": False,
    "fp8_param_gather": False,
    "heterogeneous_layers_config_path": None,
    "init_method_xavier_uniform": False,
    "init_model_with_meta_device": False,
    "is_hybrid_model": False,
    "moe_grouped_gemm": False,
    "moe_use_legacy_grouped_gemm": False,
    "mtp_num_layers": None,
    "multi_latent_attention": False,
    "num_experts": None,
    "qk_l2_norm": False,
    "spec": None,
}
"""What only other models or other ways of starting have; the values are Megatron-LM's defaults."""


def _model(shape: ModelShape, vocabulary_multiple: int, tokenizer: Path) -> dict[str, object]:
    scaling = shape.rope_scaling
    base = shape.rope_theta
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "group_query_attention": True,
        "num_query_groups": shape.kv_heads,
        "kv_channels": shape.head_dim,
        "max_position_embeddings": shape.max_position,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": True,
        "rotary_base": int(base) if base.is_integer() else base,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": scaling is not None,
        "rope_scaling_factor": scaling.factor if scaling else 1.0,
        "swiglu": True,
        "squared_relu": False,
        "normalization": "RMSNorm",
        "norm_epsilon": shape.norm_eps,
        "apply_layernorm_1p": False,
        "apply_query_key_layer_scaling": False,
        "qk_layernorm": shape.qk_norm,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "untie_embeddings_and_output_weights": not shape.tied_embeddings,
        "vocab_size": shape.vocab_size,
        "padded_vocab_size": shape.padded_vocab_size(vocabulary_multiple),
        "make_vocab_size_divisible_by": vocabulary_multiple,
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": str(tokenizer),
        "transformer_impl": "transformer_engine",
        "bias_swiglu_fusion": True,
        "no_persist_layer_norm": False,
    }


def _parallelism(layout: Layout) -> dict[str, object]:
    virtual = layout.virtual_pipeline
    return {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
        "num_layers_per_virtual_pipeline_stage": None,
        "decoder_first_pipeline_num_layers": layout.first_stage_layers,
        "decoder_last_pipeline_num_layers": layout.last_stage_layers,
        "overlap_p2p_comm": virtual > 1,
        "context_parallel_size": layout.context_parallel,
        "expert_model_parallel_size": 1,
        "data_parallel_size": layout.data_parallel,
        "world_size": layout.processes,
    }


def _training(stage: TrainingStage) -> dict[str, object]:
    dtype = torch.bfloat16 if stage.precision.dtype == "bf16" else torch.float32
    return {
        **_precision(dtype),
        "seq_length": stage.sequence_length,
        "micro_batch_size": stage.micro_batch_size,
        "global_batch_size": stage.global_batch_size,
        "phase_transition_iterations": None,
        "data_parallel_random_init": False,
        "optimizer": "adam",
        "use_distributed_optimizer": True,
        "lr": stage.optimizer.lr,
        "min_lr": stage.optimizer.min_lr,
        "weight_decay": stage.optimizer.weight_decay,
        "adam_beta1": stage.optimizer.beta1,
        "adam_beta2": stage.optimizer.beta2,
        "adam_eps": stage.optimizer.eps,
        "clip_grad": stage.optimizer.clip_grad,
    }


def _precision(dtype: torch.dtype) -> dict[str, object]:
    return {
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "params_dtype": dtype,
    }


def _saving(iteration: int, consumed_samples: int) -> dict[str, object]:
    return {
        "ckpt_format": "torch_dist",
        "use_dist_ckpt": True,
        "ckpt_fully_parallel_save": False,
        # Random streams are derived from (seed, step), so there is no state of them to load.
        "no_save_rng": True,
        "iteration": iteration,
        "consumed_train_samples": consumed_samples,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
    }
