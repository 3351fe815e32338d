"""Answers survive a kill, and are never asked for twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_soaes.decoding.answers import answer
from megatron_soaes.decoding.interface import Completion, Prompt, Sampling
from megatron_soaes.errors import UserError

PROMPTS = [[n, n + 1] for n in range(10)]
SAMPLING = Sampling(4)


class Echo:
    """Answers with the prompt; can die when it has been called so many times."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[Prompt] = []
        self._calls_left = dies_after

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        if self._calls_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._calls_left is not None:
            self._calls_left -= 1
        self.asked += prompts
        return [Completion(tuple(prompt), f"答{prompt[0]}", "stop") for prompt in prompts]


def ask(
    store: Path,
    prompts: Sequence[Prompt] = PROMPTS,
    sampling: Sampling = SAMPLING,
    model: str = "m",
) -> list[Prompt]:
    """Answer all prompts, check the answers, and tell which were asked of the model."""
    echo = Echo()
    found = answer(echo, prompts, sampling, store, model, at_once=3)
    assert [list(one.tokens) for one in found] == [list(prompt) for prompt in prompts]
    assert [one.text for one in found] == [f"答{prompt[0]}" for prompt in prompts]
    return echo.asked


def killed(store: Path, dies_after: int) -> None:
    """Answer in a process of its own that is killed after so many parts."""
    context = multiprocessing.get_context("fork")
    arguments = (Echo(dies_after), PROMPTS, SAMPLING, store, "m")
    process = context.Process(target=answer, args=arguments, kwargs={"at_once": 3})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    store = tmp_path / "answers.jsonl"
    killed(store, dies_after=2)
    assert ask(store) == PROMPTS[6:]
    assert ask(store) == []


def test_a_line_cut_off_by_a_kill_is_dropped_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "answers.jsonl"
    ask(store, PROMPTS[:3])
    whole = store.read_bytes()
    store.write_bytes(whole[:-5])
    assert ask(store, PROMPTS[:4]) == PROMPTS[2:4]
    assert "answers.jsonl: the last answer was not written to its end" in capsys.readouterr().out
    assert store.read_bytes().startswith(whole)


def test_other_models_and_samplings_are_other_answers(tmp_path: Path) -> None:
    store = tmp_path / "answers.jsonl"
    ask(store)
    assert ask(store, model="other") == PROMPTS
    assert ask(store, sampling=replace(SAMPLING, seed=1)) == PROMPTS
    assert ask(store) == []


def test_a_prompt_that_comes_twice_is_asked_once(tmp_path: Path) -> None:
    assert ask(tmp_path / "answers.jsonl", [[1, 2], [3, 4], [1, 2]]) == [[1, 2], [3, 4]]


def test_more_prompts_ask_only_the_new_ones(tmp_path: Path) -> None:
    store = tmp_path / "new" / "answers.jsonl"
    ask(store, PROMPTS[4:6])
    assert ask(store) == PROMPTS[:4] + PROMPTS[6:]


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "k"}', '{"key": "k", "tokens": 3}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    store = tmp_path / "answers.jsonl"
    ask(store, PROMPTS[:1])
    with store.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=r"answers\.jsonl, line 2: found no answer"):
        ask(store)
