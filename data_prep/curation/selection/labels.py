"""Texts that experts have labelled relevant or irrelevant, a JSON object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_soaes.errors import UserError
from megatron_soaes.files import sha256_file
from megatron_soaes.wording import unreadable

LABELS: dict[Any, bool] = {"relevant": True, "irrelevant": False}
FIX = "Correct the line."


@dataclass(frozen=True)
class Labelled:
    """Labelled texts in the order of their file; `relevant` is bool [texts]."""

    texts: list[str]
    relevant: npt.NDArray[np.bool_]
    sha256: str
    """Of the file they were read from."""


def read_labels(path: Path, at_least: int) -> Labelled:
    """Read lines `{"text": ..., "label": true | false | "relevant" | "irrelevant"}`.

    Other fields are notes and are not read; blank lines are skipped. Raises UserError with the
    line for anything else, for a text that occurs twice (it would be learnt and tested on), and
    for fewer than `at_least` texts of either label.
    """
    texts: dict[str, int] = {}
    relevant: list[bool] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(path, unreadable(error), "labelled texts", "Correct the path.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        text, label = _parse(line, where)
        if text in texts:
            found = f"the text of line {texts[text]} again"
            raise UserError(where, found, "every text once", "Remove one of the two.")
        texts[text] = number
        relevant.append(label)
    labels = np.array(relevant, dtype=np.bool_)
    positive = int(labels.sum())
    if min(positive, len(labels) - positive) < at_least:
        raise UserError(
            path, f"{positive} relevant and {len(labels) - positive} irrelevant texts",
            f"at least {at_least} of each", "Label more texts; a few hundred are a good start.",
        )  # fmt: skip
    return Labelled(list(texts), labels, sha256_file(path))


def _parse(line: bytes, where: str) -> tuple[str, bool]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(where, f"no JSON: {error}", "a JSON object", FIX) from None
    if not isinstance(record, dict):
        raise UserError(where, f"a JSON {type(record).__name__}", "a JSON object", FIX)
    text, label = record.get("text"), record.get("label")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: text", _shown(text), "a text", FIX)
    if not isinstance(label, bool) and (not isinstance(label, str) or label not in LABELS):
        expected = 'true, false, "relevant" or "irrelevant"'
        raise UserError(f"{where}: label", _shown(label), expected, FIX)
    return text.strip(), LABELS[label] if isinstance(label, str) else label


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:60]
