"""Our blocks on the documents of one language, each in turn on what it would be given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.curation.boilerplate import Boilerplate
from data_prep.curation.code_points import Batch
from data_prep.curation.dedup.candidates import gather_shard, propose
from data_prep.curation.dedup.clusters import decide
from data_prep.curation.dedup.decisions import reasons_to_go
from data_prep.curation.dedup.exact import find_copies, hash_shard
from data_prep.curation.dedup.minhash import MinHash, sign_shard
from data_prep.curation.dedup.products import Product, Shard
from data_prep.curation.dedup.shingles import batches
from data_prep.curation.language import LanguageRule
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.mask import MaskPersonalData
from data_prep.curation.pipeline.blocks import Edit
from data_prep.curation.quality_en import QualityEn
from data_prep.curation.quality_zh import QualityZh
from data_prep.curation.repetition import Repetition, RepetitionZh
from data_prep.curation.script_policy import ScriptPolicy

SHARD = Shard("all", "1")
Documents = Sequence[dict[str, Any]]


def measure(documents: Documents, language: str, folder: Path) -> dict[str, Any]:
    """CPU seconds and kept share of every block on all documents of a language, and what the
    deduplication removed (both kinds: the document that goes, the one that stays)."""
    texts = [document["text"] for document in documents]
    repetition = RepetitionZh() if language == "zh" else Repetition()
    quality = QualityZh() if language == "zh" else QualityEn()
    language_rule, script = LanguageRule(), ScriptPolicy()
    blocks: list[tuple[str, Callable[[Batch], list[bool]]]] = [
        ("normalise", lambda batch: _edited(batch, Normalise())),
        ("language", lambda batch: [reason is None for reason in language_rule.reason(batch)]),
        ("boilerplate", lambda batch: _edited(batch, Boilerplate())),
        ("script", lambda batch: [reason is None for reason in script.reason(batch)]),
        ("quality", lambda batch: [reason is None for reason in quality.reason(batch)]),
        ("repetition", lambda batch: [reason is None for reason in repetition.reason(batch)]),
        ("personal data", lambda batch: _edited(batch, MaskPersonalData())),
    ]
    rows = [_per_batch(name, block, texts) for name, block in blocks]
    exact_row, copies = _exact(texts, folder)
    near_row, near_copies = _near(texts, folder)
    ids = [document["id"] for document in documents]
    removed = [[ids[gone], ids[stays]] for gone, stays in (copies | near_copies).items()]
    return {"rows": [*rows, exact_row, near_row], "removed": removed}


def _edited(batch: Batch, edit: Edit) -> list[bool]:
    """Whether something is left of each text."""
    may_change = edit.may_change(batch).tolist()
    return [
        bool(edit.apply(text).text if changes else text)
        for text, changes in zip(batch.texts, may_change, strict=True)
    ]


def _per_batch(
    name: str, keep: Callable[[Batch], list[bool]], texts: Sequence[str]
) -> dict[str, Any]:
    keep(Batch(texts[:1]))
    started = time.process_time()
    kept = sum(sum(keep(Batch(batch))) for batch in batches(texts))
    return {
        "block": name, "cpu_seconds": time.process_time() - started, "kept": kept / len(texts)
    }  # fmt: skip


def _exact(texts: Sequence[str], folder: Path) -> tuple[dict[str, Any], dict[int, int]]:
    started = time.process_time()
    hash_shard(texts, SHARD, folder / "hashes")
    gone = _gone(find_copies([folder / "hashes"], folder / "copies"))
    cpu = time.process_time() - started
    return {"block": "exact copies", "cpu_seconds": cpu, "kept": 1 - len(gone) / len(texts)}, gone


def _near(texts: Sequence[str], folder: Path) -> tuple[dict[str, Any], dict[int, int]]:
    started = time.process_time()
    sign_shard(texts, SHARD, folder / "bands", MinHash())
    propose([folder / "bands"], folder / "candidates", MinHash())
    gather_shard(texts, SHARD, folder / "candidates", folder / "gathered")
    gone = _gone(decide(folder / "candidates", [folder / "gathered"], folder / "near"))
    cpu = time.process_time() - started
    return {"block": "near copies", "cpu_seconds": cpu, "kept": 1 - len(gone) / len(texts)}, gone


def _gone(decisions: Product) -> dict[int, int]:
    pairs = reasons_to_go(decisions, SHARD.name).items()
    return {number: stays.document for number, stays in pairs}
