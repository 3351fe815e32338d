"""From answers and log-likelihoods to a suite, and the file it is kept in."""

from __future__ import annotations

import json
import math
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.report import result_table
from megatron_soaes.evaluation.result import EvaluationResult, Measure, Model, Suite, read_result
from megatron_soaes.evaluation.scoring import score_bits_per_byte, score_choices, score_questions
from megatron_soaes.evaluation.tasks import Choice, Question, Task, Text
from megatron_soaes.evaluation.text_metrics import score_texts

MODEL = Model("cpt", "runs/cpt", "ab" * 32, iteration=1000)


def questions(*facts: tuple[str, ...]) -> Task[Question]:
    asked = ({"role": "user", "content": "哪年？"},)
    items = tuple(
        Question(str(i), asked, "", "成立于1998年。", accepted, "AB"[i % 2])
        for i, accepted in enumerate(facts)
    )
    return Task(Path("exam.jsonl"), "e" * 64, items)


def test_answers_are_scored_in_every_profile_and_for_facts() -> None:
    task = questions(("1998",), ("1998", "九八"), ("1998",))
    answers = ["成立于1998年。", "不知道", ""]

    suite = score_questions(task, answers, {"max_new_tokens": 32})

    assert suite.measures["facts.accuracy"].scores == (100, 0, 0)
    assert suite.measures["facts.accuracy"].binary
    for profile in ("llamafactory", "swift"):
        names = [item.id for item in task.items]
        expected = score_texts(answers, [item.answer for item in task.items], profile, names)
        measure = suite.measures[f"{profile}.bleu4"]
        assert measure.scores == expected.scores["bleu4"]
        assert measure.mean_of_nonempty == expected.mean_of_nonempty("bleu4")
    assert suite.versions.keys() == {"jieba", "rouge", "rouge-chinese", "nltk"}
    assert suite.profiles.keys() == {"llamafactory", "swift", "facts"}
    assert (suite.sources, suite.answers) == (("A", "B", "A"), tuple(answers))


def test_parts_of_an_exam_are_measured_on_their_own() -> None:
    suite = score_questions(questions(("1",), ("1",), ("1",)), ["1", "2", "3"], {})
    values = {name: part.measures["facts.accuracy"].value for name, part in suite.parts()}
    assert values == pytest.approx({"": 100 / 3, "A": 50, "B": 0})


def test_facts_stand_on_every_item_or_on_none() -> None:
    assert "facts.accuracy" not in score_questions(questions((), ()), ["1", "2"], {}).measures
    with pytest.raises(UserError, match=r"exam.jsonl: item 1: found no 'facts'"):
        score_questions(questions(("1",), ()), ["1", "2"], {})


def test_choices_are_scored_as_they_are_by_characters_and_by_bytes() -> None:
    items = (
        Choice("a", "", ("国有", "ab"), 0),  # equal characters, 6 and 2 bytes
        Choice("b", "", ("yes, sir", "no", "maybe", "none"), 0),
    )
    task = Task(Path("choices.jsonl"), "c" * 64, items)

    suite = score_choices(task, [[-4.0, -3.0], [-4.0, -2.0, -9.0, -9.0]], {"num_fewshot": 0})

    scores = {name: measure.scores for name, measure in suite.measures.items()}
    assert scores == {
        "choice.acc": (0, 0),
        "choice.acc_norm": (0, 100),
        "choice.acc_bytes": (100, 100),
    }
    assert suite.measures["choice.acc"].chance == pytest.approx((50 + 25) / 2)


def test_equal_choices_count_for_the_first() -> None:
    items = (Choice("a", "", ("x", "y"), 0), Choice("b", "", ("x", "y"), 1))
    task = Task(Path("c.jsonl"), "c" * 64, items)
    suite = score_choices(task, [[-1.0, -1.0], [-1.0, -1.0]], {})
    assert suite.measures["choice.acc"].scores == (100, 0)


def test_bits_per_byte_is_of_all_texts_together() -> None:
    task = Task(Path("text.jsonl"), "t" * 64, (Text("1", "国资"), Text("2", "ab")))
    suite = score_bits_per_byte(task, [-12.0, -2.0], {})

    measure = suite.measures["text.bits_per_byte"]
    assert measure.value == pytest.approx(14 / math.log(2) / 8)
    assert not measure.higher_is_better


def test_a_likelihood_that_is_no_number_is_refused() -> None:
    choices = Task(Path("c.jsonl"), "c" * 64, (Choice("a", "", ("x", "y"), 0),))
    with pytest.raises(UserError, match=r"c.jsonl: item a: found a log-likelihood"):
        score_choices(choices, [[math.nan, -1.0]], {})
    texts = Task(Path("t.jsonl"), "t" * 64, (Text("1", "a"),))
    with pytest.raises(UserError, match=r"t.jsonl: item 1: found a log-likelihood"):
        score_bits_per_byte(texts, [-math.inf], {})


def result() -> EvaluationResult:
    text = Task(Path("text.jsonl"), "t" * 64, (Text("1", "国资"), Text("2", "ab")))
    choice = Task(Path("c.jsonl"), "c" * 64, (Choice("a", "", ("x", "y"), 0),))
    suites = {
        "exam": score_questions(questions(("1998",), ("1998",)), ["1998", ""], {"top_k": 1}),
        "mini": score_choices(choice, [[-1.0, -2.0]], {}),
        "held-out": score_bits_per_byte(text, [-12.0, -2.0], {}),
    }
    return EvaluationResult(MODEL, suites, {"sampling": 1})


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    written = result()
    written.write(tmp_path / "cpt.json")
    assert read_result(tmp_path / "cpt.json") == written
    assert [file.name for file in tmp_path.iterdir()] == ["cpt.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "JSONDecodeError"),
        ("[]", "no evaluation result"),
        ('{"format_version": 9}', "format_version is not 1"),
        ('{"format_version": 1, "model": {}}', "KeyError: 'suites'"),
    ],
)
def test_another_file_is_no_result(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_result(file)


def test_a_folder_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found is a directory; expected the result"):
        read_result(tmp_path)


def test_a_result_with_a_score_missing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cpt.json"
    result().write(file)
    content = json.loads(file.read_text())
    content["suites"]["exam"]["measures"]["swift.rouge1"]["scores"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"swift.rouge1 has not one score for each of 2 items"):
        read_result(file)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_suite_holds_finite_scores_only(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        Suite("choices", "d", "h", ("1",), {"a.b": Measure((value,), "%")}, {}, {})
    with pytest.raises(ValueError, match="not finite"):
        Suite("choices", "d", "h", ("1",), {}, {}, {}, unpaired={"a.b": value})


def test_the_table_names_profile_items_and_chance() -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(result_table(result()))
    text = console.export_text()
    for part in ("cpt, iteration 1000", "swift.bleu4", "exam[A]", "50.00 %", "bits/byte"):
        assert part in text
    assert "llamafactory: ROUGE: jieba words, rouge_chinese" in text
