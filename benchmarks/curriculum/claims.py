"""From result files to means over seeds, and from those to verdicts on the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks.curriculum.recipes import Places, result_file
from megatron_soaes.evaluation.result import EvaluationResult, read_result
from megatron_soaes.evaluation.statistics import (
    ABOVE_CHANCE,
    Interval,
    Verdict,
    across_seeds,
    between_seeds,
    judge,
)

BASE = "base"
CPT, REPLAY = "CPT", "replay only"
NO_CPT, REPLAY_SFT = "no CPT, then SFT", "replay only, then SFT"
PROGRESSIVE, SINGLE, STAGE_2 = "CPT, progressive", "CPT, single stage", "CPT, stage 2 alone"
CHECKPOINTS = {
    REPLAY: ("replay", "replay"),
    CPT: ("cpt", "cpt"),
    NO_CPT: ("no-cpt", "progressive"),
    REPLAY_SFT: ("replay-sft", "progressive"),
    PROGRESSIVE: ("curriculum", "progressive"),
    SINGLE: ("curriculum", "single"),
    STAGE_2: ("curriculum", "stage2"),
}
"""Every model of a seed: its arm and its checkpoint there."""


@dataclass(frozen=True)
class Figure:
    """One number of a result file."""

    title: str
    path: str
    """`suite.profile.metric`, `suite[part].profile.metric` for a part of the suite."""
    decimals: int = 1
    chance: float = 0.0
    """What guessing scores."""


CLOZE = Figure("cloze, %", "cloze.choice.acc", chance=25.0)
BITS = Figure("bits/byte", "bytes.text.bits_per_byte", 3)
CONTINUATION_ROUGE = Figure("continuation Rouge-1", "continuation.llamafactory.rouge1")
CONTINUATION_BLEU = Figure("continuation BLEU-4", "continuation.llamafactory.bleu4")
EXAM_ROUGE = Figure("exam Rouge-1", "exam.llamafactory.rouge1")
EXAM_BLEU = Figure("exam BLEU-4", "exam.llamafactory.bleu4")
FACTS = tuple(Figure(f"facts {part}, %", f"exam[{part}].facts.accuracy") for part in "ABC")
FIGURES = (
    *(CLOZE, BITS, CONTINUATION_ROUGE, CONTINUATION_BLEU, EXAM_ROUGE, EXAM_BLEU),
    *FACTS,
)

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""By model and by the path of a figure: one value a seed, for the base one in all."""


@dataclass(frozen=True)
class Claim:
    """A ratio that should reach a bound."""

    text: str
    figure: Figure
    model: str
    control: str
    bound: float
    lower_is_better: bool = False
    above_chance: bool = False
    """Whether what guessing scores is taken from both."""


CLAIMS = (
    Claim("general ability kept", CLOZE, CPT, BASE, 0.998),
    Claim("general ability kept", CLOZE, CPT, REPLAY, 0.998),
    Claim("the same above chance", CLOZE, CPT, BASE, 0.998, above_chance=True),
    Claim("the same above chance", CLOZE, CPT, REPLAY, 0.998, above_chance=True),
    Claim("the same in bits", BITS, CPT, BASE, 0.998, lower_is_better=True),
    Claim("the same in bits", BITS, CPT, REPLAY, 0.998, lower_is_better=True),
    Claim("CPT, after the same SFT", EXAM_ROUGE, PROGRESSIVE, REPLAY_SFT, 1.08),
    Claim("CPT, after the same SFT", EXAM_BLEU, PROGRESSIVE, REPLAY_SFT, 1.17),
    Claim("CPT, after the same SFT", EXAM_ROUGE, PROGRESSIVE, NO_CPT, 1.08),
    Claim("CPT, after the same SFT", EXAM_BLEU, PROGRESSIVE, NO_CPT, 1.17),
    Claim("CPT, documents", CONTINUATION_ROUGE, CPT, REPLAY, 1.08),
    Claim("CPT, documents", CONTINUATION_BLEU, CPT, REPLAY, 1.17),
    Claim("CPT, documents", CONTINUATION_ROUGE, CPT, BASE, 1.08),
    Claim("CPT, documents", CONTINUATION_BLEU, CPT, BASE, 1.17),
    Claim("progressive SFT", EXAM_ROUGE, PROGRESSIVE, SINGLE, 1.02),
    Claim("progressive SFT", EXAM_BLEU, PROGRESSIVE, SINGLE, 1.06),
    Claim("stage 1 helps at all", EXAM_ROUGE, PROGRESSIVE, STAGE_2, 1.0),
    Claim("stage 1 helps at all", EXAM_BLEU, PROGRESSIVE, STAGE_2, 1.0),
)


@dataclass(frozen=True)
class Finding:
    """What the seeds say about a claim."""

    claim: Claim
    ratio: Interval | None
    """Mean over seeds of model / control (control / model where lower is better);
    None where one divides by nothing."""
    difference: Interval | None
    """Mean of the model less that of the control; None against the base, of which there is one."""
    verdict: Verdict


def read_values(places: Places, seeds: Sequence[int], arms: Sequence[str]) -> Values:
    """The figures of the base and of all models of these arms and seeds."""
    base = read_result(result_file(places.base, "pretrain"))
    values = {BASE: _columns([base])}
    for model, (arm, checkpoint) in CHECKPOINTS.items():
        if arm in arms:
            runs = [places.arm(seed, arm) for seed in seeds]
            values[model] = _columns([read_result(result_file(run, checkpoint)) for run in runs])
    return values


def _columns(results: Sequence[EvaluationResult]) -> dict[str, list[float]]:
    found = [_figures(result) for result in results]
    return {path: [figures[path] for figures in found] for path in found[0]}


def _figures(result: EvaluationResult) -> dict[str, float]:
    """Every measure of every suite and of its parts, by its path."""
    return {
        f"{name}[{part}].{measure}" if part else f"{name}.{measure}": scores.value
        for name, suite in result.suites.items()
        for part, items in suite.parts()
        for measure, scores in items.measures.items()
    }


def finding(claim: Claim, values: Values) -> Finding | None:
    """Judge a claim by the interval of its ratio; None when one of its models was not trained.

    Runs of one seed share its data order and, in SFT, the checkpoint they start from, so ratios are
    taken seed by seed. A control near guessing can lose nothing, and to one that scores nothing
    there is no ratio: neither is measurable.
    """
    if claim.model not in values or claim.control not in values:
        return None
    figure = claim.figure
    guessed = figure.chance if claim.above_chance else 0.0
    model, control = (
        [value - guessed for value in values[name][figure.path]]
        for name in (claim.model, claim.control)
    )
    difference = None
    if claim.control == BASE:
        control *= len(model)
    else:
        difference = between_seeds(control, model)
    upper, lower = (control, model) if claim.lower_is_better else (model, control)
    if min(lower) <= 0:
        return Finding(claim, None, difference, Verdict.NOT_MEASURABLE)
    ratio = across_seeds([a / b for a, b in zip(upper, lower, strict=True)])
    if figure.chance and fmean(control) + guessed < figure.chance + ABOVE_CHANCE:
        return Finding(claim, ratio, difference, Verdict.NOT_MEASURABLE)
    return Finding(claim, ratio, difference, judge(ratio, ">=", claim.bound))
