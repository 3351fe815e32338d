"""Prompts of datasets: which tokens they are, which are left out, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.data.indexed import TokenizerFacts
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.data_settings import Data, Dataset
from megatron_soaes.recipe.schema import Models, ModelSource, Recipe
from megatron_soaes.stages.datasets import Reading
from megatron_soaes.stages.prompt_sets import (
    LeftOut,
    PromptSet,
    Wanted,
    prompt_length,
    read_prompts,
    spread,
)
from tests.data.material import EOD, VOCABULARY, Conversation, write_dataset
from tests.stages.responding import write_chats

SHA256 = "5" * 64
END_OF_TURN = 99
ALL = Wanted(document_prefix=3, longest=20, most=None)


def read(dataset: Dataset, wanted: Wanted = ALL) -> PromptSet:
    recipe = Recipe(
        version=1,
        name="prompts",
        workdir=Path("work"),
        models=Models(target=ModelSource(source=Path("model"))),
        data=Data(datasets={"some": dataset}),
    )
    tokenizer = TokenizerFacts(VOCABULARY, EOD, SHA256)
    return read_prompts(Reading(recipe, tokenizer, 32), "some", wanted)


def chat(*turns: tuple[Sequence[int], float]) -> Conversation:
    """Turns of tokens and the weight of each of them."""
    tokens = [token for turn, _ in turns for token in turn]
    return tokens, [weight for turn, weight in turns for _ in turn]


def question(first: int, end: int = END_OF_TURN) -> Conversation:
    return chat(([first, first + 1], 0), ([50, end], 1), ([40], 0))


def test_a_conversation_asks_with_all_before_its_last_answer(tmp_path: Path) -> None:
    earlier = chat(([1, 2], 0), ([50, END_OF_TURN], 0.5), ([3], 0), ([51, END_OF_TURN], 2))
    untrained = chat(([1, 2, 3], 0))
    begun_trained = chat(([1, END_OF_TURN], 1), ([40], 0))
    too_long = chat(([8] * 21, 0), ([END_OF_TURN], 1))
    chats = [earlier, question(10), untrained, begun_trained, too_long, question(10), question(20)]
    prefix = write_chats(tmp_path / "chats", chats, SHA256)
    found = read(Dataset(indexed_conversations=prefix))
    assert list(found.prompts) == [(1, 2, 50, END_OF_TURN, 3), (10, 11), (20, 21)]
    assert found.stop == END_OF_TURN
    assert found.left_out == {"too_short": 0, "unanswered": 2, "too_long": 1, "repeated": 1}


def test_a_document_asks_with_its_first_tokens(tmp_path: Path) -> None:
    documents = [[1, 2, 3, 4, EOD], [5, 6, EOD], [7, 8, 9, EOD], [1, 2, 3, EOD], [4, 4, 4, 4, EOD]]
    prefix = write_dataset(tmp_path / "docs", documents)
    found = read(Dataset(indexed=prefix))
    assert list(found.prompts) == [(1, 2, 3), (7, 8, 9), (4, 4, 4)]
    assert found.stop == EOD
    assert found.left_out == {"too_short": 1, "unanswered": 0, "too_long": 0, "repeated": 1}


def test_what_is_held_out_is_not_asked(tmp_path: Path) -> None:
    docs = write_dataset(tmp_path / "docs", [[i] * 5 + [EOD] for i in range(10, 20)])
    chats = write_chats(tmp_path / "chats", [question(i) for i in range(10, 20)], SHA256)
    assert len(read(Dataset(indexed=docs, holdout=0.3)).prompts) == 7
    assert len(read(Dataset(indexed_conversations=chats, holdout=0.3)).prompts) == 7


def test_so_many_are_asked_of_those_that_fit(tmp_path: Path) -> None:
    documents = [[i] * (2 if i % 2 else 5) + [EOD] for i in range(10, 30)]
    prefix = write_dataset(tmp_path / "docs", documents)
    found = read(Dataset(indexed=prefix), Wanted(document_prefix=3, longest=20, most=5))
    assert [prompt[0] for prompt in found.prompts] == [10, 14, 18, 22, 26]
    assert found.left_out[LeftOut.TOO_SHORT] == 10


def test_answers_that_end_differently_are_refused(tmp_path: Path) -> None:
    chats = [question(10), question(20), question(30, end=98)]
    prefix = write_chats(tmp_path / "chats", chats, SHA256)
    expected = "dataset some, conversation 2: found token 98 .*expected token 99, as in .* 0"
    with pytest.raises(UserError, match=expected):
        read(Dataset(indexed_conversations=prefix))
    # One that is not asked does not matter.
    assert read(Dataset(indexed_conversations=prefix, holdout=0.3)).stop == END_OF_TURN


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    prefix = write_chats(tmp_path / "chats", [question(10)], "6" * 64)
    with pytest.raises(
        UserError, match=r"found tokens of tokenizer 666666666666; expected .* 5555"
    ):
        read(Dataset(indexed_conversations=prefix))


def test_weights_of_another_dataset_are_refused(tmp_path: Path) -> None:
    prefix = write_chats(tmp_path / "chats", [question(10), question(20)], SHA256)
    write_chats(tmp_path / "fewer", [question(10)], SHA256)
    for suffix in (".bin", ".idx"):
        shutil.copy(tmp_path / f"fewer_weights{suffix}", tmp_path / f"chats_weights{suffix}")
    with pytest.raises(UserError, match="expected a weight for each token"):
        read(Dataset(indexed_conversations=prefix))


@pytest.mark.parametrize(
    ("wanted", "reasons"),
    [
        (Wanted(document_prefix=9, longest=20, most=None), "2 too_short"),
        (Wanted(document_prefix=3, longest=2, most=None), "2 too_long"),
    ],
)
def test_a_dataset_without_a_prompt_is_refused(
    tmp_path: Path, wanted: Wanted, reasons: str
) -> None:
    prefix = write_dataset(tmp_path / "docs", [[1, 2, 3, 4, EOD], [5, 6, 7, 8, EOD]])
    expected = rf"dataset some: found no prompt in 2 records \({reasons}\)"
    with pytest.raises(UserError, match=expected):
        read(Dataset(indexed=prefix), wanted)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_a_prompt_is_all_before_the_last_run_of_trained_tokens(trained: list[bool]) -> None:
    length = prompt_length(np.array(trained, dtype=np.float32) * 0.5)
    run = "".join("x" if one else "." for one in trained).rstrip(".")
    assert length == len(run.rstrip("x"))


@given(st.integers(1, 200), st.integers(1, 200))
def test_what_is_chosen_is_spread_evenly(count: int, most: int) -> None:
    chosen = spread(np.arange(count), most)
    assert len(chosen) == min(count, most)
    gaps = {b - a for a, b in pairwise([*chosen.tolist(), count])}
    assert chosen[0] == 0
    assert max(gaps) - min(gaps) <= 1 and min(gaps) >= 1
