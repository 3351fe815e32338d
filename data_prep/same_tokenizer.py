"""Do two models have one tokenizer? Read from their HF directories, without transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.tokenizer import NAMED_TOKENS, read_config, read_tokenizer, token_content
from megatron_soaes.errors import UserError

ID_FIELDS = ("eos_token_id", "pad_token_id")
"""Ids that end or pad an answer; generation_config.json goes before config.json."""


@dataclass(frozen=True)
class Difference:
    """The first entry in which a part of two tokenizers differs."""

    part: str
    """Such as "vocabulary"."""
    entry: str
    """The token, rank, id or field."""
    target: str
    draft: str


def require_same_tokenizer(target_dir: Path, draft_dir: Path) -> None:
    """UserError at the first difference: drafted ids would mean something else to the target.

    See `tokenizer_differences`.
    """
    for found in tokenizer_differences(target_dir, draft_dir):
        raise UserError(
            f"{draft_dir}: {found.part}, {found.entry}", found.draft,
            f"{found.target}, as in {target_dir}",
            "Use a draft that was trained with the target's tokenizer.",
        )  # fmt: skip


def tokenizer_differences(target_dir: Path, draft_dir: Path) -> Iterator[Difference]:
    """The first difference in vocabulary, merges, added tokens, special tokens, and ids of the end.

    Both are HF directories. Raises UserError when a file of them cannot be read.
    """
    target, draft = _parts(target_dir), _parts(draft_dir)
    for part, wanted in target.items():
        found = draft[part]
        for entry in (*wanted, *(entry for entry in found if entry not in wanted)):
            here, there = wanted.get(entry, "nothing"), found.get(entry, "nothing")
            if here != there:
                yield Difference(part, entry, str(here), str(there))
                break


def generation_ids(hf_dir: Path) -> dict[str, list[int]]:
    """`ID_FIELDS` as far as they are set. Raises UserError as `ids_in`."""
    found: dict[str, list[int]] = {}
    for name in ("config.json", "generation_config.json"):
        named = {field: ids_in(hf_dir / name, field) for field in ID_FIELDS}
        found |= {field: ids for field, ids in named.items() if ids}
    return found


def ids_in(file: Path, field: str) -> list[int]:
    """The token ids, one or a list, that a JSON file names under a field; none without either.

    Raises UserError for a file that is not a JSON object, and for a value that is no id.
    """
    value = _read_object(file).get(field) if file.is_file() else None
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(one) is int for one in ids):
        raise UserError(
            f"{file}: {field}", repr(value), "a token id, or a list of them", "Repair the file."
        )
    return ids


def _parts(hf_dir: Path) -> dict[str, Mapping[str, Any]]:
    file = hf_dir / "tokenizer.json"
    content = json.loads(read_tokenizer(file).to_str())
    model, config = content["model"], read_config(file)
    return {
        "vocabulary": model["vocab"],
        "merges": {f"rank {n}": merge for n, merge in enumerate(model.get("merges", []))},
        "added tokens": {f"id {token['id']}": token for token in content["added_tokens"]},
        "special tokens": {name: token_content(config.get(name)) for name in NAMED_TOKENS},
        "generation": {field: _shown(ids) for field, ids in generation_ids(hf_dir).items()},
    }


def _shown(ids: list[int]) -> str:
    """A list of one id is that id."""
    return str(ids[0] if len(ids) == 1 else ids)


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            file, f"invalid JSON ({error})", "a JSON object", "Repair the file."
        ) from None
    if not isinstance(content, dict):
        raise UserError(file, f"a {type(content).__name__}", "a JSON object", "Repair the file.")
    return content
