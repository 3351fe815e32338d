"""From a checkpoint directory of Megatron-LM, NeMo or Hugging Face to a checkpoint of our own."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_soaes.checkpoint.import_hf import ImportReport, import_hf
from megatron_soaes.checkpoint.import_nemo import import_nemo
from megatron_soaes.checkpoint.import_torch_dist import (
    MegatronModel,
    describe,
    refuse_existing,
    write_import,
)
from megatron_soaes.checkpoint.megatron_directory import (
    MegatronCheckpoint,
    is_megatron_directory,
    open_megatron,
)
from megatron_soaes.checkpoint.nemo_directory import is_nemo_directory
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.megatron_shapes import shape_from_args
from megatron_soaes.recipe.shapes import ModelShape


def import_model(
    source: Path, out_root: Path, *, tokenizer: Path | None = None, dtype: torch.dtype | None = None
) -> ImportReport:
    """Import an HF directory, a NeMo 2 checkpoint, or a Megatron-LM one with its HF tokenizer.

    Raises UserError as the three imports do, and when `tokenizer` is missing or not wanted.
    """
    if is_nemo_directory(source):
        return import_nemo(source, out_root, tokenizer=tokenizer, dtype=dtype)
    if is_megatron_directory(source):
        if tokenizer is None:
            arguments = open_megatron(source).arguments
            used = [str(arguments.get(name)) for name in ("tokenizer_type", "tokenizer_model")]
            raise UserError(
                source, f"no tokenizer in a Megatron-LM checkpoint (the run used {' '.join(used)})",
                "the HF tokenizer it was trained with", "Give its folder with --tokenizer.",
            )  # fmt: skip
        return import_megatron(source, tokenizer, out_root, dtype=dtype)
    if tokenizer is not None:
        raise UserError(
            source, "no Megatron-LM checkpoint", "one beside --tokenizer",
            "Leave --tokenizer out: an HF directory has its own.",
        )  # fmt: skip
    return import_hf(source, out_root, dtype=dtype)


def import_megatron(
    megatron_dir: Path,
    tokenizer_dir: Path,
    out_root: Path,
    *,
    config: Path | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> ImportReport:
    """Write the model of a Megatron-LM torch_dist checkpoint as iteration 0 of a new checkpoint.

    `megatron_dir` is a run's folder (its newest iteration is taken) or one iteration. Each tensor
    keeps its dtype unless `dtype` is given. Rows of vocabulary padding and the state of optimizer,
    schedule and random streams are left behind. Memory is bounded as in `import_hf`. With `verify`
    the model that Megatron-Core builds from `args` and reads from `megatron_dir` must give the
    logits of `transformers` on the imported weights (with `dtype`, Megatron-Core reads the
    converted weights too). `out_root` appears whole at the end or not at all.
    Raises UserError when it exists, for a checkpoint that cannot be read or whose arguments we do
    not build (`open_megatron`, `describe_model`), and when weights or logits do not fit.
    """
    refuse_existing(out_root)
    source = open_megatron(megatron_dir)
    model = describe_model(source, tokenizer_dir, config)
    return write_import(
        TorchDistReader(source.directory),
        model,
        out_root,
        dtype=dtype,
        verify=verify,
        compared=None if dtype else source.directory,
        has_optimizer=source.has_optimizer,
        progress=progress,
    )


def describe_model(
    source: MegatronCheckpoint, tokenizer_dir: Path, config: Path | None = None
) -> MegatronModel:
    """The shape and the config.json of a Megatron-LM checkpoint, as `describe` finds them.

    Raises UserError for arguments we do not build, too.
    """

    def shape_of(vocab_size: int, known: ModelShape | None) -> ModelShape:
        return shape_from_args(source.arguments, vocab_size, source.where, known)

    return describe(shape_of, tokenizer_dir, config)
