"""datatrove's own blocks with their defaults; run by an interpreter that has what they need.

    PYTHON -m benchmarks.curation.theirs DOCUMENTS.jsonl zh|en FOLDER

Needs `datatrove[processing,io]`, `spacy` and `jieba`, and nothing of this package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter

LANGUAGES = {"zh": "cmn", "en": "eng"}


def documents(file: Path) -> Iterator[Document]:
    """Fresh documents: blocks change what passes them."""
    with file.open("rb") as lines:
        for line in lines:
            record = orjson.loads(line)
            yield Document(text=record["text"], id=record["id"])


def text_of(document: Document) -> str:
    """What exact deduplication compares."""
    text: str = document.text
    return text


def measure(file: Path, language: str, folder: Path) -> dict[str, Any]:
    """CPU seconds and kept share of every block, and what its deduplication removed."""
    code = LANGUAGES[language]
    filters = {
        "Gopher quality": GopherQualityFilter(language=code),
        "Gopher repetition": GopherRepetitionFilter(language=code),
        "C4 quality": C4QualityFilter(language=code),
        "FineWeb quality": FineWebQualityFilter(language=code),
        "personal data": PIIFormatter(),
    }
    everything = list(documents(file))
    rows = []
    for name, block in filters.items():
        deque_of(block.run(iter(list(documents(file))[:1])))
        started = time.process_time()
        kept = len(deque_of(block.run(documents(file))))
        cpu = time.process_time() - started
        rows.append({"block": name, "cpu_seconds": cpu, "kept": kept / len(everything)})
    removed = set()
    for name, stages in (("exact copies", exact(folder)), ("near copies", near(folder, code))):
        started = time.process_time()
        *before, last = stages
        for stage in before:
            for step in [stage.run(documents(file), 0, 1)]:
                deque_of(step or [])
        kept_ids = {document.id for document in last.run(documents(file), 0, 1)}
        cpu = time.process_time() - started
        rows.append({"block": name, "cpu_seconds": cpu, "kept": len(kept_ids) / len(everything)})
        removed |= {document.id for document in everything} - kept_ids
    return {"rows": rows, "removed": sorted(removed)}


def deque_of(passed: Any) -> list[Document]:
    """Everything that passes."""
    return list(passed)


def exact(folder: Path) -> list[Any]:
    """The three stages of exact deduplication."""
    config = ExactDedupConfig(content_getter=text_of)
    signatures, found = str(folder / "exact-signatures"), str(folder / "exact-found")
    return [
        ExactDedupSignature(signatures, config),
        ExactFindDedups(signatures, found, config),
        ExactDedupFilter(found, config),
    ]


def near(folder: Path, language: str) -> list[Any]:
    """The four stages of near deduplication, 14 buckets of 8 hashes as ours."""
    config = MinhashConfig()
    signatures, buckets, remove = (str(folder / name) for name in ("signatures", "buckets", "gone"))
    finders = [
        _Bucket(MinhashDedupBuckets(signatures, buckets, config=config), bucket, 14)
        for bucket in range(config.num_buckets)
    ]
    return [
        MinhashDedupSignature(signatures, config=config, language=language),
        *finders,
        MinhashDedupCluster(buckets, remove, config=config),
        MinhashDedupFilter(remove),
    ]


class _Bucket:
    """The search of one bucket: it is its rank that tells the stage which."""

    def __init__(self, stage: Any, rank: int, ranks: int) -> None:
        self.stage, self.rank, self.ranks = stage, rank, ranks

    def run(self, data: Any, rank: int, world_size: int) -> Any:
        """Run that rank."""
        return self.stage.run(None, self.rank, self.ranks)


if __name__ == "__main__":
    measured = measure(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    print(json.dumps(measured))
