"""Packs of conversations as samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_soaes.data.blend import ShuffledUnion, TrainingBlend, consumed_by_source
from megatron_soaes.data.conversations import ConversationRange, Packs, sources_of
from megatron_soaes.data.sample import Sample
from megatron_soaes.errors import UserError
from tests.data.material import (
    EOD,
    Conversation,
    pack_settings,
    random_conversations,
    write_conversations,
)

LENGTH = 16
CONVERSATIONS = random_conversations(seed=1, count=50, longest=LENGTH + 1)


@pytest.fixture
def chats(tmp_path: Path) -> ConversationRange:
    write_conversations(tmp_path / "chats", CONVERSATIONS)
    return ConversationRange("chats", tmp_path / "chats")


def conversations_in(sample: Sample) -> list[Conversation]:
    """What a sample holds between its bounds, without what fills it up."""
    found = []
    for start, end in zip(sample.cu_seqlens, sample.cu_seqlens[1:], strict=False):
        part = slice(start, end)
        found.append((sample.tokens[part].tolist(), sample.loss_weights[part].tolist()))
    return [one for one in found if set(one[0]) != {EOD}]


def in_pass(packs: Packs, number: int) -> list[Conversation]:
    span = range(number * len(packs), (number + 1) * len(packs))
    return [one for index in span for one in conversations_in(packs[index])]


@pytest.mark.parametrize("number", [0, 1])
def test_a_pass_holds_every_conversation_once(chats: ConversationRange, number: int) -> None:
    packs = Packs(chats, pack_settings(chats.prefix.parent), source=0)
    assert sorted(in_pass(packs, number)) == sorted(CONVERSATIONS)
    assert all(len(packs[i].tokens) == LENGTH + 1 for i in range(len(packs)))


def test_a_conversation_starts_without_weight_and_what_fills_up_has_none(
    chats: ConversationRange,
) -> None:
    packs = Packs(chats, pack_settings(chats.prefix.parent), source=0)
    for index in range(len(packs)):
        sample = packs[index]
        assert not sample.loss_weights[sample.cu_seqlens[:-1]].any()
        assert not sample.loss_weights[sample.tokens == EOD].any()


def test_passes_come_in_different_orders_and_as_given_does_not(chats: ConversationRange) -> None:
    folder = chats.prefix.parent
    shuffled = Packs(chats, pack_settings(folder), source=0)
    assert in_pass(shuffled, 0) != in_pass(shuffled, 1)
    ordered = Packs(chats, pack_settings(folder, order="as_given"), source=0)
    assert in_pass(ordered, 0) == in_pass(ordered, 1) == CONVERSATIONS


def test_the_packing_of_an_earlier_run_is_used_until_the_dataset_changes(
    chats: ConversationRange,
) -> None:
    folder = chats.prefix.parent
    before = Packs(chats, pack_settings(folder), source=0)
    again = Packs(chats, pack_settings(folder), source=0)
    assert len(list((folder / "cache").iterdir())) == 1
    assert again.report == before.report and in_pass(again, 0) == in_pass(before, 0)
    write_conversations(chats.prefix, CONVERSATIONS[:-1])
    changed = Packs(chats, pack_settings(folder), source=0)
    assert changed.identity() != before.identity()
    assert sorted(in_pass(changed, 0)) == sorted(CONVERSATIONS[:-1])


def test_the_report_counts(chats: ConversationRange) -> None:
    report = Packs(chats, pack_settings(chats.prefix.parent), source=0).report
    tokens = sum(len(one) for one, _ in CONVERSATIONS)
    assert (report.conversations, report.truncated, report.dropped) == (50, 0, 0)
    assert report.efficiency == tokens / (report.packs * (LENGTH + 1))


def test_a_held_out_share_is_not_trained_on(chats: ConversationRange) -> None:
    settings = pack_settings(chats.prefix.parent, order="as_given")
    trained = ConversationRange("chats", chats.prefix, 0.0, 0.8)
    held_out = ConversationRange("chats", chats.prefix, 0.8, 1.0)
    assert in_pass(Packs(trained, settings, 0), 0) == CONVERSATIONS[:40]
    assert in_pass(Packs(held_out, settings, 0), 0) == CONVERSATIONS[40:]


def test_sources_can_be_told_apart(tmp_path: Path) -> None:
    sources = ["law" if i % 3 else "finance" for i in range(50)]
    write_conversations(tmp_path / "chats", CONVERSATIONS, sources)
    whole = ConversationRange("chats", tmp_path / "chats")
    assert sources_of(whole) == ["finance", "law"]
    finance = ConversationRange("chats", tmp_path / "chats", source="finance")
    packs = Packs(finance, pack_settings(tmp_path, order="as_given"), 0)
    assert in_pass(packs, 0) == CONVERSATIONS[::3]


LONG: list[Conversation] = [
    ([5] * 20, [0.0] * 10 + [1.0] * 10),
    ([6] * 20, [0.0] * 18 + [1.0] * 2),
    ([8] * 4, [0.0, 1.0, 1.0, 1.0]),
]


def test_what_is_too_long_is_refused_unless_the_recipe_says_what_to_do(tmp_path: Path) -> None:
    write_conversations(tmp_path / "long", LONG)
    chosen = ConversationRange("long", tmp_path / "long")
    with pytest.raises(UserError, match=r"2 conversations .* more than 17 tokens.* number 0 with"):
        Packs(chosen, pack_settings(tmp_path), 0)
    dropped = Packs(chosen, pack_settings(tmp_path, too_long="drop"), 0)
    assert in_pass(dropped, 0) == LONG[2:]
    assert dropped.report.dropped == 2
    cut = Packs(chosen, pack_settings(tmp_path, too_long="truncate"), 0)
    assert sorted(in_pass(cut, 0)) == [([5] * 17, [0.0] * 10 + [1.0] * 7), LONG[2]]
    # The second conversation's answer lies behind the cut.
    assert (cut.report.truncated, cut.report.dropped) == (1, 1)


def test_another_tokenizers_dataset_is_refused(chats: ConversationRange) -> None:
    file = chats.prefix.with_name("chats.json")
    described = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_sha256": "f" * 64}
    file.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match="tokens of tokenizer ffffffffffff"):
        Packs(chats, pack_settings(chats.prefix.parent), 0)


def test_an_unfinished_dataset_is_refused(chats: ConversationRange) -> None:
    chats.prefix.with_name("chats.json").unlink()
    with pytest.raises(UserError, match="preprocess_sft"):
        Packs(chats, pack_settings(chats.prefix.parent), 0)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("_sources.npy", 100, "no readable array"),
        (".json", 10, "invalid JSON"),
        ("_weights.idx", 40, "40 bytes"),
    ],
)
def test_a_dataset_that_was_cut_is_refused(
    chats: ConversationRange, name: str, size: int, expected: str
) -> None:
    file = chats.prefix.with_name(chats.prefix.name + name)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError) as caught:
        Packs(chats, pack_settings(chats.prefix.parent), 0)
    assert caught.value.where == str(file)
    assert expected in caught.value.found


def test_sources_of_other_conversations_are_refused(chats: ConversationRange) -> None:
    file = chats.prefix.with_name(chats.prefix.name + "_sources.npy")
    np.save(file, np.load(file)[:-1])
    with pytest.raises(UserError, match=r"entries in _sources\.npy; expected \d+, one a conv"):
        Packs(chats, pack_settings(chats.prefix.parent), 0)


def test_a_union_holds_exactly_the_samples_of_its_parts(tmp_path: Path) -> None:
    others = random_conversations(seed=2, count=30, longest=LENGTH + 1)
    write_conversations(tmp_path / "general", CONVERSATIONS)
    write_conversations(tmp_path / "expert", others)
    settings = pack_settings(tmp_path)
    sources = {
        name: lambda samples, name=name, number=number: Packs(
            ConversationRange(name, tmp_path / name), settings, number
        )
        for number, name in enumerate(["general", "expert"])
    }
    first = TrainingBlend(sources, {"general": 1.0}, 24)
    second = TrainingBlend(sources, {"expert": 0.75, "general": 0.25}, 16)
    union = ShuffledUnion([first, second], seed=7)

    def content(mixture: TrainingBlend | ShuffledUnion) -> list[tuple[bytes, int]]:
        positions = range(len(mixture.source_ids))
        return [(mixture[p].tokens.tobytes(), mixture[p].source) for p in positions]

    assert sorted(content(union)) == sorted(content(first) + content(second))
    assert content(union) != content(first) + content(second)
    assert [mixture_source for _, mixture_source in content(union)] == union.source_ids.tolist()
    assert consumed_by_source(union, 40) == {"general": 28, "expert": 12}
    assert union.hash != ShuffledUnion([first, second], seed=8).hash
    assert np.array_equal(union[3].tokens, ShuffledUnion([first, second], seed=7)[3].tokens)
