"""NeMo's half of the exchange test: its own importer and exporter, on the CPU.

    python nemo_side.py FOLDER

For every model in FOLDER (a folder NAME with NAME/hf and NAME/nemo), NeMo turns NAME/hf into
NAME/nemo-by-nemo and NAME/nemo into NAME/hf-by-nemo. Runs in the environment of requirements.txt.

NeMo 2.7.3 expects a GPU and Transformer Engine. What stands in for them here moves no weight: norms
have other names in memory without Transformer Engine, and streams and synchronisation do nothing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch

FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def stand_in_for_cuda() -> None:
    """CUDA calls on the way of a save and of a load, without effect."""
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.Stream = MagicMock()
    torch.cuda.current_stream = MagicMock()
    torch.cuda.stream = lambda *_: contextlib.nullcontext()


def stand_in_for_removed_modules() -> None:
    """NeMo 2.7.3 imports two modules that Megatron-Core 0.16 no longer has, and uses neither."""
    for name in ("tensorstore", "zarr"):
        full = f"megatron.core.dist_checkpointing.strategies.{name}"
        module = types.ModuleType(full)
        module.__getattr__ = lambda _: MagicMock()  # type: ignore[method-assign]
        sys.modules[full] = module


def without_transformer_engine() -> None:
    """Let the connectors find norms by the names of Megatron-Core's local layers, in one dtype."""
    from megatron.core.transformer.transformer_config import TransformerConfig
    from nemo.lightning import io
    from nemo.lightning.io import connector, pl

    convert = io.apply_transforms

    def local_name(key: str) -> str:
        for fused, local in FUSED_NORMS.items():
            key = key.replace(fused, local)
        return key

    def apply_transforms(source: Any, target: Any, mapping: dict[str, str], **rest: Any) -> Any:
        for model in (source, target):
            if hasattr(model, "config") and hasattr(model.config, "params_dtype"):
                model.to(model.config.params_dtype)
        renamed = {local_name(key): local_name(value) for key, value in mapping.items()}
        return convert(source, target, mapping=renamed, **rest)

    io.apply_transforms = apply_transforms
    check = TransformerConfig.__post_init__

    def post_init(config: Any) -> None:
        # NeMo's Llama asks for kernels of Transformer Engine and apex.
        config.apply_rope_fusion = config.persist_layer_norm = False
        check(config)

    TransformerConfig.__post_init__ = post_init
    pl._fix_tensors_device = lambda checkpoint: checkpoint
    setup = connector.ModelConnector.nemo_setup

    def nemo_setup(self: Any, model: Any, trainer: Any = None, **options: Any) -> Any:
        return setup(self, model, trainer, ckpt_async_save=False, **options)

    connector.ModelConnector.nemo_setup = nemo_setup


def model_of(hf_dir: Path) -> Any:
    """A NeMo model of the family; its importer takes the sizes from config.json."""
    from nemo.collections import llm

    families = {
        "qwen2": (llm.Qwen2Model, llm.Qwen2Config),
        "qwen3": (llm.Qwen3Model, llm.Qwen3Config),
        "llama": (llm.LlamaModel, llm.LlamaConfig),
    }
    config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))
    model, configuration = families[config["model_type"]]
    return model(configuration(num_layers=1, hidden_size=8, num_attention_heads=8))


def main(folder: Path) -> None:
    stand_in_for_cuda()
    stand_in_for_removed_modules()
    from nemo.collections import llm

    without_transformer_engine()
    for case in sorted(path for path in folder.iterdir() if (path / "hf").is_dir()):
        llm.import_ckpt(
            model_of(case / "hf"), f"hf://{case / 'hf'}", output_path=case / "nemo-by-nemo"
        )
        if (case / "nemo").is_dir():
            llm.export_ckpt(case / "nemo", "hf", output_path=case / "hf-by-nemo")


# Workers that write a checkpoint import this file again.
if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
