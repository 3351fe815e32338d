from __future__ import annotations

import re
from itertools import islice

from data_prep.rehearsal.dialogues import dialogues
from data_prep.rehearsal.exam import Dialogue
from data_prep.rehearsal.glossary import TERMS


def first(count: int, seed: int = 5) -> list[Dialogue]:
    return list(islice(dialogues(seed), count))


def test_turns_alternate_and_are_never_empty() -> None:
    for dialogue in first(300):
        messages = dialogue["messages"]
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * (len(messages) // 2)
        assert all(message["content"].strip() for message in messages)


def test_opening_questions_are_distinct() -> None:
    openings = [dialogue["messages"][0]["content"] for dialogue in first(1000)]
    assert len(set(openings)) == len(openings)


def test_sums_are_right() -> None:
    found = 0
    for dialogue in first(600):
        answer = dialogue["messages"][-1]["content"]
        match = re.search(r"(\d+)([-+*])(\d+)(%?)=(\d+)", answer)
        if match is None:
            continue
        found += 1
        left, sign, right, percent, result = match.groups()
        a, b = int(left), int(right)
        value = {"-": a - b, "+": a + b, "*": a * b / (100 if percent else 1)}[sign]
        assert value == int(result)
        assert re.search(rf"{result}(?:万元|元)。$", answer)
    assert found > 100


def test_answers_about_a_passage_stand_in_the_passage() -> None:
    for dialogue in first(600):
        opening, answer, *_ = (message["content"] for message in dialogue["messages"])
        if "材料：" in opening or "根据以上内容" in opening:
            value = re.sub(
                r"^.*?是(?=.)|^(?:应当在)?|(?:交货|答复|负责落实|提供担保)?。$", "", answer
            )
            assert value in opening or answer.rstrip("。") in opening


def test_definitions_cover_the_four_fields() -> None:
    text = "\n".join(d["messages"][1]["content"] for d in first(2000))
    for field, terms in TERMS.items():
        assert sum(f"{term}是指" in text for term in terms) > len(terms) // 2, field


def test_a_seed_decides_the_dialogues() -> None:
    assert first(50) == first(50)
    assert first(50) != first(50, seed=6)
