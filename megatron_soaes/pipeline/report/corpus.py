"""What became of the data: documents and conversations, tokens, packs, samples."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.curation.pipeline.plan import OUTCOME
from data_prep.curation.report.data import read_clusters, read_outcome
from data_prep.curation.report.summary import Passage, Summary, summarise
from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.manifest import Manifest
from megatron_soaes.recipe.data_settings import Dataset
from megatron_soaes.recipe.graph import preprocess_node
from megatron_soaes.recipe.schema import CaptureStage, Recipe, RespondStage, TrainingStage


@dataclass(frozen=True)
class Tokens:
    """A dataset that was tokenized."""

    dataset: str
    unit: str
    """"documents" or "conversations"."""
    read: int
    left_out: dict[str, int]
    """By reason."""
    kept: int
    tokens: int
    trained_tokens: int
    """Those in the loss: all of documents, of conversations those that the recipe trains on."""


@dataclass(frozen=True)
class Answers:
    """What a model answered to the prompts of a dataset."""

    stage: str
    dataset: str
    prompts: int
    answers: int
    left_out: dict[str, int]
    tokens: int


@dataclass(frozen=True)
class Packing:
    """Conversations of a dataset laid into the sequences of a stage."""

    stage: str
    dataset: str
    conversations: int
    dropped: int
    truncated: int
    packs: int
    efficiency: float
    """Share of the sequences' positions that hold tokens."""


@dataclass(frozen=True)
class Consumed:
    """What a training stage has learnt from."""

    stage: str
    samples: dict[str, int]
    """By dataset."""
    trained_tokens: int


@dataclass(frozen=True)
class Curation:
    """A finished curation that a dataset comes from, or why it cannot be told of."""

    directory: str
    datasets: list[str]
    passages: list[Passage]
    tokens: int | None
    problem: str
    """Empty where there is none."""


@dataclass(frozen=True)
class Corpus:
    """The way of the data from the files to the weights."""

    curations: list[Curation]
    tokens: list[Tokens]
    answers: list[Answers]
    packing: list[Packing]
    consumed: list[Consumed]


def read_corpus(recipe: Recipe, manifests: Mapping[str, Manifest]) -> Corpus:
    """What the finished stages say of it."""
    made = [(name, manifests.get(preprocess_node(name))) for name in recipe.data.datasets]
    done = [(stage, manifests[stage.name]) for stage in recipe.stages if stage.name in manifests]
    packs = [pair for pair in done if isinstance(pair[0], TrainingStage | CaptureStage)]
    return Corpus(
        curations=_curations(recipe),
        tokens=[_tokens(name, manifest) for name, manifest in made if manifest],
        answers=[
            row
            for stage, manifest in done
            if isinstance(stage, RespondStage)
            for row in _answers(manifest)
        ],
        packing=[row for _, manifest in packs for row in _packing(manifest)],
        consumed=[
            Consumed(
                stage.name,
                manifest.metrics["consumed_samples"],
                int(manifest.metrics["trained_tokens"]),
            )
            for stage, manifest in done
            if isinstance(stage, TrainingStage)
        ],
    )


def _tokens(dataset: str, manifest: Manifest) -> Tokens:
    metrics = manifest.metrics
    if "conversations" not in metrics:
        read, empty, tokens = (
            int(metrics[name]) for name in ("documents", "empty_documents", "tokens")
        )
        left_out = {"empty": empty} if empty else {}
        return Tokens(dataset, "documents", read, left_out, read - empty, tokens, tokens)
    kept = int(metrics["conversations"])
    left_out = {**metrics["bad_lines"], **metrics["dropped"]}
    return Tokens(
        dataset, "conversations", kept + sum(left_out.values()), left_out, kept,
        int(metrics["tokens"]), int(metrics["trained_tokens"]),
    )  # fmt: skip


def _answers(manifest: Manifest) -> Iterator[Answers]:
    for dataset, one in manifest.metrics.items():
        left_out = {reason: number for reason, number in one["left_out"].items() if number}
        yield Answers(
            manifest.stage, dataset, one["prompts"], one["answers"], left_out, one["tokens"]
        )


def _packing(manifest: Manifest) -> Iterator[Packing]:
    for dataset, one in manifest.metrics.get("packing", {}).items():
        yield Packing(
            manifest.stage, dataset, one["conversations"], one["dropped"], one["truncated"],
            one["packs"], one["efficiency"],
        )  # fmt: skip


def _curations(recipe: Recipe) -> list[Curation]:
    """Those whose `documents` or `tokens` folder the recipe's datasets lie in."""
    used: dict[Path, list[str]] = {}
    for name, dataset in recipe.data.datasets.items():
        for folder in sorted({file.parent.parent for file in _files(dataset)}):
            if (folder / OUTCOME).is_file():
                used.setdefault(folder, []).append(name)
    return [_curation(folder, names) for folder, names in used.items()]


def _files(dataset: Dataset) -> list[Path]:
    given = [one for one in (dataset.indexed, dataset.indexed_conversations) if one]
    matches = [name for pattern in dataset.files for name in glob.glob(pattern, recursive=True)]
    return [*given, *map(Path, matches)]


def _curation(folder: Path, datasets: list[str]) -> Curation:
    try:
        outcome = read_outcome(folder)
        summary: Summary = summarise(outcome, read_clusters(folder, outcome))
    except UserError as error:
        return Curation(str(folder), datasets, [], None, str(error))
    return Curation(str(folder), datasets, summary.funnel, summary.all_tokens, "")
