"""A text corpus into Megatron indexed datasets: plan, encode range by range, merge, publish.

The output depends on the inputs, the tokenizer and the options that select text, never on the
number of workers, on where ranges are cut, or on how often the run was stopped and started again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.datasets.checksums import HashedStream, described
from data_prep.encoders import BackendChoice
from data_prep.options import DESCRIPTION, RunOptions, check_numbers
from data_prep.ranges import InputRange
from data_prep.readers import read_batches
from data_prep.run import Log, RunSummary, check_token_type, plan_run, start_run
from data_prep.text_shards import TextCounts, TextJob, merge_index, merge_tokens
from data_prep.tokenizer import TokenizerInfo, load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.files import write_json


@dataclass(frozen=True)
class ConvertOptions(RunOptions):
    """What to convert; the command-line flags of `preprocess_data.py` under the same names."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_model: Path
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    include_special_tokens: bool = True
    plain_special_tokens: bool = False
    workers: int = 1
    partitions: int | None = None
    log_interval: int = 1000
    backend: BackendChoice = "auto"
    skip_bad_lines: Path | None = None
    overwrite: bool = False

    def dataset(self, key: str) -> Path:
        """The prefix of the dataset of one JSON key, as a recipe or Megatron names it."""
        return self.output_prefix.with_name(f"{self.output_prefix.name}_{key}_document")

    def dataset_files(self) -> dict[str, Path]:
        return {
            f"{number}.{suffix}": Path(f"{self.dataset(key)}.{suffix}")
            for number, key in enumerate(self.json_keys)
            for suffix in ("bin", "idx")
        }

    @property
    def description(self) -> Path:
        return Path(f"{self.output_prefix}.manifest.json")


@dataclass(frozen=True)
class ConvertSummary(RunSummary):
    """What a run read and wrote. `tokens` and `empty_documents` are by JSON key."""

    datasets: dict[str, Path]
    """The prefix of each key's `.bin` and `.idx`."""
    manifest: Path
    documents: int
    tokens: dict[str, int]
    empty_documents: dict[str, int]
    """Texts without tokens: documents without a sequence."""
    blank_lines: int
    bad_lines: dict[str, int]
    """By reason; they stand in the file of `skip_bad_lines`."""


def convert(
    options: ConvertOptions, log: Log = lambda line: print(line, file=sys.stderr)
) -> ConvertSummary:
    """Convert a corpus; the outputs appear whole, the manifest last.

    Raises `UserError` for bad options and bad input, with no output and no work directory left
    behind. On KeyboardInterrupt, or when the process is killed, the finished ranges stay in the
    work directory beside the outputs and the same options go on from there.
    """
    _check_options(options)
    plan = plan_run(options, options.json_keys)
    info, reference = load_tokenizer(options.tokenizer_model, options.include_special_tokens)
    info = replace(info, plain_special_tokens=options.plain_special_tokens)
    _check_tokenizer(options, info)
    keys = options.json_keys
    job = TextJob(plan.directory, info, options.collect_bad, keys, options.append_eod)
    run = start_run(plan, job, reference, _texts(plan.ranges, keys), log)
    fingerprint = run.fingerprint({"json_keys": keys, "append_eod": options.append_eod})
    with run.converting(fingerprint) as (counts, reused):
        _check_outcome(options, counts)
        summary = ConvertSummary(
            **asdict(run.summary(reused)),
            datasets={key: options.dataset(key) for key in keys},
            manifest=options.description,
            documents=counts.documents,
            tokens=counts.tokens,
            empty_documents={key: counts.documents - n for key, n in counts.sequences.items()},
            blank_lines=counts.blank,
            bad_lines=counts.bad,
        )
        manifest = {**_manifest(summary), "run": fingerprint}
        run.merge(lambda outputs: _write(outputs, job, plan.ranges, counts, manifest))
    return summary


def _check_options(options: ConvertOptions) -> None:
    check_numbers(options)
    keys = options.json_keys
    if not keys or len(set(keys)) < len(keys) or any("/" in key or not key for key in keys):
        raise UserError(
            "--json-keys",
            " ".join(map(repr, keys)) or "none",
            "different keys that can stand in a file name",
            "Name each key once; rename keys with a '/' in the corpus.",
        )


def _check_tokenizer(options: ConvertOptions, info: TokenizerInfo) -> None:
    if options.append_eod and info.eod_id is None:
        raise UserError(
            info.path.with_name("tokenizer_config.json"),
            "no eos_token",
            "the token that --append-eod puts after each document",
            "Add eos_token to that file, or leave --append-eod out.",
        )
    check_token_type(info)


def _texts(ranges: list[InputRange], keys: tuple[str, ...]) -> Iterator[list[str]]:
    for source in ranges:
        for batch in read_batches(source, keys):
            yield [text for column in batch.texts.values() for text in column]


def _check_outcome(options: ConvertOptions, counts: TextCounts) -> None:
    for key, tokens in counts.tokens.items():
        if not tokens:
            raise UserError(
                " ".join(options.inputs),
                f"no token at {key!r} in {counts.documents} documents "
                f"({counts.blank} blank lines, {sum(counts.bad.values())} bad lines)",
                "some text: Megatron cannot open an empty dataset",
                "Check the inputs and --json-keys.",
            )


def _write(
    outputs: Path,
    job: TextJob,
    ranges: list[InputRange],
    counts: TextCounts,
    manifest: dict[str, Any],
) -> None:
    files = {}
    for number, key in enumerate(job.keys):
        name = Path(manifest["datasets"][key]).name
        with (outputs / f"{number}.bin").open("wb") as stream:
            files[f"{name}.bin"] = described(merge_tokens(stream, job, ranges, key))
        with (outputs / f"{number}.idx").open("wb") as stream:
            hashed = HashedStream(stream)
            merge_index(hashed, job, ranges, key, counts)
            files[f"{name}.idx"] = described([hashed.piece])
    write_json(outputs / DESCRIPTION, manifest | {"files": files})


def _manifest(summary: ConvertSummary) -> dict[str, Any]:
    return {
        **asdict(summary),
        "datasets": {key: str(prefix) for key, prefix in summary.datasets.items()},
        "manifest": str(summary.manifest),
        "megabytes_per_second": round(summary.bytes_read / 1e6 / max(summary.seconds, 1e-3), 3),
    }
