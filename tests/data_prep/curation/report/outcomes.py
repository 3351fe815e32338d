"""A small made-up curation: accounts kept as the blocks keep them, and its clusters."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_prep.curation.pipeline.account import Account
from megatron_soaes.files import write_json, write_text

HOSTILE = "<script src='http://evil.example/x.js'>alert(1)</script>"
SITES = 60
"""Sources with one document each, besides the two with many."""
CLUSTER_SIZES = (2, 2, 5, 9)


def document(number: int, source: str, text: str, **metadata: Any) -> Document:
    """A document of the made-up corpus."""
    return Document(text=text, id=f"d{number}", metadata={"source": source, **metadata})


def corpus() -> list[Document]:
    """100 documents of two large sources, one hostile, and of many small ones."""
    sources = ["gazette"] * 30 + [HOSTILE] * 10 + [f"site{n:02d}" for n in range(SITES)]
    documents = [
        document(n, source, "文" * (50 + 40 * n), language="zh" if n % 4 else "en")
        for n, source in enumerate(sources)
    ]
    for one in documents:
        if one.metadata["source"] == HOSTILE:
            one.id, one.text = f"{HOSTILE} {one.id}", f"{HOSTILE}\x00{one.text}"
    return documents


def outcome() -> dict[str, Any]:
    """`outcome.json` of a curation that drops hostile texts, copies, near copies, low scores."""
    blocks: dict[str, Account] = {}
    documents = corpus()
    names = ("read", "clean", "copies", "near-copies", "scores", "selection")
    for name in names:
        account = blocks[name] = Account()
        left = []
        for number, one in enumerate(documents):
            if name == "scores":
                one.metadata["scores"] = {"credibility": (number % 10) / 10}
            reason = _reason(name, number, one)
            if reason:
                why = {"copy_of": "00000:3"} if reason == "near_copy" else {}
                account.drop(one, one.text, reason, why)
                continue
            read = len(one.text)
            if name == "clean":
                one.text = one.text[:-1]
            account.keep(one, read)
            left.append(one)
        documents = left
    blocks["read"].skipped = {"blank": 7, "invalid_json": 2}
    blocks["clean"].edits = {"gazette": {"blanks": 11, "share": 3}, HOSTILE: {"blanks": 4}}
    blocks["clean"].masked = {"gazette": {"PHONE": 6}, "site01": {"PHONE": 1, "EMAIL": 2}}
    return {
        "blocks": [{"name": name, "account": asdict(blocks[name])} for name in names],
        "documents": {"policy": ["documents/policy-00000.jsonl.zst"], "notes": []},
        "tokens": {"policy": 3000, "notes": 1000, "hollow": 0},
        "blend": [
            {"name": "policy", "prefix": "/data/o'ne: two/policy_text_document", "weight": 6 / 7},
            {"name": "notes", "prefix": "/data/notes_text_document", "weight": 1 / 7},
            {"name": "hollow", "prefix": "/data/hollow_text_document", "weight": 0.0},
        ],
        "identity": "0123abcd",
    }


def _reason(block: str, number: int, one: Document) -> str | None:
    if block == "clean" and one.metadata["source"] == HOSTILE:
        return "zh_symbols"
    if block == "clean" and one.metadata["source"] == "gazette" and number < 24:
        return "of_our_own" if number == 0 else "top_ngram"
    if block == "copies" and number < 2:
        return "copy"
    if block == "near-copies" and number >= 50:
        return "near_copy" if number < 50 + sum(size - 1 for size in CLUSTER_SIZES) else None
    if block == "selection" and one.metadata["scores"]["credibility"] < 0.2:
        return "low_credibility"
    return None


def clusters() -> list[dict[str, Any]]:
    """Lines of `near-copies.jsonl` that go with it."""
    made, number = [], 100
    for kept, size in enumerate(CLUSTER_SIZES):
        removed = [{"shard": "00001", "document": number + n} for n in range(size - 1)]
        kept_at = {"shard": "00000", "document": kept}
        made.append({"size": size, "kept": kept_at, "removed": removed})
        number += size
    return made


def curated(folder: Path, content: dict[str, Any] | None = None) -> Path:
    """The output folder of the made-up curation, or of one with another outcome."""
    output = folder / "curated"
    write_json(output / "curation.json", {})
    write_json(output / "outcome.json", content or outcome())
    lines = [json.dumps(cluster) + "\n" for cluster in clusters()]
    write_text(output / "near-copies.jsonl", "".join(lines))
    return output


def empty() -> dict[str, Any]:
    """The outcome of a curation that found no document and made no tokens."""
    accounts = {"read": Account(), "clean": Account()}
    return {
        "blocks": [{"name": name, "account": asdict(one)} for name, one in accounts.items()],
        "documents": {}, "tokens": {}, "blend": [], "identity": "",
    }  # fmt: skip
