"""What runs of Megatron-LM leave behind, made with Megatron-Core alone and by its own layers.

`python -m tests.checkpoint.megatron_lm FOLDER NAME...` is one rank of two. It makes FOLDER/NAME/run
as `megatron/training/checkpointing.py` would, and beside it the weights of each rank and the logits
that the saved model gives.
"""

from __future__ import annotations

import random
import re
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import Parameter

from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.accelerator.launch import launch
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

ITERATION = 40
BATCH = 4
SEQUENCE = 32
POSITIONS = 16384
VOCABULARY = 261
"""Ids of the tests' tokenizer: 3 special ones, 256 bytes, 2 merges."""


@dataclass(frozen=True)
class Run:
    """One run of Megatron-LM."""

    tensor_parallel: int
    optimizer_format: str | None
    """`distrib_optim_sharding_type`; None is --no-save-optim."""
    pipeline_parallel: int = 1
    bf16: bool = False
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: bool = False
    release: bool = False
    """Saved as the folder `release`, as conversions are."""


RUNS = {
    "llama": Run(2, "fully_reshardable", rope_scaling=True),
    "qwen2": Run(1, "dp_reshardable", bf16=True, tied=True, qkv_bias=True),
    "qwen3": Run(2, None, qk_norm=True, release=True),
    "stages": Run(1, "fully_reshardable", pipeline_parallel=2, tied=True, qkv_bias=True),
}


def arguments(run: Run) -> Namespace:
    """`args` as Megatron-LM's training has them when it saves; dimensions are tiny."""
    multiple = 128 * run.tensor_parallel
    model = {
        "num_layers": 4, "encoder_num_layers": 4, "decoder_num_layers": None, "hidden_size": 64,
        "ffn_hidden_size": 96, "num_attention_heads": 8, "kv_channels": 16 if run.qk_norm else 8,
        "group_query_attention": True, "num_query_groups": 2, "attention_backend": AttnBackend.auto,
        "softmax_type": "vanilla", "window_size": None, "window_attn_skip_freq": None,
        "max_position_embeddings": POSITIONS, "position_embedding_type": "rope",
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "use_rotary_position_embeddings": False, "rotary_base": 500000, "rotary_percent": 1.0,
        "rotary_interleaved": False, "rotary_seq_len_interpolation_factor": None,
        "use_rope_scaling": run.rope_scaling, "rope_scaling_factor": 8.0, "no_rope_freq": None,
        "rope_type": None, "add_position_embedding": True, "mrope_section": None,
        "make_vocab_size_divisible_by": 128, "padded_vocab_size": -(-VOCABULARY // multiple)
        * multiple, "vocab_size": None, "normalization": "RMSNorm", "norm_epsilon": 1e-6,
        "apply_layernorm_1p": False, "apply_residual_connection_post_layernorm": False,
        "openai_gelu": False, "squared_relu": False, "swiglu": True, "quick_geglu": False,
        "activation_func_clamp_value": None, "glu_linear_offset": 0.0, "onnx_safe": None,
        "bert_binary_head": True, "untie_embeddings_and_output_weights": not run.tied,
        "multi_latent_attention": False, "mtp_num_layers": None, "mtp_loss_scaling_factor": 0.1,
        "add_bias_linear": False, "add_qkv_bias": run.qkv_bias, "qk_layernorm": run.qk_norm,
        "qk_l2_norm": False, "num_experts": None, "moe_layer_freq": 1, "moe_router_topk": 2,
        "expert_model_parallel_size": 1, "expert_tensor_parallel_size": 1, "spec": None,
        "transformer_impl": "local", "use_legacy_models": False, "use_mcore_models": True,
        "experimental_attention_variant": None, "linear_attention_freq": None,
        "heterogeneous_layers_config_path": None, "heterogeneous_layers_config_encoded_json": None,
        "is_hybrid_model": False, "hybrid_override_pattern": None, "hybrid_attention_ratio": 0.0,
        "retro_project_dir": None, "retro_add_retriever": False, "yaml_cfg": None,
        "attention_softmax_in_fp32": False, "apply_query_key_layer_scaling": False,
        "fp32_residual_connection": False, "model_type": None,
    }  # fmt: skip
    regularisation = {
        "attention_dropout": 0.0, "hidden_dropout": 0.1, "weight_decay": 0.1, "clip_grad": 1.0,
        "start_weight_decay": 0.1, "end_weight_decay": 0.1, "weight_decay_incr_style": "constant",
        "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "sgd_momentum": 0.9,
        "optimizer": "adam", "decoupled_weight_decay": True,
    }  # fmt: skip
    training = {
        "micro_batch_size": 1, "global_batch_size": BATCH, "rampup_batch_size": None,
        "train_iters": 100, "train_samples": None, "iteration": ITERATION,
        "consumed_train_samples": ITERATION * BATCH, "consumed_valid_samples": 0,
        "skipped_train_samples": 0, "log_interval": 5, "exit_interval": None, "seed": 42,
        "seq_length": SEQUENCE, "encoder_seq_length": SEQUENCE, "decoder_seq_length": None,
        "recompute_granularity": "selective", "recompute_method": None,
        "recompute_num_layers": None, "recompute_modules": ["core_attn", "layernorm"],
        "use_flash_attn": False, "dataloader_type": "single", "init_method_std": 0.02,
        "init_method_xavier_uniform": False, "perform_initialization": True,
        "lr": 1e-3, "min_lr": 1e-4, "lr_decay_style": "cosine", "lr_wsd_decay_style": "exponential",
        "lr_decay_iters": 100, "lr_decay_samples": None, "lr_wsd_decay_iters": None,
        "lr_wsd_decay_samples": None, "lr_warmup_fraction": None, "lr_warmup_iters": 10,
        "lr_warmup_samples": 0, "lr_warmup_init": 0.0, "override_opt_param_scheduler": False,
        "use_checkpoint_opt_param_scheduler": False,
    }  # fmt: skip
    saving = {
        "save": "/lustre/run/checkpoints", "load": "/lustre/run/checkpoints", "save_interval": 20,
        "no_save_optim": run.optimizer_format is None, "no_save_rng": None, "no_load_optim": None,
        "finetune": False, "ckpt_step": None, "use_checkpoint_args": False, "async_save": None,
        "ckpt_format": "torch_dist", "use_dist_ckpt": True, "auto_detect_ckpt_format": False,
        "ckpt_fully_parallel_save": True, "ckpt_assume_constant_structure": False,
        "dist_ckpt_strictness": "assume_ok_unexpected",
        "dist_ckpt_optim_fully_reshardable": run.optimizer_format == "fully_reshardable",
    }  # fmt: skip
    machine = {
        "params_dtype": torch.bfloat16 if run.bf16 else torch.float32, "bf16": run.bf16,
        "fp16": False, "fp8": None, "fp8_recipe": "delayed", "fp8_param_gather": False, "fp4": None,
        "accumulate_allreduce_grads_in_fp32": run.bf16, "rank": 0, "world_size": 2,
        "tensor_model_parallel_size": run.tensor_parallel, "context_parallel_size": 1,
        "pipeline_model_parallel_size": run.pipeline_parallel,
        "data_parallel_size": 2 // (run.tensor_parallel * run.pipeline_parallel),
        "virtual_pipeline_model_parallel_size": None, "sequence_parallel": False,
        "num_layers_per_virtual_pipeline_stage": None, "pipeline_model_parallel_layout": None,
        "decoder_first_pipeline_num_layers": None, "decoder_last_pipeline_num_layers": None,
        "cp_comm_type": ["p2p"], "distributed_backend": "nccl", "use_distributed_optimizer": True,
        "overlap_grad_reduce": True, "overlap_param_gather": True, "use_torch_fsdp2": False,
    }  # fmt: skip
    data = {
        "data_path": ["/lustre/data/domain_text_document"], "split": "99,1,0",
        "data_cache_path": None, "mock_data": False, "reset_position_ids": False,
        "reset_attention_mask": False, "eod_mask_loss": False, "num_workers": 2,
        "create_attention_mask_in_dataloader": True, "tokenizer_type": "HuggingFaceTokenizer",
        "tokenizer_model": "/lustre/models/base", "vocab_file": None, "merge_file": None,
    }  # fmt: skip
    return Namespace(**model, **regularisation, **training, **saving, **machine, **data)


def build(args: Namespace) -> GPTModel:
    """The model as `gpt_builders.py` builds it from the arguments, with random weights."""
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups,
        kv_channels=args.kv_channels,
        ffn_hidden_size=args.ffn_hidden_size,
        normalization=args.normalization,
        layernorm_epsilon=args.norm_epsilon,
        qk_layernorm=args.qk_layernorm,
        add_qkv_bias=args.add_qkv_bias,
        add_bias_linear=args.add_bias_linear,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=args.params_dtype,
        bf16=args.bf16,
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        pipeline_dtype=args.params_dtype,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
    )
    spec = get_gpt_layer_local_spec(
        qk_layernorm=args.qk_layernorm, normalization=args.normalization
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
    )
    for name, parameter in weights_of(model).items():
        shard = parallel_state.get_tensor_model_parallel_rank()
        sharded = getattr(parameter, "tensor_model_parallel", False)
        generator = torch.Generator().manual_seed(crc32(name.encode()) + shard * sharded)
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if parameter.dim() == 1 else 0.05
        parameter.data.add_((noise * scale).to(parameter.dtype))
    return model.to(args.params_dtype)


def weights_of(model: GPTModel) -> dict[str, Parameter]:
    """Parameters by the names they have in an undivided model."""
    first = model.decoder.layers[0].layer_number - 1

    def undivided(name: str) -> str:
        if name == "output_layer.weight" and model.share_embeddings_and_output_weights:
            return "embedding.word_embeddings.weight"
        return re.sub(r"(?<=^decoder\.layers\.)\d+", lambda match: str(first + int(match[0])), name)

    return {undivided(name): parameter for name, parameter in model.named_parameters()}


def train_one_step(args: Namespace, model: GPTModel) -> MegatronOptimizer:
    """Adam state that is not zero: one step of the distributed optimizer on made-up gradients."""
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    wrapped = DistributedDataParallel(model.config, ddp, model)
    config = OptimizerConfig(
        optimizer="adam",
        lr=args.lr,
        bf16=args.bf16,
        params_dtype=args.params_dtype,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(config, [wrapped])
    for parameter in model.parameters():
        parameter.main_grad.copy_(parameter.detach().float() * 0.01)
    optimizer.step()
    return optimizer


def save(run: Run, args: Namespace, model: GPTModel, folder: Path) -> None:
    """What `save_checkpoint` writes."""
    metadata: dict[str, Any] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    if run.optimizer_format:
        metadata["distrib_optim_sharding_type"] = run.optimizer_format
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    optimizer = train_one_step(args, model) if run.optimizer_format else None
    content: dict[str, Any] = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "model": model.sharded_state_dict(metadata=metadata | {"dp_cp_group": group}),
        "num_floating_point_operations_so_far": 1e15,
        "rerun_state_machine": {"mode": "disabled", "sharded": {}},
        "rng_state": ShardedObject(
            "rng_state",
            [{"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state()}],
            (run.pipeline_parallel, run.tensor_parallel),
            (
                parallel_state.get_pipeline_model_parallel_rank(),
                parallel_state.get_tensor_model_parallel_rank(),
            ),
            replica_id=parallel_state.get_data_parallel_rank(),
        ),
    }
    if optimizer:
        content["optimizer"] = optimizer.sharded_state_dict(
            content, metadata=metadata | {"dp_cp_group": group}
        )
        content["opt_param_scheduler"] = schedule(args).state_dict()
    name = "release" if run.release else f"iter_{ITERATION:07d}"
    if world_rank() == 0:
        (folder / "run" / name).mkdir(parents=True)
        tracker = folder / "run/latest_checkpointed_iteration.txt"
        tracker.write_text("release" if run.release else str(ITERATION))
    torch.distributed.barrier()
    dist_checkpointing.save(content, str(folder / "run" / name), content_metadata=metadata)


def schedule(args: Namespace) -> OptimizerParamScheduler:
    """The learning-rate schedule as `get_optimizer_param_scheduler` makes it, after ITERATION."""
    scheduler = OptimizerParamScheduler(
        Namespace(param_groups=[]),
        init_lr=args.lr_warmup_init,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=args.lr_warmup_iters * BATCH,
        lr_decay_steps=args.lr_decay_iters * BATCH,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.start_weight_decay,
        end_wd=args.end_weight_decay,
        wd_incr_steps=args.train_iters * BATCH,
        wd_incr_style=args.weight_decay_incr_style,
    )
    scheduler.step(ITERATION * BATCH)
    return scheduler


def tokens() -> Tensor:
    """[2, 96] ids of the vocabulary, the last one among them."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (2, 96), generator=generator)
    ids[0, -1] = VOCABULARY - 1
    return ids


@torch.no_grad()
def logits(model: GPTModel) -> Tensor:
    """[2, 96, VOCABULARY], gathered over tensor-parallel ranks."""
    positions = torch.arange(96).expand(2, 96)
    whole: Tensor = model.eval()(tokens(), positions, None, runtime_gather_output=True)
    return whole[..., :VOCABULARY].float()


def make_runs(folder: Path, *names: str) -> Path:
    """Make the named runs below `folder`, and `folder`/tokenizer; returns `folder`."""
    save_tokenizer(folder / "tokenizer", train_tokenizer(VOCABULARY))
    module = "tests.checkpoint.megatron_lm"
    assert launch(module, [str(folder), *names], 2, folder / "logs") == 0
    return folder


def edit_arguments(run: Path, **changes: Any) -> None:
    """Change arguments in the checkpoint of a run; None removes one."""
    file = next(run.glob("*/common.pt"))
    common = torch.load(file, weights_only=False)
    args = vars(common["args"])
    for name, value in changes.items():
        args.pop(name, None) if value is None else args.update({name: value})
    torch.save(common, file)


def main(folder: Path, names: list[str]) -> None:
    with process_group(rendezvous_from_environment()):
        for name in names:
            run = RUNS[name]
            with model_parallel(run.tensor_parallel, run.pipeline_parallel):
                args = arguments(run)
                model = build(args)
                save(run, args, model, folder / name)
                if parallel_state.get_data_parallel_rank() == 0:
                    weights = {n: w.detach().clone() for n, w in weights_of(model).items()}
                    torch.save(weights, folder / name / f"rank{world_rank()}.pt")
                if run.pipeline_parallel == 1:
                    gathered = logits(model)
                    torch.save(gathered, folder / name / f"logits{world_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
