"""Convert a text corpus to Megatron indexed datasets, with the flags of Megatron's own tool.

python data_prep/preprocess_data.py --input 'corpus/*.jsonl' --tokenizer-model models/qwen \\
    --output-prefix data/corpus --append-eod --workers 8

docs/guides/bring-your-corpus.md says what is decided about odd input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    # Run as a file: make the repository importable, in place of this directory.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_prep.command import (
    add_backend_argument,
    add_input_argument,
    add_run_arguments,
    describe_left_out,
    run_command,
)
from data_prep.convert import ConvertOptions, ConvertSummary, convert
from data_prep.ranges import RANGE_BYTES
from megatron_soaes.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="preprocess_data.py", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    _add_text_arguments(parser.add_argument_group("text and tokens"))
    run = parser.add_argument_group("outputs and the run")
    outputs = "PREFIX_KEY_document.bin and .idx, and PREFIX.manifest.json"
    add_run_arguments(run, outputs, RANGE_BYTES, "documents")
    return parser


def _add_text_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add_input_argument(group)
    keys = "keys (Parquet: columns) to convert, one dataset for each (text)"
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help=keys)
    add("--split-sentences", action="store_true", help="not supported: refused")
    kind = "HuggingFaceTokenizer, the only one"
    add("--tokenizer-type", default="HuggingFaceTokenizer", metavar="TYPE", help=kind)
    model = "a Hugging Face model directory or a tokenizer.json"
    add("--tokenizer-model", type=Path, required=True, metavar="PATH", help=model)
    add(
        "--tokenizer-hf-no-include-special-tokens",
        action="store_true",
        help="do not add what the tokenizer's post-processor adds (Llama: a begin-of-text token)",
    )
    add(
        "--plain-special-tokens",
        action="store_true",
        help="encode the text of a special token inside a document as plain text, not as its id",
    )
    add("--append-eod", action="store_true", help="end every document with the eos_token")
    add_backend_argument(group)
    bad = "collect lines that hold no document in FILE and go on, instead of stopping"
    add("--skip-bad-lines", type=Path, metavar="FILE", help=bad)


def parse_options(argv: list[str]) -> ConvertOptions:
    """Read the command line. Raises `UserError` for what only Megatron's tool can do."""
    arguments = build_parser().parse_args(argv)
    if arguments.split_sentences:
        raise UserError(
            "--split-sentences",
            "a request for one sequence a sentence",
            "one sequence a document, as GPT-style training reads it",
            "Leave the flag out; for BERT-style data use Megatron's own tool.",
        )
    if arguments.tokenizer_type != "HuggingFaceTokenizer":
        raise UserError(
            "--tokenizer-type",
            arguments.tokenizer_type,
            "HuggingFaceTokenizer",
            "Pass the Hugging Face directory of the model as --tokenizer-model.",
        )
    return ConvertOptions(
        inputs=tuple(arguments.input),
        output_prefix=arguments.output_prefix,
        tokenizer_model=arguments.tokenizer_model,
        json_keys=tuple(arguments.json_keys),
        append_eod=arguments.append_eod,
        include_special_tokens=not arguments.tokenizer_hf_no_include_special_tokens,
        plain_special_tokens=arguments.plain_special_tokens,
        workers=arguments.workers,
        partitions=arguments.partitions,
        log_interval=arguments.log_interval,
        backend=arguments.backend,
        skip_bad_lines=arguments.skip_bad_lines,
        overwrite=arguments.overwrite,
    )


def describe(summary: ConvertSummary) -> str:
    """The result in words."""
    lines = [
        f"{summary.documents:,} documents in {summary.seconds:.1f} s "
        f"({summary.bytes_read / 1e6:,.1f} MB, {summary.backend})"
    ]
    for key, prefix in summary.datasets.items():
        empty = summary.empty_documents[key]
        lines.append(
            f"  {prefix}.bin/.idx: {summary.tokens[key]:,} tokens"
            + (f"; {empty:,} documents without text" if empty else "")
        )
    lines += describe_left_out(summary.blank_lines, summary.bad_lines)
    lines.append(f"  {summary.manifest}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run the command line `argv`; returns the exit code."""
    return run_command(lambda: convert(parse_options(argv)), describe)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
