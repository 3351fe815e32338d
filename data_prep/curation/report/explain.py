"""What the names in an account mean, a sentence each, for a reader who has not seen the rules."""

from __future__ import annotations

BLOCKS = {
    "read": "Files are read; every document found is counted.",
    "clean": "Spelling is normalised, the language found, page furniture removed; what the rules "
    "on quality refuse is dropped, and personal data is masked.",
    "copies": "Of documents with the same text the first in the corpus stays.",
    "evaluation": "Documents that hold a passage of an evaluation set are dropped, so that a model "
    "is not examined on what it has read.",
    "near-copies": "Of documents that are nearly alike the first in the corpus stays.",
    "scores": "Documents get scores of credibility, relevance and importance; none is dropped.",
    "selection": "Documents with a score below the minimum of the recipe are dropped.",
}

SCORES = {
    "credibility": "How far its source can be trusted, by tiers that experts write down.",
    "relevance": "How surely it belongs to the domain, learnt from labelled texts.",
    "importance": "Its weight in its field: who issued it, how new it is, how often it is told.",
}

_QUALITY = {
    "too_short": "Fewer words or characters than a text needs to say something.",
    "word_length": "The mean length of the words is not that of English.",
    "few_letters": "Too little of the text is letters: numbers or marks fill the rest.",
    "no_function_words": "Words of grammar that any prose has (the, of; 的, 是) are missing: lists "
    "of keywords.",
    "placeholder_text": "Holds lorem ipsum, which fills pages that have no text yet.",
    "symbols": "Too many symbols, such as number signs, ellipses, emoji or box drawing.",
    "program": "So many curly brackets that it is a program and not prose.",
    "bullet_lines": "Nearly all lines begin with a bullet.",
    "ellipsis_lines": "Too many lines end in an ellipsis: teasers cut short.",
    "unfinished_lines": "Too few lines end with a mark: menus, lists of links, cut sentences.",
    "short_lines": "Most of the text stands in short lines: menus or lists of links.",
    "mojibake": "Characters that come from reading the file in a wrong encoding.",
    "brackets": "Too much of the text stands in 【】, the brackets of advertisements.",
    "no_marks": "Prose with almost no punctuation.",
    "low_entropy": "The same few characters over and over.",
}
_OTHER_RULES = {
    "empty": "Nothing was left after normalising: no text but blanks and invisible characters.",
    "other_language": "Neither Chinese nor English.",
    "mostly_boilerplate": "Too little was left without notices, menus and share buttons.",
    "traditional_characters": "In traditional characters, which the recipe asked to drop.",
    "spam_gambling": "Words of gambling offers.",
    "spam_adult": "Words of sex offers.",
    "spam_forgery": "Words of offers of forged papers and invoices.",
    "spam_promotion": "Words of get-rich and paid-link offers.",
    "duplicate_lines": "Too many of its lines stand in it more than once.",
    "duplicate_paragraphs": "Too many of its paragraphs stand in it more than once.",
    "top_ngram": "One run of a few words or characters makes up too much of the text.",
    "repeated_ngrams": "Too much of the text repeats runs of words or characters that it had "
    "before.",
    "copy": "The same text as an earlier document.",
    "near_copy": "Nearly the same text as an earlier document.",
    "evaluation_overlap": "Holds a passage of an evaluation set.",
    "low_credibility": "Its credibility is below the minimum of the recipe.",
    "low_relevance": "Its relevance to the domain is below the minimum of the recipe.",
    "low_importance": "Its importance is below the minimum of the recipe.",
}
_LANGUAGES = {"zh": "Chinese", "en": "English"}
LANGUAGES = {**_LANGUAGES, "unknown": "not looked for"}

REASONS = {
    **_OTHER_RULES,
    **{
        f"{code}_{rule}": f"{language} text. {sentence}"
        for code, language in _LANGUAGES.items()
        for rule, sentence in _QUALITY.items()
    },
}

EDITS = {
    "line_ends": "Line ends of other systems, made plain newlines.",
    "invisible": "Runs of control characters, zero-width characters and direction marks, removed.",
    "half_width": "Runs of full-width letters and digits, made half-width.",
    "blanks": "Tabs, wide blanks and runs of blanks or empty lines, made plain.",
    "composed": "Documents whose letters and accents were joined into one character (Unicode NFC).",
    "traditional_to_simplified": "Characters turned from traditional into simplified.",
    "copyright": "Copyright notices and licence numbers, removed.",
    "credit": "Credits of editors, removed.",
    "share": "Share buttons and calls to follow, removed.",
    "navigation": "Menus and links to other pages, removed.",
    "read_more": "Links to read more, removed.",
    "account": "Links to log in or sign up, removed.",
    "cookies": "Notices about cookies, removed.",
    "disclaimer": "Disclaimers, removed.",
    "script": "Notices to switch JavaScript on, removed.",
}

MASKED = {
    "EMAIL": "E-mail addresses.",
    "IP": "Public addresses of computers on the internet.",
    "ID": "Identity numbers of residents of China, whose checksum is right.",
    "CREDIT_CODE": "Unified social credit codes of Chinese organisations.",
    "BANK_CARD": "Numbers of bank cards, whose checksum is right.",
    "PHONE": "Mobile numbers of mainland China.",
    "PASSPORT": "Numbers of Chinese passports, where they are called so.",
    "PLATE": "Chinese licence plates.",
}

SKIPPED = {
    "blank": "Lines with nothing on them.",
    "invalid_utf8": "Lines that are not UTF-8.",
    "invalid_json": "Lines that are no JSON.",
    "not_an_object": "Lines whose JSON is no object.",
    "missing_key": "Records without the field that holds the text.",
    "null_value": "Records whose text is null.",
    "not_a_string": "Records whose text is something else than text.",
    "lone_surrogate": "Texts with half a character, which UTF-8 cannot write.",
    "no_text_in_page": "Web pages in which no main text was found.",
}

OF_YOUR_OWN = "A name that this tool does not give: it comes from a block or rule of your own."
"""Pipelines may have blocks of a team, which keep the same account."""


def explain(name: str, meanings: dict[str, str]) -> str:
    """The sentence for a name."""
    return meanings.get(name, OF_YOUR_OWN)
