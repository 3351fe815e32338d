"""A model as an HF directory, from any source, with a chosen number of vocabulary rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_soaes import files
from megatron_soaes.checkpoint.hf_files import (
    TOKENIZER_CONFIG,
    SafetensorsWriter,
    copy_other_files,
    rewrite_for_transformers_4,
)
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.export.source import Source, stored_dtype
from megatron_soaes.export.trtllm.layout import EMBEDDING, OUTPUT
from megatron_soaes.models.families import hf_config, weight_table

SHARD_BYTES = 5_000_000_000


def write_hf(
    source: Source, directory: Path, dtype: torch.dtype, vocab_size: int, progress: Progress | None
) -> None:
    """Fill `directory`, new or empty, with weights in `dtype`, config, tokenizer and chat template.

    Vocabulary rows beyond `vocab_size` are cut, missing ones repeat the last row; see
    `exported_vocab_size` for when that is harmless. README.md of the source stays behind: it
    describes another model. Memory is bounded by a layer or a vocabulary matrix. Raises UserError
    for a value that `dtype` cannot hold.
    """
    copy_other_files(source.hf_files, directory)
    rewrite_for_transformers_4(directory / TOKENIZER_CONFIG)
    (directory / "README.md").unlink(missing_ok=True)
    config = hf_config(source.shape, source.config, str(dtype).removeprefix("torch."))
    files.write_json(directory / "config.json", config | {"vocab_size": vocab_size})
    table, shape = weight_table(source.shape), source.shape
    outside = {
        name: size for w in table if not w.stacked for name, size in w.hf_shapes(shape).items()
    }
    layers = [
        {name: size for w in table if w.stacked for name, size in w.hf_shapes(shape, n).items()}
        for n in range(shape.layers)
    ]
    outside |= {name: (vocab_size, shape.hidden) for name in (EMBEDDING, OUTPUT) if name in outside}
    planned = outside | {name: size for layer in layers for name, size in layer.items()}
    writer = SafetensorsWriter(directory, {n: (s, dtype) for n, s in planned.items()}, SHARD_BYTES)
    for name in outside:
        writer.write(name, stored_dtype(_whole(source, name, vocab_size), dtype, name))
    for number, layer in enumerate(layers):
        tensors = source.layer(number)
        for name in layer:
            writer.write(name, stored_dtype(tensors[name], dtype, name))
        if progress is not None:
            progress(number + 1, shape.layers)
    writer.close()


def _whole(source: Source, name: str, vocab_size: int) -> Tensor:
    """A tensor outside the layers; a vocabulary matrix with `vocab_size` rows."""
    tensor = torch.cat([block for _, block in source.blocks(name)])
    if name not in (EMBEDDING, OUTPUT):
        return tensor
    missing = vocab_size - len(tensor)
    return torch.cat([tensor[:vocab_size], tensor[-1:].expand(max(missing, 0), -1)])
