"""Personal data replaced by placeholders."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from data_prep.curation.edits import Edited
from data_prep.curation.pii.patterns import CANDIDATE, FORMS, Form, Kind

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

    def apply(self, text: str) -> Edited:
        """The text with placeholders; `counts` by `Kind`."""
        if "@" not in text and CANDIDATE.search(text) is None:
            return Edited(text, {})
        forms = [form for form in FORMS if form.kind in self.kinds]
        counts: Counter[str] = Counter()
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if "@" in line or CANDIDATE.search(line):
                lines[number] = _mask_line(line, forms, counts)
        return Edited("\n".join(lines), counts)


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
