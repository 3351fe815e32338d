"""Our curation against datatrove's own blocks: MB per CPU-second, kept shares, recall of copies.

    python -m benchmarks.curation --corpus corpus.jsonl --ledger planted.jsonl
        [--peer-python PYTHON] [--peer-megabytes 8]

The corpus is JSON lines with `id`, `lang` and `text`; the ledger names planted copies (`id`, `of`,
`kind`, `level`, `lang`). Every block runs alone on all documents of a language, in one process a
language; "whole chain" is `soaes prep curate` with one worker, from the file to the documents,
CPU seconds of all its processes. The peer has the first megabytes only, its blocks with their
defaults and the right language, in an interpreter that has `datatrove[processing,io]`, `spacy` and
`jieba`. The goals: 10 MB per CPU-second for the whole chain on Chinese, recall of 0.99 and 0.98 at
edits of 1 and 2 %, nothing removed that is less than half alike.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.curation import ours
from data_prep.curation.dedup.shingles import jaccard, shingle

MB = 1e6


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--peer-megabytes", type=float, default=8.0)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    documents = read(options.corpus)
    if options.job:
        with tempfile.TemporaryDirectory() as folder:
            measured = ours.measure(documents[options.job], options.job, Path(folder))
        print(json.dumps(measured))
        return
    ledger = [orjson.loads(line) for line in options.ledger.read_bytes().splitlines()]
    for language in ("zh", "en"):
        compare(language, documents[language], ledger, options)
    chain(documents)


def read(corpus: Path) -> dict[str, list[dict[str, Any]]]:
    """The documents of each language."""
    documents = defaultdict(list)
    with corpus.open("rb") as lines:
        for line in lines:
            record = orjson.loads(line)
            documents[record["lang"]].append(record)
    return documents


def compare(
    language: str, documents: list[dict[str, Any]], ledger: list[Any], options: argparse.Namespace
) -> None:
    """Print the tables of one language."""
    head = leading(documents, options.peer_megabytes)
    command = [sys.executable, "-m", "benchmarks.curation", "--job", language]
    command += ["--corpus", str(options.corpus), "--ledger", str(options.ledger)]
    mine = run(command)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "documents.jsonl"
        file.write_bytes(b"".join(orjson.dumps(document) + b"\n" for document in head))
        peer = [
            options.peer_python,
            "-m",
            "benchmarks.curation.theirs",
            str(file),
            language,
            folder,
        ]
        theirs = run(peer)
    print(f"\n{language}: {size(documents):.1f} MB of text, the peer's part {size(head):.1f} MB\n")
    print("| block | MB per CPU-second | kept |\n|---|---|---|")
    for whose, rows, of in (("", mine["rows"], documents), ("datatrove: ", theirs["rows"], head)):
        for row in rows:
            rate = size(of) / max(row["cpu_seconds"], 1e-3)
            print(f"| {whose}{row['block']} | {rate:.2f} | {row['kept']:.1%} |")
    gone = {pair[0] for pair in mine["removed"]}
    print("\n| planted | recall | documents |\n|---|---|---|")
    for (kind, level), (found, planted) in sorted(recall(gone, language, ledger).items()):
        print(f"| {kind} {level} | {found / planted:.3f} | {planted} |")
    unlike = false_removals(mine["removed"], documents)
    print(f"\nremoved {len(gone)}, of them less than half alike to what stays: {unlike}")


def recall(
    gone: set[str], language: str, ledger: Iterable[Any]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Pairs of a copy and its original of which not both stayed, by kind and level."""
    pairs: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for entry in ledger:
        if entry["lang"] == language:
            found = entry["id"] in gone or entry["of"] in gone
            pairs[entry["kind"], str(entry["level"])].append(found)
    return {kind: (sum(found), len(found)) for kind, found in pairs.items()}


def false_removals(removed: list[list[str]], documents: list[dict[str, Any]]) -> int:
    """Documents that went although they are less than half alike to the one that stays."""
    texts = {document["id"]: document["text"] for document in documents}
    count = 0
    for pair in removed:
        shingles = shingle([texts[name] for name in pair])
        ends = shingles.starts.astype(int)
        sets = [sorted(set(shingles.hashes[a:b].tolist())) for a, b in pairwise(ends)]
        count += any(similarity(*two) < 0.5 for two in combinations(sets, 2))
    return count


def similarity(left: list[int], right: list[int]) -> float:
    """Jaccard similarity; equal texts without a shingle are alike."""
    if left == right:
        return 1.0
    return jaccard(np.array(left, dtype=np.uint64), np.array(right, dtype=np.uint64))


def chain(documents: dict[str, list[dict[str, Any]]]) -> None:
    """Print the rate of whole curations."""
    print("\n| whole chain | MB of text | CPU seconds | MB per CPU-second | peak MB |")
    print("|---|---|---|---|---|")
    for language, of in documents.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "raw.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in of))
            recipe = "output: out\ncorpora: {raw: {input: [raw.jsonl]}}\npart_megabytes: 32\n"
            (folder / "curation.yaml").write_text(recipe)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            code = "from megatron_soaes.cli import main; main()"
            command = [sys.executable, "-c", code, "prep", "curate", str(folder / "curation.yaml")]
            subprocess.run(command, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        peak = after.ru_maxrss / 1024
        print(f"| {language} | {size(of):.1f} | {cpu:.1f} | {size(of) / cpu:.1f} | {peak:.0f} |")


def leading(documents: list[dict[str, Any]], megabytes: float) -> list[dict[str, Any]]:
    """The first documents, up to so many megabytes of text."""
    taken, total = [], 0.0
    for document in documents:
        total += len(document["text"].encode()) / MB
        if total > megabytes:
            break
        taken.append(document)
    return taken


def size(documents: Iterable[dict[str, Any]]) -> float:
    """Megabytes of UTF-8 text."""
    return sum(len(document["text"].encode()) for document in documents) / MB


def run(command: list[str]) -> Any:
    """What a process prints as its last line, parsed."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
