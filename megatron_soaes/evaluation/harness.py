"""Bridge to lm-evaluation-harness: run it as a program, read what it wrote.

Written for lm_eval 0.4.13. Its results become suites with per-item outcomes, so that two runs are
compared like any others.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.result import Measure, Suite

PROFILE = "lm_eval"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
SETTINGS = ("model_dtype", "limit", "gen_kwargs", "fewshot_seed")
SAMPLE_HASHES = ("doc_hash", "prompt_hash", "target_hash")
ONE_CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")


@dataclass(frozen=True)
class HarnessRun:
    """What `lm_eval run` is asked to do."""

    model: Path
    """HF directory."""
    tasks: tuple[str, ...]
    task_directory: Path | None
    """Folder of task YAML files of one's own; None for the tasks that lm_eval ships."""
    num_fewshot: int | None = None
    """None for what each task says."""
    apply_chat_template: bool = False
    limit: int | None = None
    """Only the first items of each task."""
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 1
    seed: int = 1234
    python: Path = Path(sys.executable)
    """The interpreter of the environment that has lm_eval."""


def command(run: HarnessRun, output: Path) -> list[str]:
    """The command line of a run that writes into the folder `output`."""
    arguments = [
        str(run.python), "-m", "lm_eval", "run",
        "--model", "hf",
        "--model_args", f"pretrained={run.model},dtype={run.dtype}",
        "--tasks", *run.tasks,
        "--output_path", str(output),
        "--log_samples",
        "--device", run.device,
        "--batch_size", str(run.batch_size),
        "--seed", str(run.seed),
    ]  # fmt: skip
    if run.task_directory is not None:
        arguments += ["--include_path", str(run.task_directory)]
    if run.num_fewshot is not None:
        arguments += ["--num_fewshot", str(run.num_fewshot)]
    if run.limit is not None:
        arguments += ["--limit", str(run.limit)]
    if run.apply_chat_template:
        arguments += ["--apply_chat_template"]
    return arguments


def run_harness(run: HarnessRun, output: Path) -> dict[str, Suite]:
    """Run lm_eval offline and read its results; `output` is a new folder, its log `output.log`.

    Relative `data_files` of a task are looked for from the current directory. Raises UserError
    when lm_eval is missing or fails, and FileExistsError when `output` exists.
    """
    for argument in (str(run.model), *run.tasks):
        if "," in argument:
            raise UserError(
                "lm_eval", repr(argument), "a path or a task without a comma", "Rename it."
            )
    _require_lm_eval(run.python)
    log = output.with_name(output.name + ".log")
    with files.atomic_directory(output) as folder:
        with files.atomic_file(log) as stream:
            done = subprocess.run(
                command(run, folder),
                env={**os.environ, **OFFLINE},
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode != 0:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"lm_eval {' '.join(run.tasks)}",
                f"exit code {done.returncode} ({''.join(last)})",
                "a run without error",
                f"Read {log}.",
            )
        return read_results(folder)


def read_results(folder: Path) -> dict[str, Suite]:
    """A suite for each task of one lm_eval run with `--log_samples`; groups are not suites.

    Raises UserError when the folder does not hold exactly one run, or one that is not understood.
    """
    found = sorted(folder.glob("**/results_*.json"))
    if len(found) != 1:
        raise UserError(
            folder,
            f"{len(found)} files results_*.json",
            "the output of one lm_eval run",
            "Name a folder with one run.",
        )
    try:
        report = json.loads(found[0].read_text(encoding="utf-8"))
        moment = found[0].stem.removeprefix("results_")
        return {
            task: _suite(task, report, found[0].with_name(f"samples_{task}_{moment}.jsonl"))
            for task in report["configs"]
        }
    except FileNotFoundError as error:
        raise UserError(
            error.filename,
            "no such file",
            "the samples of every task",
            "Run lm_eval with --log_samples.",
        ) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            found[0],
            f"what is not understood ({type(error).__name__}: {error})",
            "results of lm_eval 0.4.13",
            "Run that version of lm_eval.",
        ) from None


def _require_lm_eval(python: Path) -> None:
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('lm_eval') is None)"
    if subprocess.run([str(python), "-c", probe], check=False).returncode != 0:
        raise UserError(
            python,
            "no Python package 'lm_eval'",
            "lm-evaluation-harness",
            "Run: pip install 'megatron-soaes[harness]'",
        )


def _suite(task: str, report: Mapping[str, Any], samples: Path) -> Suite:
    with samples.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    # With several answer filters each item comes once for each of them.
    filters: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: int(line["doc_id"])):
        filters.setdefault(line["filter"], []).append(line)
    measures: dict[str, Measure] = {}
    unpaired: dict[str, float] = {}
    for label, value in report["results"][task].items():
        metric, _, name = label.partition(",")
        if not name or metric.endswith("_stderr"):
            continue
        key = f"{PROFILE}.{metric}" + ("" if name == "none" else f",{name}")
        better = report["higher_is_better"][task][metric]
        measure = _measure(metric, filters[name], better is not False)
        if measure is None or not math.isclose(_reported(measure), value, rel_tol=1e-9):
            unpaired[key] = value
        else:
            measures[key] = measure
    first = next(iter(filters.values()))
    config = report["configs"][task]
    return Suite(
        kind="lm_eval",
        data=str(config.get("dataset_path", task)),
        data_sha256=files.sha256_json([[line[key] for key in SAMPLE_HASHES] for line in first]),
        ids=tuple(str(line["doc_id"]) for line in first),
        measures=measures,
        profiles={PROFILE: f"lm-evaluation-harness {report['lm_eval_version']}"},
        versions={"lm_eval": report["lm_eval_version"]},
        settings=_settings(task, report),
        answers=_answers(config["output_type"], first),
        unpaired=unpaired,
    )


def _measure(
    metric: str, lines: Sequence[Mapping[str, Any]], higher_is_better: bool
) -> Measure | None:
    """The metric item by item; None when items have no number for it."""
    values = [line[metric] for line in lines]
    if metric == "bits_per_byte":
        bits = tuple(-nats / math.log(2) / size for nats, size in values)
        sizes = tuple(float(size) for _, size in values)
        return Measure(bits, "bits/byte", higher_is_better=False, weights=sizes)
    if not all(isinstance(value, int | float) for value in values):
        return None
    if not set(values) <= {0, 1}:
        return Measure(tuple(map(float, values)), "", higher_is_better=higher_is_better)
    chances = None
    if metric in ONE_CHOICE_METRICS:
        chances = tuple(100 / _choices(line) for line in lines)
    scores = tuple(100.0 * value for value in values)
    return Measure(scores, "%", binary=True, higher_is_better=higher_is_better, chances=chances)


def _reported(measure: Measure) -> float:
    """The value in lm_eval's own scale; a metric that it does not average differs from it."""
    return measure.value / 100 if measure.binary else measure.value


def _choices(line: Mapping[str, Any]) -> int:
    """How many answers were weighed: as continuations of one context, or as contexts of one."""
    requests = line["arguments"].values()
    return max(len({request[key] for request in requests}) for key in ("arg_0", "arg_1"))


def _settings(task: str, report: Mapping[str, Any]) -> dict[str, Any]:
    config = report["config"]
    return {
        "version": report["versions"][task],
        "num_fewshot": report["n-shot"][task],
        "chat_template": report["chat_template_sha"],
        "system_instruction": report["system_instruction_sha"],
        **{name: config[name] for name in SETTINGS},
    }


def _answers(output_type: str, lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    if output_type != "generate_until":
        return ()
    return tuple(str(line["resps"][0][0]) for line in lines)
