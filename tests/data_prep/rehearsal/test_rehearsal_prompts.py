from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.rehearsal.exam import Dialogue, dialogue
from data_prep.rehearsal.prompts import held_out_prompts


def asked(kind: str, count: int) -> list[Dialogue]:
    return [dialogue(f"{kind} {number}?", "So.") for number in range(count)]


def questions(prompts: list[Dialogue]) -> list[str]:
    return [prompt["messages"][-1]["content"] for prompt in prompts]


def test_half_are_expert_questions_and_the_first_is_one() -> None:
    found = questions(held_out_prompts(asked("expert", 50), asked("general", 50), 1, most=20))
    assert found[0] == "expert 0?"
    assert set(found) == {f"{kind} {n}?" for kind in ("expert", "general") for n in range(10)}
    assert found != sorted(found)


def test_where_one_kind_has_too_few_the_other_gives_more() -> None:
    few_expert = questions(held_out_prompts(asked("expert", 3), asked("general", 50), 1, most=20))
    assert sum("expert" in one for one in few_expert) == 3
    assert len(few_expert) == 20
    few_general = questions(held_out_prompts(asked("expert", 50), asked("general", 4), 1, most=20))
    assert sum("general" in one for one in few_general) == 4
    assert len(few_general) == 20
    assert len(held_out_prompts(asked("expert", 3), asked("general", 4), 1, most=20)) == 7


def test_a_seed_decides_the_order() -> None:
    sources = asked("expert", 20), asked("general", 20)
    assert held_out_prompts(*sources, 1) == held_out_prompts(*sources, 1)
    assert held_out_prompts(*sources, 1) != held_out_prompts(*sources, 2)


def test_a_conversation_of_two_turns_ends_with_the_second_question() -> None:
    long = dialogue("One?", "1", "Two?", "2")
    (_, prompt) = held_out_prompts(asked("expert", 1), [long], 1)
    assert prompt["messages"] == long["messages"][:3]


def test_prompts_of_the_corpus_are_held_out_questions_without_their_answers(corpus: Path) -> None:
    def rows(name: str) -> list[list[dict[str, Any]]]:
        lines = (corpus / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["messages"] for line in lines]

    kinds = ("expert", "dialogue")
    held_out = [row[:-1] for kind in kinds for row in rows(f"{kind}/valid.jsonl")]
    openings = {row[0]["content"] for kind in kinds for row in rows(f"{kind}/train.jsonl")}
    prompts = rows("prompts.jsonl")
    assert len(prompts) == 40
    for prompt in prompts:
        assert prompt[-1]["role"] == "user"
        assert prompt in held_out
        assert prompt[0]["content"] not in openings
