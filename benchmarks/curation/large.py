"""A corpus much larger than the memory it may take: how high does a whole curation climb?

    python -m benchmarks.curation.large --corpus corpus.jsonl [--gigabytes 2] [--workers 2]
        [--tokenizer DIR] [--limit-gb 1]

The corpus is read again and again until the size is reached, each time with the words of every
line in another order: nothing is a copy, and every block has all of its work. The proportional set
size of all processes together is sampled (a page that n of them share counts 1/n for each); above
the limit the run is ended and the benchmark fails.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import orjson
import psutil

SECONDS_BETWEEN_SAMPLES = 0.5
CHUNK = 3
GB = 1e9


def main() -> int:
    """Make the corpus, curate it, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--limit-gb", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.corpus.parent) as name:
        folder = Path(name)
        written = write_variants(options.corpus, folder / "raw.jsonl", options.gigabytes)
        recipe = "output: out\ncorpora: {raw: {input: [raw.jsonl]}}\npart_megabytes: 128\n"
        if options.tokenizer:
            recipe += f"tokenize: {{tokenizer: {options.tokenizer.resolve()}}}\n"
        (folder / "curation.yaml").write_text(recipe)
        started = time.perf_counter()
        code, peak = watched(folder / "curation.yaml", options.workers, options.limit_gb)
        seconds = time.perf_counter() - started
    print(
        f"{written / GB:.2f} GB, {options.workers} workers: {seconds:.0f} s, at most "
        f"{peak / GB:.2f} GB resident (limit {options.limit_gb} GB), exit code {code}"
    )
    return code


def write_variants(corpus: Path, target: Path, gigabytes: float) -> int:
    """Write variants of the corpus to `target`; returns its bytes."""
    written = number = 0
    with target.open("wb") as stream:
        while True:
            rng = random.Random(number)
            with corpus.open("rb") as lines:
                for line in lines:
                    record = orjson.loads(line)
                    record["id"] = f"{record['id']}-{number}"
                    record["text"] = variant(record["text"], rng)
                    written += stream.write(orjson.dumps(record) + b"\n")
                    if written >= gigabytes * GB:
                        return written
            number += 1


def variant(text: str, rng: random.Random) -> str:
    """The text with the words (Chinese: threes of characters) of each line in another order."""
    lines = []
    for line in text.split("\n"):
        body, last = line[:-1], line[-1:]
        if body.isascii():
            parts = body.split(" ")
            rng.shuffle(parts)
            lines.append(" ".join(parts) + last)
        else:
            parts = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
            rng.shuffle(parts)
            lines.append("".join(parts) + last)
    return "\n".join(lines)


def watched(recipe: Path, workers: int, limit_gb: float) -> tuple[int, int]:
    """Curate; the exit code, and the most memory that was resident in all processes, in bytes."""
    code = "from megatron_soaes.cli import main; main()"
    command = [sys.executable, "-c", code, "prep", "curate", str(recipe), "--workers", str(workers)]
    process = psutil.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process))
        if peak > limit_gb * GB:
            for child in process.children(recursive=True):
                child.kill()
            process.kill()
            return 1, peak
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return process.returncode, peak


def resident(process: psutil.Process) -> int:
    """Resident bytes of a process and its children."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
