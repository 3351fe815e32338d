"""What a curation will do: the parts of the raw corpus, and the folder it works in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.curation.pipeline.reading import Part
from data_prep.curation.pipeline.recipe import Corpus, CurationRecipe
from data_prep.curation.pipeline.web import is_html, is_warc
from data_prep.ranges import InputFile, find_inputs, plan_ranges
from megatron_soaes.errors import UserError
from megatron_soaes.files import sha256_file, sha256_json, write_json

TEXT_SUFFIXES = (".txt", ".md")
FINGERPRINT = "curation.json"
SELECTION = "selection.json"
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Plan:
    """A curation of these parts; shard `n` of every stage is what became of part `n`."""

    recipe: CurationRecipe
    parts: list[Part]
    identity: str
    """Hash of the recipe and of the inputs."""

    @property
    def work(self) -> Path:
        """Folder of what the stages hand on."""
        return self.recipe.output / "work"

    @property
    def accounts(self) -> Path:
        """Folder of the blocks' accounts."""
        return self.recipe.output / "accounts"

    def shard(self, stage: str, task: int) -> Path:
        """The documents that a stage leaves of a part."""
        return self.work / stage / f"{task:05d}.jsonl.zst"

    def document_file(self, task: int) -> Path:
        """What is left of a part in the end."""
        corpus = self.parts[task].corpus
        number = sum(part.corpus == corpus for part in self.parts[:task])
        return self.recipe.output / "documents" / f"{corpus}-{number:05d}.{self.recipe.write}"

    def dataset(self, corpus: str) -> Path:
        """Prefix of a corpus's indexed dataset."""
        return self.recipe.output / "tokens" / corpus


def make_plan(recipe: CurationRecipe) -> Plan:
    """Find the inputs and cut them into parts.

    Raises UserError for inputs that are missing or named twice, and when the output holds what
    another recipe or other inputs made.
    """
    parts: list[Part] = []
    files: dict[Path, str] = {}
    described = []
    for name, corpus in recipe.corpora.items():
        inputs = find_inputs(tuple(corpus.input))
        for file in inputs:
            if file.path.resolve() in files:
                raise UserError(
                    f"corpora.{name}.input", f"{file.path}, which corpus "
                    f"{files[file.path.resolve()]} has as well", "each file in one corpus",
                    "Make the globs disjoint.",
                )  # fmt: skip
            files[file.path.resolve()] = name
            described.append([str(file.path.resolve()), file.size, file.modified_ns])
        parts += _parts(name, corpus, inputs, recipe.part_megabytes * 2**20)
    made_by = {"recipe": recipe.outcome(), "inputs": described, "files": _hashes(recipe)}
    # It is compared with what is read back, so it must have been JSON as well.
    made_by = orjson.loads(orjson.dumps(made_by))
    plan = Plan(recipe, parts, sha256_json(made_by))
    _claim(recipe.output, made_by)
    _choose_again(plan)
    return plan


def _parts(name: str, corpus: Corpus, inputs: list[InputFile], size: int) -> list[Part]:
    """Ranges of files of records, then archives, then groups of pages and of texts."""
    records, archives, pages, texts = [], [], [], []
    for file in inputs:
        if is_warc(file.path):
            archives.append(Part(name, None, (file.path,)))
        elif is_html(file.path):
            pages.append(file)
        elif file.path.suffix.lower() in TEXT_SUFFIXES:
            texts.append(file)
        else:
            records.append(file)
    ranges = plan_ranges(records, (corpus.text_key,), None, size)
    parts = [Part(name, source) for source in ranges] + archives
    return parts + [
        Part(name, None, group) for files in (pages, texts) for group in _groups(files, size)
    ]


def _groups(files: list[InputFile], size: int) -> Iterator[tuple[Path, ...]]:
    """Consecutive files of about `size` bytes together."""
    group: list[Path] = []
    filled = 0
    for file in files:
        if group and filled + file.size > size:
            yield tuple(group)
            group, filled = [], 0
        group.append(file.path)
        filled += file.size
    if group:
        yield tuple(group)


def _hashes(recipe: CurationRecipe) -> dict[str, str]:
    hashes = {}
    for file in recipe.files():
        if not file.is_file():
            raise UserError(file, "no such file", "a file of the recipe", "Correct the path.")
        hashes[str(file)] = sha256_file(file)
    return hashes


def _claim(output: Path, made_by: dict[str, Any]) -> None:
    """Note in `output` what its content is made by; it must not be of anything else."""
    file = output / FINGERPRINT
    if file.is_file():
        _require_same(output, orjson.loads(file.read_bytes()), made_by)
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(
            output, "a folder with other files", "an empty or a new one", "Choose another output."
        )
    output.mkdir(parents=True, exist_ok=True)
    write_json(file, made_by)


def _choose_again(plan: Plan) -> None:
    """Remove what was made with another choice by scores: it is made from what stays in `work`."""
    output, note = plan.recipe.output, {"keep": plan.recipe.keep}
    file = output / SELECTION
    if file.is_file() and orjson.loads(file.read_bytes()) != note:
        for name in (OUTCOME, "report.html", "report.json"):
            (output / name).unlink(missing_ok=True)
        chosen = ("documents", "tokens", "accounts/selection")
        logs = (f"logs/{stage}" for stage in ("documents", "tokens", "outcome"))
        for folder in (*logs, *chosen):
            shutil.rmtree(output / folder, ignore_errors=True)
    write_json(file, note)


def _require_same(output: Path, known: dict[str, Any], made_by: dict[str, Any]) -> None:
    differing = [name for name in ("inputs", "files") if known[name] != made_by[name]]
    before, now = known["recipe"], made_by["recipe"]
    differing += [f"recipe: {name}" for name in now if before.get(name) != now[name]]
    if differing:
        raise UserError(
            output, f"what was made by others ({', '.join(differing)})",
            "the output of this recipe and these inputs",
            "Choose another output, or remove it to start afresh.",
        )  # fmt: skip
