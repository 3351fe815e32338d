"""From a NeMo 2 checkpoint directory to a checkpoint of our own; NeMo is not needed."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_soaes.checkpoint.import_hf import ImportReport
from megatron_soaes.checkpoint.import_torch_dist import describe, refuse_existing, write_import
from megatron_soaes.checkpoint.nemo_directory import NemoCheckpoint, open_nemo
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.errors import UserError


def import_nemo(
    nemo_dir: Path,
    out_root: Path,
    *,
    tokenizer: Path | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the model of a NeMo 2 checkpoint as iteration 0 of a new checkpoint.

    Its own tokenizer is taken unless `tokenizer` is given. Each tensor keeps its dtype unless
    `dtype` is given; optimizer state and vocabulary padding are left behind. With `verify` the
    model that Megatron-Core builds from NeMo's configuration must give the logits of `transformers`
    on the imported weights. `out_root` appears whole at the end or not at all.
    Raises UserError when it exists, for a checkpoint that cannot be read (`open_nemo`) or has no
    tokenizer, for a model we do not build, and when weights or logits do not fit.
    """
    refuse_existing(out_root)
    source = open_nemo(nemo_dir)
    model = describe(
        lambda vocab_size, known: source.shape(vocab_size),
        tokenizer or _own_tokenizer(source),
    )
    generation_config = source.generation_config
    return write_import(
        source.weights(),
        model,
        out_root,
        dtype=dtype,
        verify=verify,
        extra_files=[generation_config] if generation_config else [],
        has_optimizer=source.has_optimizer,
        progress=progress,
    )


def _own_tokenizer(source: NemoCheckpoint) -> Path:
    if source.tokenizer is None:
        raise UserError(
            source.directory, "no tokenizer in the checkpoint",
            "the HF tokenizer it was trained with", "Give its folder with --tokenizer.",
        )  # fmt: skip
    return source.tokenizer
