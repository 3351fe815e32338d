"""Personal data replaced by placeholders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from string import ascii_uppercase, digits, hexdigits

import numpy as np

from data_prep.curation.code_points import Batch, Classes, Counts
from data_prep.curation.edits import Edited
from data_prep.curation.lines import Mask
from data_prep.curation.pii.patterns import CANDIDATE, FORMS, PLATE_PROVINCES, Form, Kind

DIGIT, HEX, UPPER, GAP, DOT, COLON, PROVINCE, AT = (1 << bit for bit in range(8))
KINDS = {
    DIGIT: digits,
    HEX: hexdigits,
    UPPER: ascii_uppercase,
    GAP: " -",
    DOT: ".",
    COLON: ":",
    PROVINCE: PLATE_PROVINCES,
    AT: "@",
}
SEPARATORS = str.maketrans("", "", " -")


@dataclass(frozen=True)
class MaskPersonalData:
    """Replaces personal data by `<EMAIL>`, `<IP>`, `<ID>`, `<CREDIT_CODE>`, `<BANK_CARD>`,
    `<PHONE>`, `<PASSPORT>` and `<PLATE>`; a second pass finds nothing more.

    Found are e-mail addresses, public IPv4 and IPv6 addresses, identity numbers of residents of
    China, unified social credit codes, bank cards, mobile numbers of mainland China, Chinese
    passports that are called so, and licence plates. Names, postal addresses and landlines are not.
    """

    kinds: tuple[Kind, ...] = tuple(Kind)
    """The kinds to replace. Credit codes are those of companies and are in public registers."""

    def may_change(self, batch: Batch) -> Mask:
        """Texts that `apply` may change; the others it would leave as they are. bool [texts]."""
        mask: Mask = batch.at(_candidates(batch)) > 0
        return mask

    def apply(self, text: str) -> Edited:
        """The text with placeholders; `counts` by `Kind`."""
        forms = [form for form in FORMS if form.kind in self.kinds]
        counts: Counter[str] = Counter()
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if "@" in line or CANDIDATE.search(line):
                lines[number] = _mask_line(line, forms, counts)
        return Edited("\n".join(lines), counts)


def _candidates(batch: Batch) -> Counts:
    """Places where `CANDIDATE` may match, and those of @, int64 [candidates], rising."""
    kinds = _kinds().take(batch.codes, mode="clip")
    places = np.flatnonzero(kinds)
    own = kinds[places]

    def beside(kind: int, offsets: Iterable[int], neighbour: int) -> Counts:
        found = places[(own & kind) > 0]
        for offset in offsets:
            found = found[(kinds.take(found + offset, mode="wrap") & neighbour) > 0]
        return found

    numbers = beside(DIGIT, (), DIGIT)
    runs = numbers[:-5][numbers[5:] - numbers[:-5] == 5]
    gaps = beside(GAP, (-3, -2, -1, 1, 2, 3, 4), DIGIT)
    dots = beside(DOT, (-1, 1), DIGIT)
    dots = dots[np.diff(dots, append=2 * len(kinds)) <= 4]
    colons = beside(COLON, (-3, -2, -1), HEX)
    plates = beside(UPPER, (-1,), PROVINCE)
    return np.sort(np.concatenate([runs, gaps, dots, colons, plates, beside(AT, (), AT)]))


@cache
def _kinds() -> Classes:
    """What each code point below U+FFFF may be in personal data, bits."""
    table = np.zeros(0x10000, dtype=np.uint8)
    for kind, characters in KINDS.items():
        table[[ord(character) for character in characters]] |= kind
    return table


def _mask_line(line: str, forms: list[Form], counts: Counter[str]) -> str:
    found = -1
    # What stands beside something found is free of it only when that is replaced.
    while found < counts.total():
        found = counts.total()
        for form in forms:
            line = _mask(line, form, counts)
    return line


def _mask(text: str, form: Form, counts: Counter[str]) -> str:
    if form.kind is Kind.EMAIL and "@" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        found = match[1]
        plain = found if form.kind in (Kind.EMAIL, Kind.IP) else found.translate(SEPARATORS)
        if not form.check(plain):
            return match[0]
        counts[form.kind] += 1
        start, end = match.start(1) - match.start(), match.end(1) - match.start()
        return f"{match[0][:start]}<{form.kind}>{match[0][end:]}"

    return form.pattern.sub(replace, text)
