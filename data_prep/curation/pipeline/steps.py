"""The steps of a stage that are no blocks: waiting, writing, signing, deciding, tokenizing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from data_prep.convert import ConvertOptions, convert
from data_prep.curation.dedup.candidates import gather_shard, propose
from data_prep.curation.dedup.clusters import decide
from data_prep.curation.dedup.decisions import write_report
from data_prep.curation.dedup.exact import find_copies, hash_shard
from data_prep.curation.dedup.minhash import sign_shard
from data_prep.curation.dedup.products import Shard
from data_prep.curation.pipeline.documents import (
    read_shard,
    shard_writer,
    write_document,
    write_parquet,
)
from data_prep.curation.pipeline.plan import Plan
from data_prep.curation.pipeline.recipe import Near, Tokenize
from megatron_soaes.errors import UserError

PathOf = Callable[[int], Path]
"""The file or folder of a task."""


class AfterStage(PipelineStep):
    """Nothing starts before every task of the stage before is done.

    Slurm's dependencies are not relied upon: a dependent of several job arrays may wait for the
    last of them only.
    """

    type = "Check"
    name = "After the stage before"

    def __init__(self, stage: str, logs: Path, tasks: int) -> None:
        super().__init__()
        self.stage = stage
        self.logs = logs
        self.tasks = tasks

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Raise UserError when a task is not done."""
        done = {file.name for file in (self.logs / "completions").glob("*")}
        missing = [task for task in range(self.tasks) if f"{task:05d}" not in done]
        if missing:
            raise UserError(
                f"stage {self.stage}", f"{len(missing)} of {self.tasks} tasks not done (the first: "
                f"{missing[0]})", "all of them done",
                f"Read the logs in {self.logs}, and start the command again: it goes on.",
            )  # fmt: skip
        return data


class ReadShard(PipelineStep):
    """The documents that an earlier stage left of a part."""

    type = "Reader"
    name = "Shard"

    def __init__(self, path_of: PathOf) -> None:
        super().__init__()
        self.path_of = path_of

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """All of shard `rank`."""
        yield from read_shard(self.path_of(rank))


class WriteShard(PipelineStep):
    """Writes what passes; the shard appears when all of it is written."""

    type = "Writer"
    name = "Shard"

    def __init__(self, path_of: PathOf) -> None:
        super().__init__()
        self.path_of = path_of

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The same documents."""
        with shard_writer(self.path_of(rank)) as stream:
            for document in data:
                write_document(stream, document)
                yield document


class WriteParquet(PipelineStep):
    """Writes what passes as Parquet rows; the file appears when all of it is written."""

    type = "Writer"
    name = "Parquet"

    def __init__(self, path_of: PathOf) -> None:
        super().__init__()
        self.path_of = path_of

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The same documents."""
        yield from write_parquet(self.path_of(rank), data)


class HashTexts(PipelineStep):
    """Hashes the texts of a part for finding copies."""

    type = "Dedup"
    name = "Hash texts"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Read all documents to their end."""
        texts = (document.text for document in data)
        hash_shard(texts, shard_of(self.plan, "clean", rank), hashes_of(self.plan, rank))
        deque(texts, maxlen=0)


class SignTexts(PipelineStep):
    """Signs the texts of a part for finding near copies."""

    type = "Dedup"
    name = "Sign texts"

    def __init__(self, plan: Plan, near: Near) -> None:
        super().__init__()
        self.plan = plan
        self.near = near

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Read all documents to their end."""
        texts = (document.text for document in data)
        shard, target = shard_of(self.plan, "unique", rank), bands_of(self.plan, rank)
        sign_shard(texts, shard, target, self.near.minhash)
        deque(texts, maxlen=0)


class FindCopies(PipelineStep):
    """Decides which copies go."""

    type = "Dedup"
    name = "Find copies"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all parts."""
        tasks = range(len(self.plan.parts))
        find_copies([hashes_of(self.plan, task) for task in tasks], copies_of(self.plan))


class Propose(PipelineStep):
    """Connects documents that may be near copies."""

    type = "Dedup"
    name = "Candidates"

    def __init__(self, plan: Plan, near: Near) -> None:
        super().__init__()
        self.plan = plan
        self.near = near

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all parts."""
        bands = [bands_of(self.plan, task) for task in range(len(self.plan.parts))]
        propose(bands, candidates_of(self.plan), self.near.minhash)


class Gather(PipelineStep):
    """Keeps the shingles of a part's candidates."""

    type = "Dedup"
    name = "Candidates' shingles"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Read all documents of the part."""
        texts = (document.text for document in data)
        shard, target = shard_of(self.plan, "unique", rank), gathered_of(self.plan, rank)
        gather_shard(texts, shard, candidates_of(self.plan), target)


class Decide(PipelineStep):
    """Decides which near copies go, and reports the clusters."""

    type = "Dedup"
    name = "Decide on near copies"

    def __init__(self, plan: Plan, near: Near) -> None:
        super().__init__()
        self.plan = plan
        self.near = near

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """One task for all parts."""
        gathered = [gathered_of(self.plan, task) for task in range(len(self.plan.parts))]
        decisions = decide(
            candidates_of(self.plan), gathered, near_copies_of(self.plan), self.near.min_jaccard
        )
        write_report(decisions, self.plan.recipe.output / "near-copies.jsonl")


class TokenizeCorpus(PipelineStep):
    """Converts what is left of a corpus to an indexed dataset."""

    type = "Tokenizer"
    name = "Indexed dataset"

    def __init__(self, plan: Plan, settings: Tokenize) -> None:
        super().__init__()
        self.plan = plan
        self.settings = settings

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Corpus `rank`, in the order of the recipe."""
        corpus = list(self.plan.recipe.corpora)[rank]
        tasks = [n for n, part in enumerate(self.plan.parts) if part.corpus == corpus]
        options = ConvertOptions(
            inputs=tuple(str(self.plan.document_file(task)) for task in tasks),
            output_prefix=self.plan.dataset(corpus),
            tokenizer_model=self.settings.tokenizer,
            append_eod=self.settings.append_eod,
        )
        if not options.description.is_file():
            convert(options)


def shard_of(plan: Plan, stage: str, task: int) -> Shard:
    """A part's documents after a stage, as the deduplication knows them."""
    return Shard(f"{task:05d}", f"{plan.identity}/{stage}/{task}")


def hashes_of(plan: Plan, task: int) -> Path:
    """Folder of the hashes of a part."""
    return plan.work / "hashes" / f"{task:05d}"


def copies_of(plan: Plan) -> Path:
    """Folder of the decisions on copies."""
    return plan.work / "copies"


def bands_of(plan: Plan, task: int) -> Path:
    """Folder of the signatures of a part."""
    return plan.work / "bands" / f"{task:05d}"


def candidates_of(plan: Plan) -> Path:
    """Folder of the candidates."""
    return plan.work / "candidates"


def gathered_of(plan: Plan, task: int) -> Path:
    """Folder of the shingles of a part's candidates."""
    return plan.work / "gathered" / f"{task:05d}"


def near_copies_of(plan: Plan) -> Path:
    """Folder of the decisions on near copies."""
    return plan.work / "near-copies"
