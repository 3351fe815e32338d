"""Tokenizing a corpus: ours, the classic way, datatrove's tokenizer, and a loop without checks.

    python -m benchmarks.preprocess --corpus corpus.jsonl --tokenizer DIR
        [--slow-megabytes 20] [--rounds 3] [--tiny]

Each contestant runs in processes of its own, in turn, and writes an indexed dataset (datatrove: its
own Megatron format). "Classic" is Megatron-LM's tool in kind, with the tokenizer library and the
dataset builder that it uses: a pool of workers, a document at a time through transformers, the
tokens sent back as Python lists and added to Megatron-Core's dataset by the parent. The bare loop
parses lines, encodes 4 MB at a time with fastokens and writes: no bad lines, no shards, no checks.
Slow contestants get the first megabytes only; rates are compared. CPU seconds are those of the
whole process tree, start-up included; peak memory is the tree's resident memory, sampled.
Prints a section for RESULTS.md. `--tiny` makes a small corpus and a tokenizer of its own, to try
the script; its figures mean nothing.

Goals: 30 MB/s, 15 times the classic way, within 1.15 of the bare loop's CPU seconds, 0.5 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

MB = 1e6
SECONDS_BETWEEN_SAMPLES = 0.1
BATCH_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Contestant:
    """A way to tokenize; `job` is what a process of this module is told to do."""

    name: str
    job: str
    slow: bool = False


CONTESTANTS = (
    Contestant("ours, 1 worker", "ours-1"),
    Contestant("ours, 2 workers", "ours-2"),
    Contestant("bare loop", "bare"),
    Contestant("classic, 2 workers", "classic", slow=True),
    Contestant("datatrove, 1 task", "datatrove", slow=True),
)


PACKAGES = (
    "fastokens", "tokenizers", "transformers", "megatron-core", "orjson", "numpy", "datatrove",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of a contestant, or the medians (the highest peak) of several."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def ours(corpus: Path, tokenizer: Path, out: Path, workers: int) -> None:
    """Our command."""
    from data_prep.preprocess_data import main as preprocess

    arguments = ["--input", str(corpus), "--tokenizer-model", str(tokenizer), "--append-eod"]
    preprocess([*arguments, "--output-prefix", str(out / "ours"), "--workers", str(workers)])


def bare(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Parse, encode, write."""
    import fastokens
    import numpy as np
    import orjson

    engine = fastokens.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    lengths = []
    with corpus.open("rb") as lines, (out / "bare.bin").open("wb") as stream:
        while batch := lines.readlines(BATCH_BYTES):
            texts = [orjson.loads(line)["text"] for line in batch]
            ids, offsets = engine.encode_batch_flat(texts)
            tokens = np.frombuffer(ids, np.uint32).astype(np.int32)
            ends = np.frombuffer(offsets, np.uint64)[1:].astype(np.int64)
            stream.write(np.insert(tokens, ends, 0).data)
            lengths.append(np.diff(ends, prepend=0) + 1)
    np.concatenate(lengths).astype(np.int32).tofile(out / "bare.lengths")


def classic(corpus: Path, tokenizer: Path, out: Path) -> None:
    """A pool of two, a document at a time, token lists pickled back."""
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(out / "classic.bin"), dtype=np.int32)
    with (
        multiprocessing.Pool(2, _load, (str(tokenizer),)) as pool,
        corpus.open(encoding="utf-8") as lines,
    ):
        for ids in pool.imap(_encode, lines, 32):
            builder.add_document(ids, [len(ids)])
    builder.finalize(str(out / "classic.idx"))


_WORKER: dict[str, Any] = {}
"""The state of a worker of the pool."""


def _load(folder: str) -> None:
    from transformers import AutoTokenizer

    _WORKER["tokenizer"] = AutoTokenizer.from_pretrained(folder)


def _encode(line: str) -> list[int]:
    tokenizer = _WORKER["tokenizer"]
    return [*tokenizer(json.loads(line)["text"]).input_ids, tokenizer.eos_token_id]


def datatrove(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Its reader and its tokenizer for Megatron."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    pipeline = [
        JsonlReader(str(corpus.parent), glob_pattern=corpus.name),
        MegatronDocumentTokenizer(
            str(out / "datatrove"),
            tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
            eos_token="<|endoftext|>",
        ),
    ]
    LocalPipelineExecutor(pipeline, logging_dir=str(out / "logs")).run()


def work(job: str, corpus: Path, tokenizer: Path, out: Path) -> None:
    """What a contestant's process does."""
    name, _, workers = job.partition("-")
    if name == "ours":
        ours(corpus, tokenizer, out, int(workers))
    else:
        {"bare": bare, "classic": classic, "datatrove": datatrove}[name](corpus, tokenizer, out)


def measured(contestant: Contestant, corpus: Path, tokenizer: Path) -> Run:
    """Run a contestant and watch its processes."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as out:
        command = [sys.executable, "-m", "benchmarks.preprocess", "--job", contestant.job]
        command += ["--corpus", str(corpus), "--tokenizer", str(tokenizer), "--out", out]
        started = time.perf_counter()
        with (Path(out) / "log").open("wb") as log:
            process = psutil.Popen(command, stdout=log, stderr=log)
        peak = 0
        cpu: dict[int, float] = {}
        while process.poll() is None:
            peak = max(peak, _look(process, cpu))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        seconds = time.perf_counter() - started
        if process.returncode:
            log_end = (Path(out) / "log").read_text("utf-8")[-2000:]
            raise RuntimeError(
                f"{contestant.name} ended with code {process.returncode}:\n{log_end}"
            )
    return Run(seconds, sum(cpu.values()), peak)


def _look(process: psutil.Process, cpu: dict[int, float]) -> int:
    """Note the CPU seconds of every process of a tree; returns its resident bytes."""
    resident = 0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
            cpu[one.pid] = times.user + times.system
            resident += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return resident


def leading(corpus: Path, megabytes: float, target: Path) -> Path:
    """The first lines of a corpus, up to so many megabytes."""
    left = megabytes * MB
    with corpus.open("rb") as lines, target.open("wb") as stream:
        for line in lines:
            left -= len(line)
            if left < 0:
                break
            stream.write(line)
    return target


def tiny(folder: Path) -> tuple[Path, Path]:
    """A small corpus and a tokenizer trained on it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = [f"The grid of region {n} was extended. 第{n}座变电站投入运行。" for n in range(2000)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}', "utf-8")
    return corpus, folder


def compare(corpus: Path, tokenizer: Path, slow_megabytes: float, rounds: int) -> None:
    """Let all take turns and print the section; the slow ones take one."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as folder:
        head = leading(corpus, slow_megabytes, Path(folder) / "head.jsonl")
        runs: dict[str, list[Run]] = {one.name: [] for one in CONTESTANTS}
        sizes = {True: head.stat().st_size / MB, False: corpus.stat().st_size / MB}
        for number in range(rounds):
            for one in CONTESTANTS:
                if number == 0 or not one.slow:
                    runs[one.name].append(measured(one, head if one.slow else corpus, tokenizer))
    print(f"## Tokenization, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"`python -m benchmarks.preprocess --rounds {rounds}`: {_subject(corpus, sizes)}\n")
    print("\n".join(_table({name: _middle(of) for name, of in runs.items()}, sizes)))


def _subject(corpus: Path, sizes: dict[bool, float]) -> str:
    """What was read, where, and with which packages."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{sizes[False]:.1f} MB of JSONL ({corpus.name}), its first {sizes[True]:.1f} MB for the "
        f"classic way and datatrove, one turn each; {len(os.sched_getaffinity(0))} cores "
        f"({model[1] if model else 'model unknown'}), {packages}."
    )


def _middle(runs: list[Run]) -> Run:
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu_seconds for run in runs),
        max(run.peak_bytes for run in runs),
    )


def _table(runs: dict[str, Run], sizes: dict[bool, float]) -> Iterator[str]:
    """The lines of the table, and the goals."""
    rates = {one.name: sizes[one.slow] / runs[one.name].seconds for one in CONTESTANTS}
    yield "| | MB | wall s | MB/s | CPU s | MB per CPU-second | peak GB |"
    yield "|---|---|---|---|---|---|---|"
    for one in CONTESTANTS:
        run, size = runs[one.name], sizes[one.slow]
        cpu = f"{run.cpu_seconds:.1f} | {size / run.cpu_seconds:.1f}"
        row = f"{size:.1f} | {run.seconds:.1f} | {rates[one.name]:.1f} | {cpu}"
        yield f"| {one.name} | {row} | {run.peak_bytes / 1e9:.2f} |"
    single, classic = runs["ours, 1 worker"], runs["classic, 2 workers"]
    best = max(rates["ours, 1 worker"], rates["ours, 2 workers"])
    share = single.cpu_seconds / runs["bare loop"].cpu_seconds
    times = best / rates["classic, 2 workers"]
    cheaper = classic.cpu_seconds / sizes[True] / (single.cpu_seconds / sizes[False])
    yield ""
    yield "| goal | measured |"
    yield "|---|---|"
    yield f"| 30 MB/s | {best:.1f} |"
    yield f"| 15 times the classic way | {times:.1f} (in CPU seconds {cheaper:.1f}) |"
    yield f"| 1 worker: 1.15 of the bare loop's CPU seconds or less | {share:.2f} |"
    yield f"| 1 worker: 0.5 GB or less | {single.peak_bytes / 1e9:.2f} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--slow-megabytes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(options.job, options.corpus, options.tokenizer, options.out)
        return
    if options.tiny:
        with tempfile.TemporaryDirectory() as folder:
            compare(*tiny(Path(folder)), slow_megabytes=options.slow_megabytes, rounds=1)
        return
    if options.corpus is None or options.tokenizer is None:
        parser.error("--corpus and --tokenizer, or --tiny")
    compare(options.corpus, options.tokenizer, options.slow_megabytes, options.rounds)


if __name__ == "__main__":
    main()
