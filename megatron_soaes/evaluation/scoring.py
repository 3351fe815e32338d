"""From what a model did on a task file to the suite that its result holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.facts import contains_fact
from megatron_soaes.evaluation.result import Measure, Suite
from megatron_soaes.evaluation.tasks import Choice, Question, Task, Text
from megatron_soaes.evaluation.text_metrics import METRICS, PROFILES, score_texts

FACTS_PROFILE = (
    "an answer is right when it contains one of the item's accepted values (NFKC, case folded, "
    "blanks dropped, not inside a longer number or word)"
)
CHOICE_PROFILE = (
    "the choice with the highest summed log-likelihood (acc), divided by its characters (acc_norm) "
    "or UTF-8 bytes (acc_bytes), as lm-evaluation-harness 0.4 names them"
)
CHOICE_LENGTHS: dict[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode("utf-8")),
}
TEXT_PROFILE = "negative log-likelihood in bits / UTF-8 bytes, over all texts together"


def score_questions(
    task: Task[Question],
    answers: Sequence[str],
    settings: Mapping[str, Any],
    profiles: Sequence[str] = tuple(PROFILES),
) -> Suite:
    """ROUGE and BLEU-4 against the reference answers in each profile; fact accuracy.

    `answers` are in the order of the items. Fact accuracy (`facts.accuracy`) is there when every
    item has facts. Raises UserError when only some have.
    """
    names = [item.id for item in task.items]
    references = [item.answer for item in task.items]
    measures: dict[str, Measure] = {}
    versions: dict[str, str] = {}
    described = {name: PROFILES[name].description for name in profiles if name in PROFILES}
    for profile in profiles:
        scores = score_texts(answers, references, profile, names)
        versions |= PROFILES[profile].versions()
        for metric in METRICS:
            measures[f"{profile}.{metric}"] = Measure(
                scores.scores[metric], "%", mean_of_nonempty=scores.mean_of_nonempty(metric)
            )
    if any(item.facts for item in task.items):
        measures["facts.accuracy"] = _fact_accuracy(task, answers)
        described["facts"] = FACTS_PROFILE
    return Suite(
        kind="questions",
        data=str(task.path),
        data_sha256=task.sha256,
        ids=tuple(names),
        measures=measures,
        profiles=described,
        versions=versions,
        settings=dict(settings),
        sources=_sources(task),
        answers=tuple(answers),
    )


def score_choices(
    task: Task[Choice], log_likelihoods: Sequence[Sequence[float]], settings: Mapping[str, Any]
) -> Suite:
    """Accuracies of multiple choice.

    `log_likelihoods[i][j]` is the log-likelihood in nats of choice j after the context of item i,
    summed over its tokens. Of equal choices the first counts, as in `numpy.argmax`
    (lm-evaluation-harness, `lm_eval/api/task.py`, `process_results`).
    """
    right: dict[str, list[float]] = {name: [] for name in CHOICE_LENGTHS}
    for item, row in zip(task.items, log_likelihoods, strict=True):
        if any(map(math.isnan, row)):
            raise _not_a_number(task, item.id)
        for name, length in CHOICE_LENGTHS.items():
            pairs = zip(row, item.choices, strict=True)
            normalised = [ll / length(choice) for ll, choice in pairs]
            best = normalised.index(max(normalised))
            right[name].append(100.0 * (best == item.answer))
    chances = tuple(100 / len(item.choices) for item in task.items)
    measures = {
        f"choice.{name}": Measure(tuple(scores), "%", binary=True, chances=chances)
        for name, scores in right.items()
    }
    return Suite(
        kind="choices",
        data=str(task.path),
        data_sha256=task.sha256,
        ids=tuple(item.id for item in task.items),
        measures=measures,
        profiles={"choice": CHOICE_PROFILE},
        versions={},
        settings=dict(settings),
    )


def score_bits_per_byte(
    task: Task[Text], log_likelihoods: Sequence[float], settings: Mapping[str, Any]
) -> Suite:
    """Bits per byte: total nats / ln 2 / total UTF-8 bytes, which no tokenizer can flatter.

    `log_likelihoods[i]` is the log-likelihood in nats of text i, summed over all its tokens. Each
    text's own figure is kept with its bytes as weight, so their weighted mean is the total.
    """
    for item, value in zip(task.items, log_likelihoods, strict=True):
        if not math.isfinite(value):
            raise _not_a_number(task, item.id)
    sizes = [float(len(item.text.encode("utf-8"))) for item in task.items]
    pairs = zip(log_likelihoods, sizes, strict=True)
    bits = tuple(-value / math.log(2) / size for value, size in pairs)
    measure = Measure(bits, "bits/byte", higher_is_better=False, weights=tuple(sizes))
    return Suite(
        kind="texts",
        data=str(task.path),
        data_sha256=task.sha256,
        ids=tuple(item.id for item in task.items),
        measures={"text.bits_per_byte": measure},
        profiles={"text": TEXT_PROFILE},
        versions={},
        settings=dict(settings),
    )


def _fact_accuracy(task: Task[Question], answers: Sequence[str]) -> Measure:
    for item in task.items:
        if not item.facts:
            raise UserError(
                f"{task.path}: item {item.id}",
                "no 'facts' (other items have them)",
                "'facts' on every item or on none",
                "Give its accepted values or move it to a file of its own.",
            )
    pairs = zip(task.items, answers, strict=True)
    scores = tuple(100.0 * contains_fact(answer, item.facts) for item, answer in pairs)
    return Measure(scores, "%", binary=True)


def _sources(task: Task[Question]) -> tuple[str, ...]:
    sources = tuple(item.source for item in task.items)
    return sources if any(sources) else ()


def _not_a_number(task: Task[Any], item: str) -> UserError:
    return UserError(
        f"{task.path}: item {item}",
        "a log-likelihood that is no finite number",
        "one from a working model",
        "Check the model: its weights or its precision make NaN or infinity.",
    )
