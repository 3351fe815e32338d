"""The `args` of a checkpoint, by the names under which Megatron-LM keeps its command line."""

from __future__ import annotations

import argparse

import torch

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
    """What Megatron-LM reads back with `--use-checkpoint-args`, and what it compares on a resume.

    The names are those of `check_checkpoint_args`, `load_args_from_checkpoint` and
    `load_checkpoint` in Megatron-LM's megatron/training/checkpointing.py at commit 0032978f.
    Arguments of parts that these models do not have (experts, Mamba) are left out; it then keeps
    its own.
    """
    return argparse.Namespace(
        **_model(shape, source),
        **_parallelism(layout),
        **_training(stage),
        train_iters=state.identity.steps,
        ckpt_format="torch_dist",
        use_dist_ckpt=True,
        ckpt_fully_parallel_save=False,
        no_save_optim=False,
        # Random streams are derived from (seed, step), so there is no state of them to load.
        no_save_rng=True,
        iteration=state.iteration,
        consumed_train_samples=state.consumed_samples,
        skipped_train_samples=0,
        consumed_valid_samples=0,
    )


def _model(shape: ModelShape, source: ModelSource) -> dict[str, object]:
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
        "padded_vocab_size": shape.padded_vocab_size(source.vocab_size_multiple),
        "make_vocab_size_divisible_by": source.vocab_size_multiple,
        "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": str(source.source),
        "num_experts": None,
        "mtp_num_layers": None,
    }


def _parallelism(layout: Layout) -> dict[str, object]:
    virtual = layout.virtual_pipeline
    return {
        "tensor_model_parallel_size": layout.tensor_parallel,
        "sequence_parallel": layout.sequence_parallel,
        "pipeline_model_parallel_size": layout.pipeline_parallel,
        "virtual_pipeline_model_parallel_size": virtual if virtual > 1 else None,
        "num_layers_per_virtual_pipeline_stage": None,
        "context_parallel_size": layout.context_parallel,
        "expert_model_parallel_size": 1,
        "data_parallel_size": layout.data_parallel,
        "world_size": layout.processes,
    }


def _training(stage: TrainingStage) -> dict[str, object]:
    bf16 = stage.precision.dtype == "bf16"
    return {
        "seq_length": stage.sequence_length,
        "micro_batch_size": stage.micro_batch_size,
        "global_batch_size": stage.global_batch_size,
        "phase_transition_iterations": None,
        "data_parallel_random_init": False,
        "bf16": bf16,
        "fp16": False,
        "params_dtype": torch.bfloat16 if bf16 else torch.float32,
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
