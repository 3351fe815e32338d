"""Run `trtllm-build` for every engine of a pair, and take only what it should have made."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.export.engines.plan import SCRIPT_FILE, EngineBuild, EnginePlan, read_plan

COMMAND = "trtllm-build"
MANIFEST = "engine_manifest.json"
LOG_LINES = 30
"""Lines of a failed build's log that are shown."""
REPORT_S = 60.0
"""How often a build that goes on is mentioned."""
CHECKED = ("max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_draft_len")
"""Limits that an engine's config.json must have as they were asked for."""

Note = Callable[[str], object]


@dataclass(frozen=True)
class BuildReport:
    """What became of each engine, by role."""

    engines: dict[str, Path]
    built: list[str]
    kept: list[str]
    """Were there already, from the same checkpoint by the same command."""


def build_engines(folder: Path, note: Note = print) -> BuildReport:
    """Build what `engines.json` in `folder` plans and is not there yet.

    An engine's folder appears when its build succeeded and holds config.json, an engine for each
    rank, and a manifest: version, command, seconds, SHA-256 of the checkpoint's and the engine's
    files. Logs are in `logs/`. Raises UserError for a plan that cannot be read, for a folder that
    holds another engine, without `trtllm-build`, and for a build that fails or makes another
    engine than was asked for.
    """
    plan = read_plan(folder)
    report = BuildReport({}, [], [])
    for role, build in plan.builds.items():
        engine = folder / build.engine
        report.engines[role] = engine
        if not engine.exists():
            _require_command(folder, plan)
        record = {
            "command": build.command(),
            "version": plan.version,
            "checkpoint": _hashes(_checkpoint(folder, build)),
        }
        if engine.exists():
            _require_built_from(engine, record)
            report.kept.append(role)
            note(f"{role}: {engine} is there already")
        else:
            _build(folder, plan, role, record, note)
            report.built.append(role)
    return report


def _checkpoint(folder: Path, build: EngineBuild) -> Path:
    checkpoint = folder / build.checkpoint
    if not (checkpoint / "config.json").is_file():
        raise UserError(
            checkpoint, "no config.json", "a TensorRT-LLM checkpoint", "Export the pair again."
        )
    return checkpoint


def _hashes(directory: Path) -> dict[str, str]:
    return {
        file.name: files.sha256_file(file) for file in sorted(directory.iterdir()) if file.is_file()
    }


def _require_built_from(engine: Path, record: dict[str, Any]) -> None:
    """UserError for an engine whose manifest does not hold what `record` does."""
    manifest = engine / MANIFEST
    known = _read_object(manifest) if manifest.is_file() else {}
    if any(known.get(key) != value for key, value in record.items()):
        raise UserError(
            engine, "an engine of another checkpoint, version or command",
            "none, or that of the plan", "Move it away; then start the command again.",
        )  # fmt: skip


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(file, "no JSON object", "one", "Build the engine again, in a new folder.")
    return content


def _require_command(folder: Path, plan: EnginePlan) -> None:
    if shutil.which(COMMAND) is None:
        raise UserError(
            f"PATH: {COMMAND}", "no such command", f"that of TensorRT-LLM {plan.version}",
            f"Run this in the container {plan.container}, or there, without this package:"
            f" bash {shlex.quote(str(folder / SCRIPT_FILE))}",
        )  # fmt: skip


def _build(folder: Path, plan: EnginePlan, role: str, record: dict[str, Any], note: Note) -> None:
    build = plan.builds[role]
    log = (folder / "logs" / f"build-{role}.log").resolve()
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    with files.atomic_directory((folder / build.engine).resolve()) as made:
        note(f"{role}: {COMMAND} is building, its log is {log}")
        code = _run(build.command(str(made)), folder, log, lambda line: note(f"{role}: {line}"))
        if code:
            end = "\n".join(
                log.read_text(encoding="utf-8", errors="replace").split("\n")[-LOG_LINES:]
            )
            raise UserError(
                log, f"{COMMAND} ended with code {code}; the end of its log:\n{end}\n",
                "code 0", "Correct what the log names; then start the command again.",
            )  # fmt: skip
        _require_products(made, build, plan, role)
        seconds = round(time.monotonic() - started, 1)
        manifest = record | {"seconds": seconds, "engine": _hashes(made)}
        files.write_json(made / MANIFEST, manifest)
    note(f"{role}: built in {seconds:g} s -> {folder / build.engine}")


def _run(command: list[str], folder: Path, log: Path, note: Note) -> int:
    """The exit code of a command whose output goes to a log; it ends when we do."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
        started = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(REPORT_S)
                except subprocess.TimeoutExpired:
                    note(f"{(time.monotonic() - started) / 60:.0f} min")
        finally:
            process.kill()


def _require_products(made: Path, build: EngineBuild, plan: EnginePlan, role: str) -> None:
    wanted = {"config.json", *(f"rank{rank}.engine" for rank in range(build.ranks))}
    found = {file.name for file in made.iterdir() if file.stat().st_size}
    if not wanted <= found:
        raise _other(f"{role} engine", f"the files {', '.join(sorted(found)) or 'none'}",
                     ", ".join(sorted(wanted)) + ", none of them empty")  # fmt: skip
    config = _read_object(made / "config.json")
    if config.get("version") != plan.version:
        raise UserError(
            COMMAND, f"TensorRT-LLM {config.get('version')}", f"{plan.version}, as planned",
            f"Use the container {plan.container}, or export the pair for the version you have.",
        )  # fmt: skip
    ranks = config.get("pretrained_config", {}).get("mapping", {}).get("world_size")
    if ranks != build.ranks:
        raise _other(f"{role} engine: world_size", str(ranks), str(build.ranks))
    limits = config.get("build_config", {})
    for name in CHECKED:
        if name in build.options and str(limits.get(name)) != build.options[name]:
            raise _other(f"{role} engine: {name}", str(limits.get(name)), build.options[name])


def _other(where: str, found: str, expected: str) -> UserError:
    return UserError(where, found, expected, "See the log; trtllm-build made something else.")
