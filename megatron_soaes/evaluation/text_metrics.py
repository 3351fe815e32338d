"""ROUGE and BLEU-4 of Chinese or English answers, as two fine-tuning tools compute them.

The tools disagree by a factor of two on the same texts, so every number belongs to a *profile* and
is compared within it only. Both ROUGE packages count sets of n-grams: repeating words costs
nothing, 国资国资国资 has ROUGE-1 100 against 国资. BLEU-4 with method 3 gives an exact match of
fewer than four tokens less than 100.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from statistics import fmean
from typing import Any

from megatron_soaes.errors import UserError

METRICS = ("rouge1", "rouge2", "rougel", "bleu4")
ZEROS = dict.fromkeys(METRICS, 0.0)
ROUGE_NAMES = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougel"}


@dataclass(frozen=True)
class Profile:
    """One tool's way from a pair of texts to four numbers."""

    name: str
    description: str
    packages: tuple[str, ...]
    """Distributions whose versions the numbers depend on."""
    words: Callable[[str], list[str]]
    score: Callable[[str, str], dict[str, float]]
    """(prediction, reference with words) -> F1 of ROUGE and BLEU-4, each 0 to 100."""

    def versions(self) -> dict[str, str]:
        """The installed version of each package."""
        return {package: version(package) for package in self.packages}


@dataclass(frozen=True)
class TextScores:
    """Scores of pairs under one profile, 0 to 100."""

    profile: str
    scores: Mapping[str, tuple[float, ...]]
    """Each of `METRICS`, pair by pair."""
    empty: frozenset[int]
    """The pairs whose prediction has no word in this profile."""

    def mean(self, metric: str) -> float:
        """The mean of all pairs, an empty prediction counted as it scores (0)."""
        return fmean(self.scores[metric])

    def mean_of_nonempty(self, metric: str) -> float | None:
        """The mean without empty predictions, as older ms-swift takes it; None when all are."""
        rest = [s for i, s in enumerate(self.scores[metric]) if i not in self.empty]
        return fmean(rest) if rest else None


def score_texts(
    predictions: Sequence[str], references: Sequence[str], profile: str, names: Sequence[str]
) -> TextScores:
    """ROUGE-1/2/L (F1) and BLEU-4 of each pair. `names` says which item a pair is, for errors.

    Time and memory of ROUGE-L grow with words x words of a pair; both packages keep a table of it.
    Raises UserError for an unknown profile and for a reference without a word.
    """
    if profile not in PROFILES:
        known = ", ".join(PROFILES)
        raise UserError("profile", repr(profile), f"one of {known}", "Name one of them.")
    rules = PROFILES[profile]
    rows: list[dict[str, float]] = []
    empty = set()
    for i, (prediction, reference, name) in enumerate(
        zip(predictions, references, names, strict=True)
    ):
        if not rules.words(reference):
            raise UserError(
                f"item {name}",
                f"the reference {reference!r}",
                f"a reference with a word, for profile {profile}",
                "Correct the answer in the task file or remove the item.",
            )
        if not rules.words(prediction):
            empty.add(i)
        rows.append(rules.score(prediction, reference))
    columns = {metric: tuple(row[metric] for row in rows) for metric in METRICS}
    return TextScores(profile, columns, frozenset(empty))


@cache
def _tokenizer() -> Any:
    """jieba with its own dictionary, read from the package.

    jieba itself goes through a cache file in the shared temporary directory, which any process of
    any user may be writing or may have written from another version, and tells about it on stderr.
    """
    import jieba

    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def _cut(text: str) -> list[str]:
    return list(_tokenizer().cut(text))


def _bleu4(prediction: list[str], reference: list[str]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    method3 = SmoothingFunction().method3
    return 100 * float(sentence_bleu([reference], prediction, smoothing_function=method3))


def _rouge(rouge: Any, prediction: list[str], reference: list[str]) -> dict[str, float]:
    scores = rouge.get_scores(" ".join(prediction), " ".join(reference))[0]
    return {ours: 100 * float(scores[theirs]["f"]) for theirs, ours in ROUGE_NAMES.items()}


def _llamafactory_words(text: str) -> list[str]:
    return " ".join(_cut(text)).split()


def _llamafactory(prediction: str, reference: str) -> dict[str, float]:
    from rouge_chinese import Rouge

    scores = dict(ZEROS)
    if _llamafactory_words(prediction):
        scores |= _rouge(Rouge(), _cut(prediction), _cut(reference))
    scores["bleu4"] = _bleu4(list(prediction), list(reference))
    return {metric: round(value, 4) for metric, value in scores.items()}


def _swift_words(text: str) -> list[str]:
    words = [word.strip(" ") for word in _cut(text) if word.strip(" ")]
    # The package splits sentences at "." and raises on a text of nothing else.
    return words if set("".join(words)) != {"."} else []


def _swift(prediction: str, reference: str) -> dict[str, float]:
    from rouge import Rouge

    predicted, expected = _swift_words(prediction), _swift_words(reference)
    if not predicted:
        return dict(ZEROS)
    with _recursion_of(len(predicted) + len(expected)):
        scores = _rouge(Rouge(), predicted, expected)
    return {**scores, "bleu4": _bleu4(predicted, expected)}


@contextmanager
def _recursion_of(words: int) -> Iterator[None]:
    """Let ROUGE-L of the `rouge` package walk back recursively, one call a word."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + words)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "llamafactory",
            "ROUGE: jieba words, rouge_chinese; BLEU-4: characters, NLTK sentence BLEU, method 3; "
            "an empty prediction scores 0 (LLaMA-Factory, src/llamafactory/train/sft/metric.py)",
            ("jieba", "rouge-chinese", "nltk"),
            _llamafactory_words,
            _llamafactory,
        ),
        Profile(
            "swift",
            "ROUGE: jieba words, rouge; BLEU-4: jieba words, NLTK sentence BLEU, method 3; an "
            "empty prediction scores 0, older releases leave it out of the mean (ms-swift, "
            "swift/metrics/nlg.py)",
            ("jieba", "rouge", "nltk"),
            _swift_words,
            _swift,
        ),
    )
}
