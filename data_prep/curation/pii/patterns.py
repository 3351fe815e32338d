"""The forms of personal data, each within a line.

Boundaries know digits, letters and Han characters: a Han character may touch a number on either
side, a digit or a Latin letter may not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from data_prep.curation.pii.validators import (
    is_bank_card,
    is_credit_code,
    is_email,
    is_no_heading,
    is_plate,
    is_public_ip,
    is_resident_id,
)

# A pattern that begins with a plain character or a set of them lets the engine skip to those by a
# table; so what must not stand before is looked for from behind that first character.
BEFORE = r"(?<![0-9A-Za-z_].)(?<![0-9][.-].)"
# A comma goes with a number when three zeros follow: the rest of an amount.
AFTER = r"(?![0-9A-Za-z_])(?![.-][0-9])(?!,000(?![0-9]))"
NO_AMOUNT_BEFORE = r"(?<![¥￥$€£].)(?<![¥￥$€£] .)"
NO_AMOUNT_AFTER = r"(?! ?(?:[元万亿份吨%％]|股(?!东)|户(?!名)|人民币|美元|港元))"
PLATE_PROVINCES = "京津冀晋蒙辽吉黑沪苏浙皖闽赣鲁豫鄂湘粤桂琼渝川贵云藏陕甘青宁新"
MOBILE = (
    # Segments allotted by the Ministry of Industry and Information Technology.
    r"1(?:3[0-9]|4[014-9]|5[0-35-9]|6[2567]|7[0-8]|8[0-9]|9[0-35-9])"
)


class Kind(StrEnum):
    """Kinds of personal data; the values are the placeholders between angle brackets."""

    EMAIL = "EMAIL"
    IP = "IP"
    ID = "ID"
    CREDIT_CODE = "CREDIT_CODE"
    BANK_CARD = "BANK_CARD"
    PHONE = "PHONE"
    PASSPORT = "PASSPORT"
    PLATE = "PLATE"


@dataclass(frozen=True)
class Form:
    """One form of a kind: group 1 of the pattern is replaced when it passes the check."""

    kind: Kind
    pattern: re.Pattern[str]
    check: Callable[[str], bool]


def _form(kind: Kind, pattern: str, check: Callable[[str], bool]) -> Form:
    return Form(kind, re.compile(pattern), check)


def _always(found: str) -> bool:
    """The form says enough: nothing to check."""
    return bool(found)


# In this order: a longer form is tried before what could stand inside it.
FORMS = (
    _form(
        Kind.EMAIL,
        r"([A-Za-z0-9_](?<![A-Za-z0-9].)[A-Za-z0-9._%+-]{0,63}"
        r"@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9@])",
        is_email,
    ),
    _form(
        Kind.IP,
        r"([23](?<![0-9A-Za-z_:.].)[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4})"
        r"(?![0-9A-Za-z_:])",
        is_public_ip,
    ),
    _form(
        Kind.IP,
        r"([0-9](?<![0-9A-Za-z_.].)(?<![0-9][-/].)[0-9]{0,2}(?:\.[0-9]{1,3}){3})"
        r"(?![0-9A-Za-z_])(?!\.[0-9])",
        is_no_heading,
    ),
    _form(
        Kind.IP,
        r"(?<!<)(?:IP|ip|地址)[^\n0-9]{0,8}([0-9]{1,3}(?:\.[0-9]{1,3}){3})(?![0-9A-Za-z_])(?!\.[0-9])",
        is_public_ip,
    ),
    _form(
        Kind.ID,
        rf"([1-9]{BEFORE}[0-9]{{5}} ?(?:19|20)[0-9]{{6}} ?[0-9]{{3}}[0-9Xx]){AFTER}",
        is_resident_id,
    ),
    _form(
        Kind.CREDIT_CODE,
        rf"([1-9ANY]{BEFORE}[1-9A-GY][0-9]{{6}}[0-9A-HJ-NPQRTUWXY]{{10}}){AFTER}",
        is_credit_code,
    ),
    _form(
        Kind.BANK_CARD,
        rf"([2-69]{BEFORE}{NO_AMOUNT_BEFORE}(?:[0-9]{{12,18}}"
        rf"|[0-9]{{3}}(?:[ -][0-9]{{4}}){{3}}(?:[ -][0-9]{{1,3}})?"
        rf"|[0-9]{{3}}[ -][0-9]{{6}}[ -][0-9]{{4,5}})){AFTER}{NO_AMOUNT_AFTER}",
        is_bank_card,
    ),
    _form(
        Kind.PHONE,
        rf"([+08](?<![0-9A-Za-z_].)(?:(?<=[+])86|(?<=0)086|(?<=8)6(?=[ -]))[ -]?"
        rf"{MOBILE}(?:[0-9]{{8}}|([ -])[0-9]{{4}}\2[0-9]{{4}})){AFTER}{NO_AMOUNT_AFTER}",
        _always,
    ),
    _form(
        Kind.PHONE,
        rf"({MOBILE.replace('1', f'1{BEFORE}{NO_AMOUNT_BEFORE}', 1)}"
        rf"(?:[0-9]{{8}}|([ -])[0-9]{{4}}\2[0-9]{{4}})){AFTER}{NO_AMOUNT_AFTER}",
        _always,
    ),
    # Nothing in a passport number can be checked, so it has to be called one.
    _form(
        Kind.PASSPORT,
        r"(?<!<)(?:护照|Passport|passport|PASSPORT)[^\n0-9]{0,12}?"
        r"((?<![0-9A-Za-z])(?:[EGDSPH][0-9]{8}|E[A-HJ-NP-Z][0-9]{7}|[DSP]E?[0-9]{7}|1[45][0-9]{7}))"
        r"(?![0-9A-Za-z])",
        _always,
    ),
    _form(
        Kind.PLATE,
        rf"([{PLATE_PROVINCES}][A-HJ-NP-Z][·•・ ]?(?:[DF][A-HJ-NP-Z0-9][0-9]{{4}}|[0-9]{{5}}[DF]"
        r"|[A-HJ-NP-Z0-9]{5}|[A-HJ-NP-Z0-9]{4}[学警港澳挂]))(?![0-9A-Za-z])",
        is_plate,
    ),
)
# What no form but an e-mail address can do without; a text that has neither is left after one scan.
CANDIDATE = re.compile(
    r"[0-9A-Z](?:(?<=[0-9])(?:[0-9]{5}[0-9A-Z]|[0-9]{2,3}[ -][0-9]{4}"
    r"|[0-9]{0,2}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]{3}:[0-9A-Fa-f:])"
    rf"|(?<=[{PLATE_PROVINCES}][A-Z])[·•・ A-Z0-9])"
)
