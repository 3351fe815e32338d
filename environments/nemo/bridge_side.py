"""Megatron-Bridge's half of the exchange test: the model it builds from a checkpoint's `args`.

    python bridge_side.py CHECKPOINT... OUT

For every CHECKPOINT, an `iter_` folder without run_config.yaml, Megatron-Bridge's own functions
turn `args` into a configuration and a model, Megatron-Core loads the weights into it, and OUT gets
the logits of the tokens below, by the checkpoint's path. Runs in the environment of
requirements.txt.

`import megatron.bridge` needs Transformer Engine. The two files that read `args` do not, so they
are loaded without their package, and the model is built of Megatron-Core's local layers.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from pathlib import Path

import megatron.core
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

BRIDGE = Path(megatron.core.__file__).parents[1] / "bridge"
TOKENS = torch.arange(64).unsqueeze(0)


def stand_in_for_packages() -> None:
    """Make submodules of megatron.bridge loadable without running its __init__ files."""
    for name in ("", "training", "training.mlm_compat", "training.tokenizers"):
        full = ".".join(["megatron.bridge", name]).rstrip(".")
        package = types.ModuleType(full)
        package.__path__ = [str(BRIDGE.joinpath(*name.split(".")))]
        sys.modules[full] = package
    config = types.ModuleType("megatron.bridge.training.config")
    tokenizers = importlib.import_module("megatron.bridge.training.tokenizers.config")
    config.TokenizerConfig = tokenizers.TokenizerConfig  # type: ignore[attr-defined]
    sys.modules[config.__name__] = config


@torch.no_grad()
def logits(checkpoint: str) -> torch.Tensor:
    """Logits [1, tokens, vocabulary] of the model that Megatron-Bridge builds, in fp32."""
    arguments = importlib.import_module("megatron.bridge.training.mlm_compat.arguments")
    model = importlib.import_module("megatron.bridge.training.mlm_compat.model")
    args = arguments._load_args_from_checkpoint(checkpoint)
    args.transformer_impl = "local"
    args.no_persist_layer_norm = True
    args.bias_swiglu_fusion = False
    args.bf16, args.params_dtype = False, torch.float32
    config = arguments._transformer_config_from_args(args)
    config.perform_initialization = False
    built = model._gpt_provider(args, config).eval()
    for parameter in built.parameters():
        parameter.fill_(float("nan"))
    state = {"model": built.sharded_state_dict()}
    built.load_state_dict(dist_checkpointing.load(state, checkpoint)["model"])
    positions = torch.arange(TOKENS.shape[1]).unsqueeze(0)
    mask = torch.ones(TOKENS.shape[1], TOKENS.shape[1]).triu(1).bool()[None, None]
    return built(TOKENS, positions, mask)


def main(checkpoints: list[str], out: str) -> None:
    torch.cuda.current_device = lambda: torch.device("cpu")
    # Dropout is off, so no random stream is drawn from.
    CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()
    stand_in_for_packages()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    parallel_state.initialize_model_parallel()
    torch.save({checkpoint: logits(checkpoint) for checkpoint in checkpoints}, out)


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
