from __future__ import annotations

import json
from collections import Counter

import pytest

from data_prep.rehearsal.exam import (
    EXAM_FRAMES,
    TRAINING_FRAMES,
    VALIDATION_FRAMES,
    answer,
    exam_questions,
    expert_pairs,
)
from data_prep.rehearsal.world import World, make_world
from megatron_soaes.evaluation.facts import contains_fact
from megatron_soaes.evaluation.tasks import Question, read_questions


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(11)


def test_exam_wordings_are_new() -> None:
    exam = {frame for frames in EXAM_FRAMES.values() for frame in frames}
    assert not exam & {*TRAINING_FRAMES, *VALIDATION_FRAMES}


@pytest.fixture(scope="module")
def exam(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Question, ...]:
    path = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in exam_questions(world)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_questions(path).items


def test_answers_hold_the_fact(exam: tuple[Question, ...]) -> None:
    assert all(contains_fact(item.answer, item.facts) for item in exam)
    assert len({item.messages[0]["content"] for item in exam}) == len(exam)


def test_an_answer_about_another_fact_of_the_owner_is_wrong(
    world: World, exam: tuple[Question, ...]
) -> None:
    for item in exam:
        others = [f for f in world.facts if f.entity in item.answer and f.value not in item.facts]
        assert not [fact for fact in others if contains_fact(answer(fact), item.facts)]


def test_default_sizes_of_the_splits(exam: tuple[Question, ...]) -> None:
    assert Counter(item.source for item in exam) == {"A": 192, "B": 150, "C": 51}


def test_expert_pairs_ask_only_about_split_a(world: World) -> None:
    train, valid = expert_pairs(world, seed=1, wordings=13)
    assert len(train) == 13 * len(world.asked())
    right = {answer(fact) for fact in world.asked()}
    assert {pair["messages"][1]["content"] for pair in train + valid} == right


def test_expert_training_and_validation_share_no_question(world: World) -> None:
    train, valid = (
        [p["messages"][0]["content"] for p in side] for side in expert_pairs(world, 1, 4)
    )
    assert len(set(train)) == len(train)
    assert not set(train) & set(valid)
