"""A whole recipe, tiny: two datasets, both models, cpt, capture, distill and export."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_soaes.training.records import METRICS_FILE, read_records
from tests.checkpoint.tensors import newest_tensors
from tests.checkpoint.tiny import Case, make_model, tensors_of
from tests.data_prep.conftest import TRAINING_TEXT, save_tokenizer, train_tokenizer

STAGES = [
    "preprocess-mine", "preprocess-held", "import-target", "import-draft",
    "cpt", "capture", "distil", "hf",
]  # fmt: skip
RECIPE = """
version: 1
name: crash
workdir: work
models:
  target: {source: model, layout: {data_parallel: 2}}
  draft: {source: draft}
data:
  datasets:
    mine: {text: [mine.jsonl, more.jsonl]}
    held: {text: [held.jsonl]}
  blends: {mine: {weights: {mine: 1}}}
stages:
  - name: cpt
    kind: cpt
    blend: mine
    steps: 6
    sequence_length: 16
    global_batch_size: 2
    optimizer: {lr: 1.0e-3}
    validation: {sets: [held], every: 3, batches: 2}
    checkpoints: {every: 2, keep_last: 1}
    log_every: 1
  - name: capture
    kind: capture
    blend: mine
    samples: 8
    sequence_length: 16
    validation: [held]
    validation_samples: 2
    store: {entries: 8, samples_per_shard: 2}
  - name: distil
    kind: distill
    captured: capture
    steps: 4
    sequence_length: 16
    global_batch_size: 2
    schedule: {warmup_steps: 1}
    checkpoints: {every: 2, asynchronous: true}
  - {name: hf, kind: export}
"""
TIMES = re.compile(r"second|flops|mfu|memory|resources")
"""In the names of what differs from run to run."""


def make_graph(root: Path) -> Path:
    """Write models, text and the recipe below `root`; returns the recipe."""
    tokenizer = train_tokenizer()
    for seed, (name, layers) in enumerate({"model": 2, "draft": 1}.items()):
        case = Case(vocab_size=400, layers=layers)
        save_tokenizer(make_model(root / name, case, seed=seed), tokenizer)
    first = 0
    for name, documents in {"mine": 40, "more": 20, "held": 20}.items():
        texts = [f"{i}: {TRAINING_TEXT[i % 2]}" for i in range(first, first + documents)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (root / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        first += documents
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


def copy_graph(root: Path, target: Path) -> Path:
    """The same models, text and recipe in another folder, nothing run; returns the recipe."""
    shutil.copytree(root, target, ignore=shutil.ignore_patterns("work"))
    return target / "recipe.yaml"


def start(recipe: Path, **environment: str) -> subprocess.Popen[str]:
    """`soaes run` of the recipe, in a process group of its own; output and errors in one pipe."""
    settings = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_soaes", "run", str(recipe)],
        env={**os.environ, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def tokens(root: Path) -> dict[str, bytes]:
    """The bytes of every dataset's `.bin` and `.idx`, and of every shard of a teacher store."""
    work = root / "work"
    found = [*work.glob("preprocess-*/*.bin"), *work.glob("preprocess-*/*.idx")]
    found += work.glob("capture/**/*.bin")
    assert {file.suffix for file in found} == {".bin", ".idx"}
    return {str(file.relative_to(work)): file.read_bytes() for file in found}


def tensors(root: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint of every stage, and of the exported model."""
    work = root / "work"
    found = {f"hf/{name}": tensor for name, tensor in tensors_of(work / "hf/hf").items()}
    for stage in ("import-target", "import-draft", "cpt", "distil"):
        newest = newest_tensors(work / stage / "checkpoints")
        found |= {f"{stage}/{name}": tensor for name, tensor in newest.items()}
    return found


def records(root: Path) -> dict[str, list[Any]]:
    """What training told of every step, but for times; of checkpoints it tells nothing else."""
    work = root / "work"
    told = {stage: read_records(work / stage / METRICS_FILE) for stage in ("cpt", "distil")}
    return {
        stage: [_timeless(record) for record in found if "save_seconds" not in record]
        for stage, found in told.items()
    }


def metrics(root: Path) -> dict[str, Any]:
    """What the manifest of every stage says, but for times."""
    files = {stage: root / "work" / stage / "manifest.json" for stage in STAGES}
    manifests = {stage: json.loads(file.read_text("utf-8")) for stage, file in files.items()}
    return {stage: _timeless(found["metrics"]) for stage, found in manifests.items()}


def differences(found: Path, expected: Path) -> Iterator[str]:
    """What the results of two finished runs differ in, a line each."""
    for what in (tokens, records, metrics):
        mine, theirs = what(found), what(expected)
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                yield f"{what.__name__}: {name}"
    left, right = tensors(found), tensors(expected)
    for name in sorted({*left, *right}):
        if name not in left or name not in right or not _identical(left[name], right[name]):
            yield f"tensors: {name}"


def _identical(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if not TIMES.search(name)}
    return value
