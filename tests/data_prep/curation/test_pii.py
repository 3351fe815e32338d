import random
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.curation.code_points import Batch
from data_prep.curation.pii.mask import MaskPersonalData
from data_prep.curation.pii.patterns import Kind
from data_prep.curation.pii.validators import (
    CREDIT_ALPHABET,
    ID_CHECKS,
    ID_WEIGHTS,
    is_bank_card,
    is_credit_code,
    is_public_ip,
    is_resident_id,
)
from tests.data_prep.curation.texts import NEWS_EN, NEWS_ZH, NOTE_ZH, REPORT_EN, REPORT_ZH

MASK = MaskPersonalData()
SAMPLES = 200
CONTEXTS = [
    "联系人王先生，{}，请核对。",
    "{}为本次登记的信息",
    "Please note {} for the record.",
    "登记信息（{}）已经核实\n",
    "甲{}乙",
]
SEGMENTS = [130, 133, 138, 147, 150, 153, 166, 173, 177, 180, 188, 191, 195, 198]


def digits(generator: random.Random, count: int) -> str:
    return "".join(generator.choices("0123456789", k=count))


def other_digit(generator: random.Random, digit: str) -> str:
    return generator.choice([each for each in "0123456789" if each != digit])


def phone(generator: random.Random) -> str:
    number = str(generator.choice(SEGMENTS)) + digits(generator, 8)
    spaced = f"{number[:3]} {number[3:7]} {number[7:]}"
    dashed = f"{number[:3]}-{number[3:7]}-{number[7:]}"
    return generator.choice([number, f"+86{number}", f"+86 {spaced}", spaced, dashed])


def resident_id(generator: random.Random) -> str:
    region = generator.choice(["110101", "310104", "440305", "510107", "650102"])
    year, month, day = (
        generator.randint(1940, 2010),
        generator.randint(1, 12),
        generator.randint(1, 28),
    )
    number = f"{region}{year}{month:02d}{day:02d}{digits(generator, 3)}"
    return number + ID_CHECKS[sum(int(d) * w for d, w in zip(number, ID_WEIGHTS, strict=True)) % 11]


def bank_card(generator: random.Random) -> str:
    prefix, length = generator.choice([("622848", 19), ("621700", 19), ("625903", 16), ("45", 16)])
    number = prefix + digits(generator, length - len(prefix) - 1)
    number += next(check for check in "0123456789" if luhn_by_hand(number + check))
    return generator.choice([number, " ".join(re.findall(".{1,4}", number))])


def luhn_by_hand(number: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value // 10 + value % 10
    return total % 10 == 0


def credit_code(generator: random.Random) -> str:
    body = "91" + generator.choice(["110108", "310115", "440300"])
    body += "".join(generator.choices(CREDIT_ALPHABET, k=9))
    weights = [1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28]
    total = sum(CREDIT_ALPHABET.index(c) * w for c, w in zip(body, weights, strict=True))
    return body + CREDIT_ALPHABET[-total % 31]


def plate(generator: random.Random) -> str:
    head = generator.choice("京沪粤浙苏川") + generator.choice("ABCDEFGH")
    common = head + generator.choice(["", "·"]) + generator.choice("ABCK") + digits(generator, 4)
    return generator.choice(
        [common, f"{head}D{digits(generator, 5)}", f"{head}{digits(generator, 4)}学"]
    )


def email(generator: random.Random) -> str:
    name = generator.choice(["zhang.san", "li_si88", "service", "a-b+c"])
    return f"{name}@{generator.choice(['example.com', 'mail.example.com.cn', '163.com'])}"


def ipv4(generator: random.Random) -> str:
    return f"{generator.choice([101, 114, 123, 202, 218])}.{generator.randint(1, 99)}.7.9"


def ipv6(generator: random.Random) -> str:
    return f"2408:8400:{generator.randint(0x1000, 0xFFFF):x}::{generator.randint(1, 0xFFFF):x}"


PLANTED: list[tuple[Kind, Callable[[random.Random], str]]] = [
    (Kind.PHONE, phone),
    (Kind.ID, resident_id),
    (Kind.BANK_CARD, bank_card),
    (Kind.CREDIT_CODE, credit_code),
    (Kind.PLATE, plate),
    (Kind.EMAIL, email),
    (Kind.IP, ipv4),
    (Kind.IP, ipv6),
]


@pytest.mark.parametrize(
    ("kind", "make"), PLANTED, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_planted_number_is_found(kind, make):
    """Recall 1 on 200 generated numbers of each kind, and nothing around them is touched."""
    generator = random.Random(20240301)
    for _ in range(SAMPLES):
        context = generator.choice(CONTEXTS)
        text = context.format(make(generator))
        assert MASK.may_change(Batch([text])).all()
        edited = MASK.apply(text)
        assert edited.text == context.format(f"<{kind}>")
        assert edited.counts == {kind: 1}


def wrong_id(generator: random.Random) -> str:
    number = resident_id(generator)
    return number[:-2] + other_digit(generator, number[-2]) + number[-1]


def wrong_birthday(generator: random.Random) -> str:
    body = f"1101011990{generator.choice(['1301', '0230', '0001', '0631'])}{digits(generator, 3)}"
    return body + ID_CHECKS[sum(int(d) * w for d, w in zip(body, ID_WEIGHTS, strict=True)) % 11]


def wrong_card(generator: random.Random) -> str:
    number = bank_card(generator)
    return number[:-1] + other_digit(generator, number[-1])


def unknown_card(generator: random.Random) -> str:
    body = generator.choice(["10", "20", "80", "99"]) + digits(generator, 13)
    return body + next(check for check in "0123456789" if luhn_by_hand(body + check))


def wrong_credit_code(generator: random.Random) -> str:
    code = credit_code(generator)
    others = [character for character in CREDIT_ALPHABET if character != code[-1]]
    return code[:-1] + generator.choice(others)


def unallotted_phone(generator: random.Random) -> str:
    return generator.choice(["10", "11", "12", "154", "179", "194"]).ljust(3, "0") + digits(
        generator, 8
    )


def long_number(generator: random.Random) -> str:
    """Personal numbers inside longer ones."""
    inside = generator.choice([resident_id, lambda g: str(g.choice(SEGMENTS)) + digits(g, 8)])(
        generator
    )
    return (
        generator.choice(["99", "0000"]) + inside + digits(generator, generator.choice([0, 3, 9]))
    )


def amount(generator: random.Random) -> str:
    number = str(generator.choice(SEGMENTS)) + digits(generator, 8)
    forms = ["{}元", "{}.50", "¥{}", "{}股", "￥ {}", "{}万元", "{},000"]
    return generator.choice(forms).format(number)


def version(generator: random.Random) -> str:
    return ".".join(str(generator.randint(0, 99)) for _ in range(4))


def private_ip(generator: random.Random) -> str:
    net = generator.choice(["192.168", "10.200", "172.16", "127.0"])
    return f"{net}.{generator.randint(0, 255)}.{generator.randint(0, 255)}"


def product(generator: random.Random) -> str:
    """The form of a passport that is not called one, and of a plate without digits."""
    return generator.choice([f"型号E{digits(generator, 8)}", "沪A股ETF基金", "京BAPPLE"])


def file_name(generator: random.Random) -> str:
    return f"icon{digits(generator, 2)}@2x.{generator.choice(['png', 'jpg', 'svg'])}"


@pytest.mark.parametrize(
    "make",
    [
        wrong_id,
        wrong_birthday,
        wrong_card,
        unknown_card,
        wrong_credit_code,
        unallotted_phone,
        long_number,
        amount,
        version,
        private_ip,
        product,
        file_name,
    ],
)
def test_look_alikes_stay(make):
    """Precision 1 on 200 generated look-alikes of each kind."""
    generator = random.Random(20240302)
    for _ in range(SAMPLES):
        text = generator.choice(CONTEXTS).format(make(generator))
        edited = MASK.apply(text)
        assert edited.text == text
        assert not edited.counts


@pytest.mark.parametrize("text", [NEWS_ZH, REPORT_ZH, NOTE_ZH, NEWS_EN, REPORT_EN, ""])
def test_reports_and_news_are_left_as_they_are(text):
    assert MASK.apply(text).text == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("邮箱zhang.san@example.com联系", "邮箱<EMAIL>联系"),
        ("Mail:_li@example.com, or ..wang@example.org.", "Mail:<EMAIL>, or ..<EMAIL>."),
        ("手机13812345678或13987654321", "手机<PHONE>或<PHONE>"),
        ("电话：13812345678，身份证11010519491231002X。", "电话：<PHONE>，身份证<ID>。"),
        (
            "持护照E12345678入境，Passport No. G87654321",
            "持护照<PASSPORT>入境，Passport No. <PASSPORT>",
        ),
        ("IP地址：8.8.8.8", "IP地址：<IP>"),
        ("见第8.8.8.8节", "见第8.8.8.8节"),
        ("车牌京A·12345和粤BD12345", "车牌<PLATE>和<PLATE>"),
        ("2001:db8::1 is for documents", "2001:db8::1 is for documents"),
        ("来自202.96.209.5，版本 1.2.3.4", "来自<IP>，版本 1.2.3.4"),
        ("std::vector 2023:05:06", "std::vector 2023:05:06"),
    ],
)
def test_in_a_sentence(text, expected):
    assert MASK.apply(text).text == expected


def test_counts_by_kind_and_the_choice_of_kinds():
    text = "13812345678、13987654321，a@example.com，91350100M000100Y43"
    assert MASK.apply(text).counts == {"PHONE": 2, "EMAIL": 1, "CREDIT_CODE": 1}
    only = MaskPersonalData(kinds=(Kind.EMAIL,)).apply(text)
    assert only.text == text.replace("a@example.com", "<EMAIL>")


def test_published_examples_of_the_checks():
    assert is_resident_id("11010519491231002X")
    assert not is_resident_id("110105194912310021")
    assert is_credit_code("91350100M000100Y43")
    assert not is_credit_code("91350100M000100Y44")
    assert is_bank_card("4111111111111111")
    assert not is_bank_card("4111111111111112")
    assert is_public_ip("8.8.8.8")
    assert not is_public_ip("300.1.1.1")


NUMBERS = ["13812345678", "138-1234-5678", "11010519491231002X", "4111111111111111", "6222"]
NAMES = ["91350100M000100Y43", "京A12345", "a@example.com", "护照", "E12345678", "<PHONE>"]
ADDRESSES = ["IP", "8.8.8.8", "202.96.209.5", "2408:8400:1::1"]
PIECES = st.sampled_from([*NUMBERS, *NAMES, *ADDRESSES, ",000", *"@<> -.,:·电x18+\n"])


@given(st.lists(PIECES, max_size=12).map("".join))
@example("202.96.209.5 8.8.8.8")
@example("a@example.com京A12345@b.cn")
@example("京A12345-11010519491231002X-4111111111111111")
def test_masking_twice_changes_nothing(text):
    once = MASK.apply(text).text
    again = MASK.apply(once)
    assert again.text == once
    assert not again.counts


@given(
    st.sampled_from(
        ["13812345678", "11010519491231002X", "4111111111111111", "91350100M000100Y43"]
    ),
    st.text("0123456789", max_size=9),
    st.text("0123456789", max_size=9),
)
def test_never_inside_a_longer_number(number, before, behind):
    """What is replaced is bounded: no digit touches a placeholder."""
    text = MASK.apply(f"编号{before}{number}{behind}号").text
    assert not re.search(r"[0-9]<|>[0-9]", text)
    if not before and not behind:
        assert re.fullmatch("编号<[A-Z_]+>号", text)
