from __future__ import annotations

import pytest

from data_prep.rehearsal.prose import drop_reason, duplicate_key, paragraphs

NUMPY_STYLE = """Return the mean.

    The mean is taken over the flattened array
    by default, otherwise over ``axis``.

    Parameters
    ----------
    axis : int
        The axis along which the mean is
        computed.
    """


def test_lines_of_one_paragraph_are_joined_and_markup_is_removed() -> None:
    found = list(paragraphs(NUMPY_STYLE))
    assert "The mean is taken over the flattened array by default, otherwise over axis." in found
    assert "The axis along which the mean is computed." in found


def test_a_documented_argument_owns_its_continuation_lines() -> None:
    text = (
        "Args:\n    size (`int`): The number of rows\n        in a batch.\n    name (str): A name."
    )
    assert list(paragraphs(text)) == ["Args:", "The number of rows in a batch.", "A name."]


def test_fenced_code_is_left_out() -> None:
    text = "Before the code.\n```python\nx = 1\n```\nAfter the code."
    assert list(paragraphs(text)) == ["Before the code.", "After the code."]


def test_chinese_lines_are_joined_without_a_space() -> None:
    assert list(paragraphs("结巴中文分词\n支持三种模式。")) == ["结巴中文分词支持三种模式。"]


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("See the class Path for more.", "See the class :class:`~pathlib.Path` for more."),
        ("See the guide for more.", "See the [guide](http://x.org/a) for more."),
        ("It is very important.", "It is **very** important."),
    ],
)
def test_inline_markup(text: str, markup: str) -> None:
    assert list(paragraphs(markup)) == [text]


@pytest.mark.parametrize(
    ("reason", "paragraph"),
    [
        (None, "This function returns the number of items that are in the given list."),
        (None, "本模块提供中文分词功能，支持自定义词典，也支持关键词提取和词性标注。"),
        ("code", ">>> add(1, 2) gives the sum of the two numbers that it is given."),
        ("code", "Then x = 3 is the value that is used for the rest of the whole call."),
        ("licence", "Permission is hereby granted, free of charge, to any person of the world."),
        ("short", "Return the sum."),
        ("not_prose", "numpy scipy pandas sympy torch transformers networkx pillow requests."),
        ("not_prose", "and this is the second half of a sentence that began in another place."),
    ],
)
def test_drop_reason(reason: str | None, paragraph: str) -> None:
    assert drop_reason(paragraph) == reason


def test_near_copies_share_a_key() -> None:
    bert = duplicate_key("The BertModel forward method, with 12 layers.")
    assert bert == duplicate_key("The  GPT2Model forward method with 24 layers")
    assert bert != duplicate_key("The BertModel backward method, with 12 layers.")
