"""Which strings of the right form are real numbers: checksums, dates, allotted prefixes."""

from __future__ import annotations

import ipaddress
from datetime import date

REGIONS = (
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 "
    "71 81 82 83 91"
)
PROVINCES = frozenset(REGIONS.split())
"""First two digits of GB/T 2260 region codes; 83 is used for residents from Taiwan."""
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
ID_CHECKS = "10X98765432"
FIRST_BIRTH_YEAR, LAST_BIRTH_YEAR = 1900, 2049

CREDIT_ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
CREDIT_VALUES = {character: value for value, character in enumerate(CREDIT_ALPHABET)}
CREDIT_AUTHORITIES = "123456789ANY"

CARD_PREFIXES = (
    # (first, last) of the leading digits, and the lengths that are issued with them.
    (range(62, 63), range(16, 20)),  # UnionPay
    (range(4, 5), (13, 16, 19)),  # Visa
    (range(51, 56), (16,)),  # Mastercard
    (range(2221, 2721), (16,)),  # Mastercard
    (range(34, 35), (15,)),  # American Express
    (range(37, 38), (15,)),  # American Express
    (range(3528, 3590), (16,)),  # JCB
    (range(300, 306), (14,)),  # Diners Club
    (range(36, 37), (14,)),  # Diners Club
    (range(6011, 6012), (16,)),  # Discover
    (range(644, 660), (16,)),  # Discover
    (range(9558, 9560), (19,)),  # older cards of Chinese banks
    (range(6013, 6014), (16, 19)),  # older cards of Chinese banks
)

FILES = "png jpg jpeg gif svg webp bmp ico css js json html htm xml pdf mp4 mp3 zip gz py ts"
FILE_ENDINGS = frozenset(FILES.split())


def is_resident_id(number: str) -> bool:
    """An 18-character resident identity number (GB 11643): region, date of birth, check by ISO
    7064 MOD 11-2.
    """
    if number[:2] not in PROVINCES:
        return False
    year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
    if not FIRST_BIRTH_YEAR <= year <= LAST_BIRTH_YEAR:
        return False
    try:
        date(year, month, day)
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, ID_WEIGHTS, strict=False))
    return ID_CHECKS[total % 11] == number[17].upper()


def is_credit_code(code: str) -> bool:
    """An 18-character unified social credit code (GB 32100): authority, region, check mod 31."""
    if code[0] not in CREDIT_AUTHORITIES or code[2:4] not in PROVINCES | {"10"}:
        return False
    try:
        values = [CREDIT_VALUES[character] for character in code]
    except KeyError:
        return False
    total = sum(value * pow(3, place, 31) for place, value in enumerate(values[:17]))
    return (31 - total % 31) % 31 == values[17]


def is_bank_card(number: str) -> bool:
    """A card number: an issued prefix, one of its lengths, and the check of ISO/IEC 7812 (Luhn)."""
    return _is_issued(number) and luhn(number)


def luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    digits = [int(digit) for digit in reversed(number)]
    doubled = (digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_issued(number: str) -> bool:
    return any(
        len(number) in lengths and int(number[: len(str(prefixes.start))]) in prefixes
        for prefixes, lengths in CARD_PREFIXES
    )


def is_email(address: str) -> bool:
    """Whether what has the form of an address is none of a file (`icon@2x.png`)."""
    name, _, domain = address.rpartition("@")
    return domain.rpartition(".")[2].lower() not in FILE_ENDINGS and ".." not in name


def is_public_ip(address: str) -> bool:
    """An address of the public Internet: private, local and documentation ranges name nobody."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def is_no_heading(address: str) -> bool:
    """A public IPv4 address with a part above 99, which numbers of headings and versions lack."""
    return max(map(int, address.split("."))) > 99 and is_public_ip(address)


def is_plate(plate: str) -> bool:
    """A licence plate has three digits or more: letters alone are an abbreviation."""
    return sum(character.isdigit() for character in plate) >= 3
