"""Several datasets as one, in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.datasets.checksums import HashedStream, Piece, described
from data_prep.datasets.manifest import DatasetManifest, manifest_of
from data_prep.datasets.writing import new_datasets, write_index, write_manifest
from data_prep.indexed import Index, concatenate, open_indexed
from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class MergeSummary:
    """What a merge made."""

    prefix: Path
    documents: int
    tokens: int


def merge(prefixes: Sequence[Path], output: Path) -> MergeSummary:
    """Write the documents of all datasets to `output`, byte for byte as if converted in one run.

    Tokens are copied by the kernel and not read again; their checksums come from the manifests, and
    where one has none the merged manifest has none for the tokens. Raises UserError for datasets of
    different token types or tokenizers, for conversations, for one named twice or of another size
    than its manifest says, and when `output` exists.
    """
    _require_each_once(prefixes)
    datasets = [open_indexed(prefix) for prefix in prefixes]
    manifests = [manifest_of(prefix) for prefix in prefixes]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        manifest.require_text(prefix)
    _require_one_type(prefixes, datasets)
    tokenizer = _one_tokenizer(prefixes, manifests)
    pieces = _pieces(prefixes, datasets, manifests)
    with new_datasets([output]) as folder:
        with (folder / f"{output.name}.bin").open("wb") as stream:
            concatenate(stream, (Path(f"{prefix}.bin") for prefix in prefixes))
        with (folder / f"{output.name}.idx").open("wb") as stream:
            hashed = HashedStream(stream)
            write_index(hashed, datasets)
        files = {f"{output.name}.idx": described([hashed.piece])}
        if pieces is not None:
            files[f"{output.name}.bin"] = described(pieces)
        lineage = [
            {
                "prefix": str(prefix), "files": manifest.files, "documents": len(dataset),
                "tokenizer": manifest.tokenizer,
            }
            for prefix, manifest, dataset in zip(prefixes, manifests, datasets, strict=True)
        ]  # fmt: skip
        documents = sum(map(len, datasets))
        tokens = sum(len(dataset.tokens) for dataset in datasets)
        counts = {"documents": documents, "tokens": tokens}
        made = {"merged": lineage, "tokenizer": tokenizer, "files": files, **counts}
        write_manifest(folder, output.name, made)
    return MergeSummary(output, documents, tokens)


def _require_each_once(prefixes: Sequence[Path]) -> None:
    if not prefixes:
        raise UserError("PREFIX", "none", "the datasets to merge", "Name them without suffix.")
    seen = set()
    for prefix in prefixes:
        if prefix.resolve() in seen:
            raise UserError(
                prefix, "this dataset a second time", "each once (its documents would be doubled)",
                "Name it once; a recipe's blend may weigh it more.",
            )  # fmt: skip
        seen.add(prefix.resolve())


def _require_one_type(prefixes: Sequence[Path], datasets: Sequence[Index]) -> None:
    for prefix, dataset in zip(prefixes, datasets, strict=True):
        if dataset.dtype != datasets[0].dtype:
            raise UserError(
                prefix, f"tokens of type {dataset.dtype.name}",
                f"{datasets[0].dtype.name}, as in {prefixes[0]}", "Merge datasets of one type.",
            )  # fmt: skip


def _pieces(
    prefixes: Sequence[Path], datasets: Sequence[Index], manifests: Sequence[DatasetManifest]
) -> list[Piece] | None:
    """The checksums of all tokens in a row; None where a manifest has none."""
    row: list[Piece] = []
    unknown = False
    for prefix, dataset, manifest in zip(prefixes, datasets, manifests, strict=True):
        pieces = manifest.pieces("bin")
        if pieces is None:
            unknown = True
        elif (size := sum(size for size, _ in pieces)) != dataset.bytes:
            raise UserError(
                f"{prefix}.bin", f"{dataset.bytes} bytes", f"{size}, by {manifest.path}",
                "Remove the manifest if it is of an earlier dataset of this name.",
            )  # fmt: skip
        else:
            row += pieces
    return None if unknown else row


def _one_tokenizer(
    prefixes: Sequence[Path], manifests: Sequence[DatasetManifest]
) -> dict[str, object] | None:
    """The tokenizer that the manifests name; None where none does."""
    named = [
        (prefix, manifest.tokenizer)
        for prefix, manifest in zip(prefixes, manifests, strict=True)
        if manifest.tokenizer
    ]
    for prefix, tokenizer in named:
        if tokenizer["sha256"] != named[0][1]["sha256"]:
            raise UserError(
                prefix, f"tokens of {tokenizer['path']}",
                f"those of {named[0][1]['path']}, as in {named[0][0]}",
                "Convert one of them again with the other's tokenizer.",
            )  # fmt: skip
    return named[0][1] if named else None
