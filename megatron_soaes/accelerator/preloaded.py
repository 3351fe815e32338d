"""What the fork server of `forked` holds ready: the imports that take a process seconds."""

from __future__ import annotations

from importlib import import_module

from megatron_soaes.accelerator.quiet import quiet_libraries

quiet_libraries()
for name in (
    "megatron.core.dist_checkpointing",
    "megatron.core.models.gpt",
    "megatron.core.optimizer",
    "torch.distributed.checkpoint",
    "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
):
    import_module(name)
