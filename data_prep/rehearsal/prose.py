"""Clean prose out of documentation: paragraphs kept or dropped, each drop with a named reason.

What is kept reads as sentences; code, doctests, tables, headings, field lists and licences go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MARKUP = (
    (re.compile(r":[a-z:]+:`~?(?:[^`<]*?\.)?([^`.<]+?)(?: <[^`]*>)?`"), r"\1"),  # :class:`~a.B`
    (re.compile(r"`([^`<]+?) ?<[^`>]+>`__?"), r"\1"),  # `text <url>`_
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),  # [text](url)
    (re.compile(r"\[[^\]]{1,12}\]_"), ""),  # citation [1]_
    (re.compile(r"``?([^`]+?)``?_?"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"<[^<>]{1,80}>"), ""),
    (re.compile(r" {2,}"), " "),
)
_ITEM = re.compile(r"^(?:[-*+•]|\d{1,2}[.)]|#{1,6}) +")
_FIELD = re.compile(
    r"^(?::\w+[^:]*:|\*{0,2}`?[A-Za-z_][\w.]*`? ?(?:\([^)]*\)|\[[^\]]*\])\*{0,2} ?:) *"
)
_CODE = re.compile(
    r">>>|```|^\.\. |::$|^\s*(?:import|from|def|class|return|pip|\$|%|@|\{|\}|//|#!)[ \w]|[=;]\s*$"
    r"|\w\(\)\s*=|==|\w = \S|-->|\|.*\||\\\w+|[-=~^*_]{4,}|https?://|@\w+\.",
    re.MULTILINE,
)
_LICENCE = re.compile(
    r"copyright|licen[sc]e|warrant|redistribut|hereby granted|all rights reserved|liability", re.I
)
_COMMON = {
    *("a", "an", "the", "of", "to", "in", "is", "are", "be", "for", "and", "or", "if", "it"),
    *("this", "that", "with", "by", "as", "on", "from", "not", "can", "will", "has", "was"),
}
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_TERMINAL = (".", "!", "?", ".)", "。", "！", "？")

MIN_CHARACTERS = 40
MIN_WORDS = 7
MIN_COMMON_SHARE = 0.15
MIN_TEXT_SHARE = 0.93


def paragraphs(raw: str) -> Iterator[str]:
    """Yield the paragraphs of a docstring or a document, unwrapped, without inline markup.

    A paragraph is a run of lines of one indentation. A list item or a documented field
    ("name (type): text") starts a new one and owns the deeper lines below it.
    """
    fenced = False
    block: list[str] = []
    indent = 0
    for line in raw.expandtabs().splitlines():
        text = line.strip()
        if text.startswith(("```", "~~~")):
            fenced = not fenced
            text = ""
        if fenced or not text:
            yield from _joined(block)
            block = []
            continue
        depth = len(line) - len(line.lstrip())
        marker = _ITEM.match(text) or _FIELD.match(text)
        if marker is not None or (block and depth != indent):
            hanging = marker is None and depth > indent and indent < 0
            if not hanging:
                yield from _joined(block)
                block = []
        if marker is not None:
            text = text[marker.end() :]
        if not block:
            # Below a marker the first continuation line fixes the indentation.
            indent = -1 if marker is not None else depth
        elif indent < 0:
            indent = depth
        block.append(text)
    yield from _joined(block)


def _joined(block: list[str]) -> Iterator[str]:
    text = ""
    for line in block:
        gap = "" if not text or _HAN.match(text[-1]) or _HAN.match(line[:1]) else " "
        text += gap + line
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if text:
        yield text


def drop_reason(paragraph: str) -> str | None:
    """Why a paragraph is not clean prose: code, licence, short or not_prose; None when it is."""
    if _CODE.search(paragraph):
        return "code"
    if _LICENCE.search(paragraph):
        return "licence"
    han = len(_HAN.findall(paragraph))
    if han * 2 > len(paragraph):
        return None if han >= MIN_CHARACTERS // 2 and paragraph.endswith(_TERMINAL) else "short"
    words = _WORD.findall(paragraph)
    if len(paragraph) < MIN_CHARACTERS or len(words) < MIN_WORDS:
        return "short"
    common = sum(word.lower() in _COMMON for word in words)
    text = sum(c.isalpha() or c in " ,.;:'\"()-" for c in paragraph)
    is_sentence = paragraph[0].isupper() and paragraph.endswith(_TERMINAL)
    if (
        not is_sentence
        or common < MIN_COMMON_SHARE * len(words)
        or text < MIN_TEXT_SHARE * len(paragraph)
    ):
        return "not_prose"
    return None


def duplicate_key(paragraph: str) -> str:
    """Equal for paragraphs that differ only in case, punctuation, digits, spaces or identifiers.

    Copies of one sentence about `BertModel` and `GPT2Model` share a key.
    """
    if _HAN.search(paragraph):
        return "".join(c for c in paragraph if c.isalpha())
    words = re.findall(r"[\w'-]+", paragraph)
    plain = [w.lower() for w in words if w.isalpha() and w[1:] == w[1:].lower()]
    return " ".join(plain)
