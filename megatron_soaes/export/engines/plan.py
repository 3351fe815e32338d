"""What is built for a target and its draft, with every option that the pair depends on.

Defaults of these options have moved between versions, so none is left to its default.
"""

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
from megatron_soaes.export.serving.versions import LAST_WITH_ENGINES, release_of

PLAN_FILE = "engines.json"
SCRIPT_FILE = "build_engines.sh"
CONTAINER = "nvcr.io/nvidia/tensorrt-llm/release"
LEAST_TOKENS = 8192
"""`max_num_tokens` where nothing asks for more: its default."""
TOKENS_PER_BLOCK = 32
ROLES = ("draft", "target")
"""The small draft first, so that a wrong version shows early."""
PLAN_FIELDS = {"version": str, "container": str, "builds": dict, "unverified": list}
BUILD_FIELDS = {"checkpoint": str, "engine": str, "ranks": int, "options": dict}
JSON_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


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
    """By role, in the order of `ROLES`."""
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
    Raises UserError for a version without engines.
    """
    _require_engines(version)
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
    builds = {"draft": _build(draft, common), "target": _build(target, common | judging)}
    for role, build in builds.items():
        require_options(build.options, role)
    stamps = unverified(version, builds["target"].options)
    return EnginePlan(version, f"{CONTAINER}:{version}", builds, stamps)


def _require_engines(version: str) -> None:
    if not release_of(version).engines:
        raise UserError(
            f"TensorRT-LLM {version}", "no trtllm-build to plan for", f"up to {LAST_WITH_ENGINES}",
            "Serve the HF directories with its PyTorch backend, or export the pair for "
            f"{LAST_WITH_ENGINES}.",
        )  # fmt: skip


def _build(model: EngineModel, options: Mapping[str, str]) -> EngineBuild:
    # The timing cache is written where the command runs, by default always under the same name.
    own = {"workers": str(model.ranks), "output_timing_cache": f"{model.engine}.timing_cache"}
    return EngineBuild(model.checkpoint, model.engine, model.ranks, {**own, **options})


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
    """Read `engines.json`.

    Raises UserError that names the field for what is no plan, for options that are not recorded,
    and for a version without engines.
    """
    file = folder / PLAN_FILE
    if not file.is_file():
        raise UserError(
            file, "no file", "the plan of a pair's engines",
            "Name the folder that `soaes export pair` wrote, for a version with engines.",
        )  # fmt: skip
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _no_plan(str(file), str(error), "JSON") from None
    fields = _fields(str(file), content, PLAN_FIELDS)
    roles = _fields(f"{file}: builds", fields["builds"], dict.fromkeys(ROLES, dict))
    for line in fields["unverified"]:
        _require_type(f"{file}: unverified", line, str)
    _require_engines(fields["version"])
    builds = {role: _read_build(f"{file}: builds.{role}", roles[role]) for role in ROLES}
    return EnginePlan(**(fields | {"builds": builds}))


def _read_build(where: str, content: dict[str, Any]) -> EngineBuild:
    fields = _fields(where, content, BUILD_FIELDS)
    for name in ("checkpoint", "engine"):
        path = Path(fields[name])
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise _no_plan(f"{where}.{name}", repr(fields[name]), "a path inside the pair's folder")
    if fields["ranks"] < 1:
        raise _no_plan(f"{where}.ranks", str(fields["ranks"]), "a number above 0")
    for name, value in fields["options"].items():
        _require_type(f"{where}.options.{name}", value, str)
    build = EngineBuild(**fields)
    require_options(build.options, f"{where}.options")
    return build


def _fields(where: str, content: object, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The content, when it is an object with these fields of these types and no other."""
    if not isinstance(content, dict) or content.keys() != kinds.keys():
        found = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)
        raise _no_plan(where, found or "nothing", f"the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        _require_type(f"{where}: {name}", content[name], kind)
    return content


def _require_type(where: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise _no_plan(where, repr(value), JSON_NAMES[kind])


def _no_plan(where: str, found: str, expected: str) -> UserError:
    return UserError(where, found, expected, "Correct it, or export the pair again.")
