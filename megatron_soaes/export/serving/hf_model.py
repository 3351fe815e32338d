"""A model as an HF directory, from any source, with a chosen number of vocabulary rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_soaes import files
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.export.hf_directory import copy_model_files, tensor_shapes, write_tensors
from megatron_soaes.export.source import Source, stored_dtype
from megatron_soaes.export.trtllm.layout import EMBEDDING, OUTPUT
from megatron_soaes.models.families import hf_config


def write_hf(
    source: Source, directory: Path, dtype: torch.dtype, vocab_size: int, progress: Progress | None
) -> None:
    """Fill `directory`, new or empty, with weights in `dtype`, config, tokenizer and chat template.

    Vocabulary rows beyond `vocab_size` are cut, missing ones repeat the last row; see
    `exported_vocab_size` for when that is harmless. Raises UserError for a value that `dtype`
    cannot hold.
    """
    copy_model_files(source, directory)
    config = hf_config(source.shape, source.config, str(dtype).removeprefix("torch."))
    files.write_json(directory / "config.json", config | {"vocab_size": vocab_size})
    rows = (vocab_size, source.shape.hidden)
    plan = {
        name: (rows if name in (EMBEDDING, OUTPUT) else shape, dtype)
        for name, shape in tensor_shapes(source).items()
    }

    def convert(name: str, tensor: Tensor) -> Tensor:
        if name in (EMBEDDING, OUTPUT):
            tensor = _with_rows(tensor, vocab_size)
        return stored_dtype(tensor, dtype, name)

    write_tensors(source, directory, plan, convert, first={}, progress=progress)


def _with_rows(matrix: Tensor, rows: int) -> Tensor:
    missing = max(rows - len(matrix), 0)
    return torch.cat([matrix[:rows], matrix[-1:].expand(missing, -1)])
