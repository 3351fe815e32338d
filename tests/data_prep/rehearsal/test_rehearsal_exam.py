from __future__ import annotations

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


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(11)


def test_exam_wordings_are_new() -> None:
    exam = {frame for frames in EXAM_FRAMES.values() for frame in frames}
    assert not exam & {*TRAINING_FRAMES, *VALIDATION_FRAMES}


def test_answers_hold_the_fact(world: World) -> None:
    rows = exam_questions(world)
    assert all(set(row) == {"question", "answer", "fact", "split"} for row in rows)
    assert all(row["fact"] in row["answer"] for row in rows)
    assert len({row["question"] for row in rows}) == len(rows)


def test_default_sizes_of_the_splits(world: World) -> None:
    assert Counter(row["split"] for row in exam_questions(world)) == {"A": 192, "B": 150, "C": 51}


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
