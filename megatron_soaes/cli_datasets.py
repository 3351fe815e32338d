"""`soaes prep inspect`, `soaes prep merge`, `soaes prep split`. No heavy imports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_soaes.errors import UserError

Prefix = Annotated[Path, typer.Argument(help="PREFIX of PREFIX.bin and PREFIX.idx.")]


def inspect(
    prefix: Prefix,
    *,
    doc: Annotated[int | None, typer.Option(help="Write this document as text, from 0.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="By default the one that the manifest names.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also read the tokens and compare checksums.")
    ] = False,
) -> None:
    """Say what is in an indexed dataset and whether it is whole."""
    from data_prep.datasets.inspect import inspect as open_dataset

    inspection = open_dataset(prefix)
    if doc is not None:
        typer.echo(inspection.document(doc, tokenizer))
        return
    for line in inspection.lines():
        typer.echo(line)
    if verify:
        typer.echo(inspection.verify())


def merge(
    prefixes: Annotated[list[Path], typer.Argument(help="Datasets, in this order.")],
    *,
    output_prefix: Annotated[Path, typer.Option(help="Of the new dataset.")],
) -> None:
    """Make one indexed dataset of several."""
    from data_prep.datasets.merge import merge as merge_datasets

    made = merge_datasets(prefixes, output_prefix)
    typer.echo(f"{made.documents:,} documents, {made.tokens:,} tokens -> {made.prefix}.bin, .idx")


def split(
    prefix: Prefix,
    *,
    fractions: Annotated[str, typer.Option(help="Such as train=0.98,valid=0.01,test=0.01.")],
    output_prefix: Annotated[
        Path | None, typer.Option(help="Of the parts, PREFIX_NAME; by default that of the dataset.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the hash that decides.")] = 1,
) -> None:
    """Split a dataset by a hash of each document: a document's part never changes."""
    from data_prep.datasets.split import split as split_dataset

    made = split_dataset(prefix, _fractions(fractions), output_prefix or prefix, seed)
    for name, part in made.prefixes.items():
        counts = f"{made.documents[name]:,} documents, {made.tokens[name]:,} tokens"
        typer.echo(f"{name}: {counts} -> {part}.bin, .idx")


def _fractions(text: str) -> dict[str, float]:
    fractions: dict[str, float] = {}
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        try:
            fraction = float(value)
        except ValueError:
            fraction = 0.0
        if not fraction or name in fractions:
            raise UserError(
                "--fractions", repr(pair), "NAME=NUMBER, each name once",
                "Write it as train=0.98,valid=0.02.",
            )  # fmt: skip
        fractions[name] = fraction
    return fractions
