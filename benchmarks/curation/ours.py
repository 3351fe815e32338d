"""Our blocks on the documents of one language, each in turn on what it would be given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_prep.curation.boilerplate import Boilerplate
from data_prep.curation.code_points import Analysed
from data_prep.curation.dedup.candidates import gather_shard, propose
from data_prep.curation.dedup.clusters import decide
from data_prep.curation.dedup.decisions import reasons_to_go
from data_prep.curation.dedup.exact import find_copies, hash_shard
from data_prep.curation.dedup.minhash import MinHash, sign_shard
from data_prep.curation.dedup.products import Product, Shard
from data_prep.curation.language import LanguageRule
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.mask import MaskPersonalData
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
    rules: list[tuple[str, Callable[[str], bool]]] = [
        ("normalise", lambda text: bool(Normalise().apply(text).text)),
        ("language", lambda text: LanguageRule().identify(Analysed(text)).language != "other"),
        ("boilerplate", lambda text: bool(Boilerplate().apply(text).text)),
        ("script", lambda text: ScriptPolicy().reason(Analysed(text)) is None),
        ("quality", lambda text: quality.reason(Analysed(text)) is None),
        ("repetition", lambda text: repetition.reason(Analysed(text)) is None),
        ("personal data", lambda text: bool(MaskPersonalData().apply(text).text)),
    ]
    rows = [_per_text(name, rule, texts) for name, rule in rules]
    exact_row, copies = _exact(texts, folder)
    near_row, near_copies = _near(texts, folder)
    ids = [document["id"] for document in documents]
    removed = [[ids[gone], ids[stays]] for gone, stays in (copies | near_copies).items()]
    return {"rows": [*rows, exact_row, near_row], "removed": removed}


def _per_text(name: str, keep: Callable[[str], bool], texts: Sequence[str]) -> dict[str, Any]:
    keep(texts[0])
    started = time.process_time()
    kept = sum(map(keep, texts))
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
