"""Results of several models side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.compare import Change, Comparison, Row, compare
from megatron_soaes.evaluation.report import comparison_tables
from megatron_soaes.evaluation.result import EvaluationResult, Measure, Model, Suite
from megatron_soaes.evaluation.statistics import Verdict, to_json
from megatron_soaes.recipe.targets import Margin, Target

ITEMS = 400


def make_suite(measures: Mapping[str, Measure], sources: tuple[str, ...] = ()) -> Suite:
    count = len(next(iter(measures.values())).scores)
    return Suite(
        kind="questions",
        data="exam.jsonl",
        data_sha256="d" * 64,
        ids=tuple(map(str, range(count))),
        measures=measures,
        profiles={"swift": "words", "choice": "likelihood"},
        versions={"jieba": "0.42.1"},
        settings={"max_new_tokens": 64},
        sources=sources,
    )


def exam(scale: float, seed: int, items: int = ITEMS) -> Suite:
    """ROUGE-1 of about 50 times `scale`; A and B in turn."""
    rng = np.random.default_rng(100)
    noise = np.random.default_rng(seed)
    scores = np.clip(rng.uniform(30, 70, items) * scale + noise.normal(0, 3, items), 0, 100)
    return make_suite(
        {"swift.rouge1": Measure(tuple(scores.tolist()), "%")},
        tuple("AB"[i % 2] for i in range(items)),
    )


def choices(accuracy: float, seed: int, items: int = ITEMS) -> Suite:
    hard = np.random.default_rng(7).uniform(size=items)
    noise = np.random.default_rng(seed).normal(0, 0.01, items)
    right = tuple((100.0 * (hard + noise < accuracy)).tolist())
    return make_suite({"choice.acc": Measure(right, "%", binary=True, chances=(25.0,) * items)})


def write(folder: Path, name: str, **suites: Suite) -> Path:
    path = folder / f"{name}.json"
    EvaluationResult(Model(name, f"runs/{name}", "0" * 64), suites).write(path)
    return path


def row(comparison: Comparison, path: str, model: str) -> Row:
    return next(row for row in comparison.rows if (row.path, row.model) == (path, model))


@pytest.fixture
def results(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path, "base", exam=exam(1.0, 1), mini=choices(0.7, 1)),
        write(tmp_path, "better", exam=exam(1.12, 2), mini=choices(0.7, 2)),
        write(tmp_path, "worse", exam=exam(0.9, 3), mini=choices(0.5, 3)),
        write(tmp_path, "same", exam=exam(1.0, 4), mini=choices(0.7, 4)),
    ]


def test_each_model_is_compared_with_the_first_on_every_measure_and_part(
    results: list[Path],
) -> None:
    found = compare(results)

    assert (found.base, list(found.models)) == ("base", ["base", "better", "worse", "same"])
    assert [row.path for row in found.rows if row.model == "better"] == [
        "exam.swift.rouge1",
        "exam[A].swift.rouge1",
        "exam[B].swift.rouge1",
        "mini.choice.acc",
    ]
    better = row(found, "exam.swift.rouge1", "better").paired
    assert better.ratio.value == pytest.approx(better.new.value / better.base.value)
    assert better.ratio.low < better.ratio.value < better.ratio.high


def test_a_worse_model_is_called_worse_and_an_equal_one_is_not(results: list[Path]) -> None:
    found = compare(results)

    for path in ("exam.swift.rouge1", "mini.choice.acc"):
        assert row(found, path, "worse").change is Change.WORSE
        assert row(found, path, "same").change is Change.NOT_SHOWN
    assert row(found, "exam.swift.rouge1", "better").change is Change.BETTER


def test_retention_is_a_verdict_with_its_margin_and_power(results: list[Path]) -> None:
    found = compare(results, margin="3%")

    kept = {r.model: r.retention for r in found.rows if r.path == "exam.swift.rouge1"}
    assert kept["same"].verdict is Verdict.SHOWN and kept["better"].verdict is Verdict.SHOWN
    assert kept["worse"].verdict is Verdict.MISSED
    assert kept["same"].margin == "3%" and kept["same"].power > 0.99
    strict = compare(results, margin="0.05 points")
    same = row(strict, "exam.swift.rouge1", "same").retention
    assert same.verdict is Verdict.NOT_SHOWN and same.power < 0.2


def test_less_is_better_for_bits_per_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bits = rng.uniform(0.8, 1.2, 50)
    sizes = tuple(rng.uniform(100, 500, 50).tolist())

    def texts(scale: float) -> Suite:
        values = tuple((bits * scale).tolist())
        measure = Measure(values, "bits/byte", higher_is_better=False, weights=sizes)
        return make_suite({"text.bits_per_byte": measure})

    paths = [write(tmp_path, f"x{scale}", held=texts(scale)) for scale in (1.0, 0.9, 1.1)]
    less, more = compare(paths).rows
    assert (less.change, less.retention.verdict) == (Change.BETTER, Verdict.SHOWN)
    assert (more.change, more.retention.verdict) == (Change.WORSE, Verdict.MISSED)


def test_what_the_base_only_guesses_is_not_measurable(tmp_path: Path) -> None:
    base = write(tmp_path, "base", mini=choices(0.34, 1))
    new = write(tmp_path, "new", mini=choices(0.34, 1))

    found = compare([base, new], ["acc >= 0.9"])

    assert found.rows[0].measurable is False
    assert found.rows[0].retention.verdict is Verdict.NOT_MEASURABLE
    assert found.targets[0].verdict is Verdict.NOT_MEASURABLE


def test_a_handful_of_items_shows_nothing(tmp_path: Path) -> None:
    base = write(tmp_path, "base", exam=exam(1.0, 1, items=10))
    new = write(tmp_path, "new", exam=exam(1.3, 1, items=10))

    found = compare([base, new], ["exam.rouge1 >= 1.08"])

    assert found.rows[0].change is Change.NOT_SHOWN
    assert found.rows[0].retention.verdict is Verdict.NOT_SHOWN
    assert found.targets[0].verdict is Verdict.NOT_SHOWN


def test_targets_are_shown_missed_or_not_shown(results: list[Path]) -> None:
    found = compare(results[:2], ["rouge1 >= 1.08", "swift.rouge1 >= 1.2", "rouge1 >= 1.12"])
    assert [target.verdict for target in found.targets] == [
        Verdict.SHOWN,
        Verdict.MISSED,
        Verdict.NOT_SHOWN,
    ]
    assert {target.path for target in found.targets} == {"exam.swift.rouge1"}


def test_a_target_in_points_is_about_the_difference_and_a_part_is_named(
    results: list[Path],
) -> None:
    found = compare(results[:2], ["exam[A].rouge1 >= 4 points", "acc <= 5 points"])
    first, second = found.targets
    assert (first.path, first.verdict) == ("exam[A].swift.rouge1", Verdict.SHOWN)
    assert first.interval == row(found, "exam[A].swift.rouge1", "better").paired.difference
    assert (second.path, second.verdict) == ("mini.choice.acc", Verdict.SHOWN)


def test_a_target_without_a_measure_is_refused(results: list[Path]) -> None:
    with pytest.raises(UserError, match=r"no measure bleu4.*Known: exam.swift.rouge1, exam\[A\]"):
        compare(results[:2], ["bleu4 >= 1.17"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_sha256": "e" * 64}, "new.json: suite 'exam': found data exam.jsonl eeee"),
        ({"settings": {"max_new_tokens": 9}}, "found setting 'max_new_tokens' 9; expected .* 64"),
        ({"settings": {}}, "found setting 'max_new_tokens' None"),
        ({"versions": {"jieba": "0.41"}}, "found jieba 0.41; expected jieba 0.42.1, as in"),
        ({"ids": tuple(map(str, range(1, ITEMS + 1)))}, "found item ids"),
        ({"measures": {"llamafactory.rouge1": Measure((1.0,) * ITEMS, "%")}}, "found measures"),
    ],
)
def test_different_data_settings_or_versions_are_not_compared(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    base = write(tmp_path, "base", exam=exam(1.0, 1))
    new = write(tmp_path, "new", exam=replace(exam(1.0, 1), **change))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        compare([base, new])


def test_a_suite_that_one_result_lacks_is_refused(tmp_path: Path) -> None:
    base = write(tmp_path, "base", exam=exam(1.0, 1), mini=choices(0.7, 1))
    new = write(tmp_path, "new", exam=exam(1.0, 1))
    with pytest.raises(UserError, match=r"new.json: found no suite 'mini'"):
        compare([base, new])
    with pytest.raises(UserError, match=r"new.json: found no suite 'mini'"):
        compare([new, base])


def test_one_result_alone_is_not_compared(results: list[Path]) -> None:
    with pytest.raises(UserError, match="two or more"):
        compare(results[:1])


def test_models_of_one_name_are_told_apart_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = write(tmp_path, "cpt", mini=choices(0.7, 1))
    second = write(tmp_path / "again", "cpt", mini=choices(0.7, 2))
    assert list(compare([first, second]).models) == [str(first), str(second)]


def test_a_comparison_is_the_same_every_time_and_turns_to_json(results: list[Path]) -> None:
    found = compare(results, ["rouge1 >= 1.08"])
    assert found == compare(results, ["rouge1 >= 1.08"])
    content = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert content["rows"][0]["paired"]["ratio"]["low"] > 1
    assert content["targets"][0]["verdict"] == "shown"


def test_tables_show_ratios_with_the_values_they_come_from(results: list[Path]) -> None:
    console = Console(width=100, record=True, file=StringIO())
    found = compare(results, ["rouge1 >= 1.12"])
    for table in comparison_tables(found):
        console.print(table)
    text = console.export_text()

    paired = row(found, "exam.swift.rouge1", "better").paired
    lines = text[text.index("better against base") :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(" exam "))
    for part in ("400", f"{paired.base.value:.2f} %", f"{paired.ratio.value:.3f}", "better"):
        assert part in lines[first]
    bounds = f"[{paired.ratio.low:.3f}, {paired.ratio.high:.3f}]"
    for part in ("swift.rouge1", f"{paired.new.value:.2f} %", bounds):
        assert part in lines[first + 1]
    assert "…" not in text
    for part in (
        "exam[A]",
        "what is kept of base",
        "power",
        "rouge1 >= 1.12",
        "not shown",
        "kept",
        "lost",
    ):
        assert part in text


def test_the_tables_say_why_a_suite_is_not_measurable(tmp_path: Path) -> None:
    base = write(tmp_path, "base", mini=choices(0.34, 1))
    new = write(tmp_path, "new", mini=choices(0.34, 1))
    console = Console(width=200, record=True, file=StringIO())
    for table in comparison_tables(compare([base, new])):
        console.print(table)
    assert "not measurable: base 3" in console.export_text()


@pytest.mark.parametrize("text", ["", "rouge1", "rouge1 > x", "rouge1 >= nan", "a >= 1 percent"])
def test_a_target_has_a_form(text: str) -> None:
    with pytest.raises(UserError, match=r"Write it like 'rouge1 >= 1.08'"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["rouge1 >= 1.08", "exam[A].rouge1 < -2 points"])
def test_a_target_prints_as_it_is_written(text: str) -> None:
    assert str(Target.parse(text)) == text


def test_a_target_names_the_end_of_a_measure() -> None:
    path = "exam.swift.rouge1"
    for name in ("rouge1", "swift.rouge1", "exam.rouge1", path):
        assert Target.parse(f"{name} > 1").is_about(path)
    for name in ("rouge", "llamafactory.rouge1", "swift.exam.rouge1", "exam.swift"):
        assert not Target.parse(f"{name} > 1").is_about(path)


@pytest.mark.parametrize("text", ["2%", "1.5 points"])
def test_a_margin_prints_as_it_is_written(text: str) -> None:
    assert str(Margin.parse(text)) == text


@pytest.mark.parametrize("text", ["2", "0%", "-1 points", "x%", "1..2 %"])
def test_a_margin_has_a_form(text: str) -> None:
    with pytest.raises(UserError, match=r"expected '2%' or '1.5 points'"):
        Margin.parse(text)
