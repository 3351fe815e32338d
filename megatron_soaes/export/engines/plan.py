"""What is built for a target and its draft: every option written out, no default relied upon."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.export.engines.options import require_options, unverified

PLAN_FILE = "engines.json"
SCRIPT_FILE = "build_engines.sh"
CONTAINER = "nvcr.io/nvidia/tensorrt-llm/release"
LEAST_TOKENS = 8192
"""`max_num_tokens` where nothing asks for more: its default."""
TOKENS_PER_BLOCK = 32


@dataclass(frozen=True)
class EngineModel:
    """A checkpoint that becomes an engine; paths count from the pair's folder."""

    checkpoint: str
    engine: str
    ranks: int
    """Tensor-parallel ranks times pipeline stages; config.json of the checkpoint cuts it."""


@dataclass(frozen=True)
class EngineLimits:
    """What an engine must hold, the same for both models."""

    dtype: str
    """bfloat16 or float16."""
    max_batch_size: int
    max_input_len: int
    """Tokens of a prompt and its answer: the prefix goes to both engines anew each round."""
    max_seq_len: int


@dataclass(frozen=True)
class EngineBuild:
    """One run of `trtllm-build`."""

    checkpoint: str
    engine: str
    ranks: int
    options: dict[str, str]
    """Beside the checkpoint's and the engine's folder."""

    def command(self, output: str | None = None) -> list[str]:
        """The command line, run in the pair's folder; `output` stands in for the engine's."""
        folders = {"checkpoint_dir": self.checkpoint, "output_dir": output or self.engine}
        options = folders | self.options
        return ["trtllm-build", *(part for k, v in options.items() for part in (f"--{k}", v))]


@dataclass(frozen=True)
class EnginePlan:
    """All engines of a pair, for one version of TensorRT-LLM."""

    version: str
    container: str
    """Holds that version."""
    builds: dict[str, EngineBuild]
    """By role; the small draft first, so that a wrong version shows early."""
    unverified: list[str]


def plan_pair(
    version: str,
    target: EngineModel,
    draft: EngineModel,
    limits: EngineLimits,
    draft_length: int,
) -> EnginePlan:
    """The engines of a pair that speculates with drafts of up to `draft_length` tokens.

    Only the target is told of drafts; both need paged context attention, without which cached
    blocks of a prefix are not reused (examples/draft_target_model/README.md of TensorRT-LLM).
    """
    most = max(LEAST_TOKENS, limits.max_input_len, limits.max_batch_size * (draft_length + 1))
    common = {
        "log_level": "info",
        "max_batch_size": str(limits.max_batch_size),
        "max_input_len": str(limits.max_input_len),
        "max_seq_len": str(limits.max_seq_len),
        "max_num_tokens": str(most),
        "max_beam_width": "1",
        "kv_cache_type": "paged",
        "gpt_attention_plugin": limits.dtype,
        "gemm_plugin": limits.dtype,
        "nccl_plugin": limits.dtype,
        "context_fmha": "enable",
        "remove_input_padding": "enable",
        "tokens_per_block": str(TOKENS_PER_BLOCK),
        "use_paged_context_fmha": "enable",
        "use_fp8_context_fmha": "disable",
        "multiple_profiles": "disable",
    }
    judging = {
        "speculative_decoding_mode": "draft_tokens_external",
        "max_draft_len": str(draft_length),
    }
    builds = {
        "draft": _build(draft, common),
        "target": _build(target, common | judging),
    }
    for role, build in builds.items():
        require_options(build.options, role)
    stamps = unverified(version, builds["target"].options)
    return EnginePlan(version, f"{CONTAINER}:{version}", builds, stamps)


def _build(model: EngineModel, options: Mapping[str, str]) -> EngineBuild:
    workers = {"workers": str(model.ranks)}
    return EngineBuild(model.checkpoint, model.engine, model.ranks, {**workers, **options})


def build_script(plan: EnginePlan) -> str:
    """The same commands as a bash script that runs where only TensorRT-LLM is installed."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Engines for TensorRT-LLM {plan.version}, in the container {plan.container}.",
        *(f"# {line}" for line in plan.unverified),
        "set -euo pipefail",
        'cd -- "$(dirname -- "${BASH_SOURCE[0]}")"',
    ]
    for role, build in plan.builds.items():
        lines += ["", f"echo {role}", shlex.join(build.command())]
    return "\n".join(lines) + "\n"


def write_plan(plan: EnginePlan, folder: Path) -> None:
    """Write `engines.json` and `build_engines.sh`."""
    files.write_json(folder / PLAN_FILE, asdict(plan))
    script = folder / SCRIPT_FILE
    files.write_text(script, build_script(plan))
    script.chmod(0o755)


def read_plan(folder: Path) -> EnginePlan:
    """Read `engines.json`; UserError for what is no plan, or has options that are not recorded."""
    file = folder / PLAN_FILE
    if not file.is_file():
        raise UserError(
            file, "no file", "the plan of a pair's engines",
            "Name the folder that `soaes export pair` wrote, for a version with engines.",
        )  # fmt: skip
    try:
        plan = _plan(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            file, f"{type(error).__name__}: {error}", "a plan as `soaes export pair` writes it",
            "Export the pair again.",
        ) from None  # fmt: skip
    for role, build in plan.builds.items():
        require_options(build.options, f"{file}: {role}")
    return plan


def _plan(fields: dict[str, Any]) -> EnginePlan:
    builds = {role: EngineBuild(**build) for role, build in sorted(fields.pop("builds").items())}
    return EnginePlan(builds=builds, **fields)
