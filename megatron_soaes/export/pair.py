"""Export a target and its draft with everything that starts them: one folder, for one version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.same_tokenizer import generation_ids, require_same_tokenizer
from megatron_soaes import files
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.errors import UserError
from megatron_soaes.export.engines.plan import write_plan
from megatron_soaes.export.serving import run_speculative
from megatron_soaes.export.serving.commands import serve_files
from megatron_soaes.export.serving.deployment import (
    CHECKPOINTS,
    DTYPES,
    ENGINES,
    HF,
    Deployment,
)
from megatron_soaes.export.serving.draft_length import (
    DraftLength,
    choose_draft_length,
    read_measurement,
)
from megatron_soaes.export.serving.hf_model import write_hf
from megatron_soaes.export.serving.readme import readme
from megatron_soaes.export.serving.triton import triton_files
from megatron_soaes.export.serving.versions import release_of, require_families, require_ranks
from megatron_soaes.export.source import Source, open_source
from megatron_soaes.export.trtllm.layout import Parallelism, require_legal
from megatron_soaes.export.trtllm.pair import check_pair
from megatron_soaes.export.trtllm.writer import export_trtllm
from megatron_soaes.export.vocabulary import exported_vocab_size
from megatron_soaes.recipe.shapes import ModelShape

ROLES = ("target", "draft")
RUNNER = "run_speculative"
CACHE_SHARES = {"target": 0.6, "draft": 0.5}
"""Of the memory that is free when the engine is loaded; the target is loaded first."""
Bars = Callable[[str], Progress]
"""Makes a progress callback of a name."""


@dataclass(frozen=True)
class PairOptions:
    """What is asked for; None stands for a default that follows from the models."""

    version: str
    """Of TensorRT-LLM."""
    tensor: int = 1
    draft_tensor: int | None = None
    """Ranks of the draft's engine; by default those of the target."""
    pipeline: int = 1
    dtype: str = "bf16"
    draft_length: int | None = None
    measured: Path | None = None
    """Report of `soaes speculate --out`."""
    max_batch_size: int = 8
    max_input_len: int | None = None
    """Tokens of a prompt and its answer; by default what `max_seq_len` leaves."""
    max_seq_len: int | None = None
    """By default what both models reach."""


@dataclass(frozen=True)
class PairReport:
    """What an export did."""

    directory: Path
    deployment: Deployment


def export_pair(
    target_dir: Path,
    draft_dir: Path,
    out_dir: Path,
    options: PairOptions,
    bars: Bars | None = None,
) -> PairReport:
    """Write HF directories, checkpoints for engines, and what starts them, into a new folder.

    Both models are HF directories or Megatron checkpoints (the newest iteration). `out_dir` appears
    whole or not at all. Raises UserError before anything is written when it exists, for tokenizers
    that differ, for ranks, lengths and families that the version or the models do not have, and
    for a measurement by which no draft length gains anything.
    """
    if out_dir.exists():
        raise UserError(
            out_dir, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip
    sources = {"target": open_source(target_dir), "draft": open_source(draft_dir)}
    require_same_tokenizer(sources["target"].hf_files, sources["draft"].hf_files)
    deployment = plan_deployment(sources, options)
    with files.atomic_directory(out_dir) as folder:
        for role, source in sources.items():
            dtype: torch.dtype = getattr(torch, DTYPES[deployment.dtype])
            bar = None if bars is None else bars(f"{role}: HF directory")
            write_hf(source, folder / HF[role], dtype, deployment.vocab_size, bar)
        if deployment.release.engines:
            _write_checkpoints(folder, deployment, bars)
        _write_texts(folder, deployment)
    return PairReport(out_dir, deployment)


def plan_deployment(sources: dict[str, Source], options: PairOptions) -> Deployment:
    """Everything that follows from models and options; raises UserError as `export_pair`."""
    release = release_of(options.version)
    target, draft = (sources[role].shape for role in ROLES)
    draft_tensor = options.tensor if options.draft_tensor is None else options.draft_tensor
    require_families(release, options.version, {role: sources[role].shape.family for role in ROLES})
    require_ranks(release, options.version, options.tensor, draft_tensor, options.pipeline)
    require_legal(target, Parallelism(options.tensor, options.pipeline))
    _require_draft_ranks(draft, draft_tensor)
    if options.dtype not in DTYPES:
        raise UserError("--dtype", options.dtype, " or ".join(DTYPES), "Choose one of them.")
    measured = None if options.measured is None else read_measurement(options.measured)
    length = choose_draft_length(options.draft_length, measured)
    max_input_len, max_seq_len = _limits(target, draft, options, length)
    end_ids, pad_id = _end_and_padding(sources["target"].hf_files)
    return Deployment(
        version=options.version,
        release=release,
        dtype=options.dtype,
        vocab_size=_common_vocab_size(sources["target"], sources["draft"]),
        tensor=options.tensor,
        draft_tensor=draft_tensor,
        pipeline=options.pipeline,
        draft_fits_ranks=_is_legal(draft, options.tensor),
        draft_length=length,
        max_batch_size=options.max_batch_size,
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
        parameters={role: sources[role].shape.parameters for role in ROLES},
        end_ids=end_ids,
        pad_id=pad_id,
    )


def _common_vocab_size(target: Source, draft: Source) -> int:
    """The target's, else the draft's; UserError when neither model can have the other's."""
    try:
        return exported_vocab_size(draft, target.shape.vocab_size)
    except UserError:
        return exported_vocab_size(target, draft.shape.vocab_size)


def _require_draft_ranks(draft: ModelShape, ranks: int) -> None:
    try:
        require_legal(draft, Parallelism(ranks, 1))
    except UserError as error:
        raise UserError("--draft-tp", error.found, error.expected, error.fix) from None


def _is_legal(shape: ModelShape, ranks: int) -> bool:
    try:
        require_legal(shape, Parallelism(ranks, 1))
    except UserError:
        return False
    return True


def _limits(
    target: ModelShape, draft: ModelShape, options: PairOptions, length: DraftLength
) -> tuple[int, int]:
    """`max_input_len` and `max_seq_len`."""
    reach = min(target.max_position, draft.max_position)
    sequence = reach if options.max_seq_len is None else options.max_seq_len
    if not 1 <= sequence <= reach:
        raise UserError(
            "--max-seq-len", str(sequence), f"1 to {reach}: positions that both models have",
            "Choose a smaller one, or a draft that reaches further.",
        )  # fmt: skip
    room = sequence - (length.tokens + 1)
    given = room if options.max_input_len is None else options.max_input_len
    if not 1 <= given <= room:
        raise UserError(
            "--max-input-len", str(given),
            f"1 to {room}: --max-seq-len {sequence} less {length.tokens} drafted tokens and one",
            "Choose a smaller one, or a larger --max-seq-len.",
        )  # fmt: skip
    if options.max_batch_size < 1:
        raise UserError("--max-batch-size", str(options.max_batch_size), "at least 1", "Raise it.")
    return given, sequence


def _end_and_padding(hf_files: Path) -> tuple[tuple[int, ...], int]:
    ids = generation_ids(hf_files)
    end = ids.get("eos_token_id")
    if not end:
        raise UserError(
            f"{hf_files}: eos_token_id", "nothing in generation_config.json and config.json",
            "the id that ends an answer", "Write it into both models' generation_config.json.",
        )  # fmt: skip
    return tuple(end), ids.get("pad_token_id", end)[0]


def _write_checkpoints(folder: Path, deployment: Deployment, bars: Bars | None) -> None:
    """From the HF directories just written, so that both are one model; then checked as a pair."""
    cuts = {
        "target": (deployment.tensor, deployment.pipeline),
        "draft": (deployment.draft_tensor, 1),
    }
    for role, (tensor, pipeline) in cuts.items():
        export_trtllm(
            folder / HF[role],
            folder / CHECKPOINTS[role],
            tensor_parallel=tensor,
            pipeline_parallel=pipeline,
            dtype=deployment.dtype,
            progress=None if bars is None else bars(f"{role}: engine checkpoint"),
        )
    problems = check_pair(
        folder / CHECKPOINTS["target"],
        folder / CHECKPOINTS["draft"],
        folder / HF["target"],
        folder / HF["draft"],
        deployment.max_seq_len,
    )
    if problems:
        raise AssertionError(f"the exported pair does not fit: {'; '.join(map(str, problems))}")


def _write_texts(folder: Path, deployment: Deployment) -> None:
    if deployment.release.engines:
        write_plan(deployment.engine_plan(), folder)
        _write_runner(folder, deployment)
    texts = serve_files(deployment) | triton_files(deployment)
    texts["README.md"] = readme(deployment)
    for name, text in texts.items():
        files.write_text(folder / name, text)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)


def _write_runner(folder: Path, deployment: Deployment) -> None:
    """The script as it stands in this package, and its settings."""
    shutil.copyfile(Path(run_speculative.__file__), folder / f"{RUNNER}.py")
    ranks = {"target": deployment.tensor * deployment.pipeline, "draft": deployment.draft_tensor}
    settings: dict[str, Any] = {
        role: {
            "engine": ENGINES[role],
            "devices": list(range(ranks[role])),
            "kv_cache_free_gpu_memory_fraction": CACHE_SHARES[role],
        }
        for role in ROLES
    }
    settings |= {
        "tensorrt_llm": deployment.version,
        "tokenizer": HF["target"],
        "draft_length": deployment.draft_length.tokens,
        "max_batch_size": deployment.max_batch_size,
        "max_input_len": deployment.max_input_len,
        "end_ids": deployment.end_ids,
        "pad_id": deployment.pad_id,
    }
    files.write_json(folder / f"{RUNNER}.json", settings)
