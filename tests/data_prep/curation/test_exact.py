"""Exact copies over all shards: the first in the corpus stays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.dedup import exact
from data_prep.curation.dedup.decisions import (
    Place,
    copies_removed,
    reasons_to_go,
    write_report,
)
from data_prep.curation.dedup.merge import key_ranges
from data_prep.curation.dedup.products import Product, Shard
from megatron_soaes.errors import UserError
from tests.data_prep.curation.planted import contents, cut, named, plant, removals


def find(shards: Sequence[Sequence[str]], directory: Path, budget: int = 1000) -> Product:
    targets = []
    for shard, texts in named(shards):
        targets.append(directory / f"hashes-{shard.name}")
        exact.hash_shard(texts, shard, targets[-1])
    return exact.find_copies(targets, directory / "decisions", budget)


def unread() -> Iterator[str]:
    raise AssertionError("a finished shard was read again")
    yield ""


def test_the_first_of_equal_texts_stays_over_all_shards(tmp_path: Path) -> None:
    shards = [["甲", "b", "甲"], [], ["c", "b"], ["甲"]]
    decisions = find(shards, tmp_path)
    assert removals(decisions) == {2: 0, 4: 1, 5: 0}
    names = [shard.name for shard, _ in named(shards)]
    first = "part-0"
    assert [reasons_to_go(decisions, name) for name in names] == [
        {2: Place(first, 0)}, {}, {1: Place(first, 1)}, {0: Place(first, 0)},
    ]  # fmt: skip
    assert [copies_removed(decisions, name) for name in names] == [{0: 2, 1: 1}, {}, {}, {}]


def test_white_space_and_composition_make_no_difference_but_case_does(tmp_path: Path) -> None:
    texts = ["caf\u00e9  au\tlait\n", "cafe\u0301 au lait", "Caf\u00e9 au lait"]
    assert removals(find([texts], tmp_path)) == {1: 0}


def test_every_planted_copy_is_found_and_nothing_else(tmp_path: Path) -> None:
    corpus = plant(copies=10, length=60, seed=1)
    decisions = find(cut(corpus.texts, 3), tmp_path)
    copies = {
        max(entry.document, entry.source): min(entry.document, entry.source)
        for entry in corpus.ledger
        if corpus.texts[entry.document] == corpus.texts[entry.source]
    }
    assert removals(decisions) == copies
    assert len(copies) >= 20


def test_texts_that_share_half_of_their_hash_are_not_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_digest", lambda text: bytes(15) + text.encode())
    assert removals(find([["a", "b", "a"]], tmp_path)) == {2: 0}


@given(
    keys=st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=20), min_size=1, max_size=4),
    budget=st.integers(1, 30),
)
def test_ranges_hold_every_key_once_and_equal_keys_together(
    keys: list[list[int]], budget: int
) -> None:
    shards = [np.array(sorted(shard), dtype=np.uint64) for shard in keys]
    ranges = list(key_ranges(shards, budget))
    for position, shard in enumerate(shards):
        parts = [shard[slices[position]].tolist() for slices in ranges]
        assert [key for part in parts for key in part] == shard.tolist()
    seen: set[int] = set()
    for slices in ranges:
        held = {key for s, part in zip(shards, slices, strict=True) for key in s[part].tolist()}
        assert not held & seen
        seen |= held


@given(
    texts=st.lists(st.sampled_from("abcdef"), max_size=30),
    shards=st.integers(1, 5),
    budget=st.integers(1, 40),
)
def test_shards_and_memory_do_not_change_what_goes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], shards: int, budget: int
) -> None:
    directory = tmp_path_factory.mktemp("exact")
    expected = {i: texts.index(text) for i, text in enumerate(texts) if texts.index(text) < i}
    assert removals(find(cut(texts, shards), directory, budget)) == expected


def test_the_report_names_each_cluster_with_its_places(tmp_path: Path) -> None:
    write_report(find([["a", "b"], ["a", "a"]], tmp_path), tmp_path / "clusters.jsonl")
    record = json.loads((tmp_path / "clusters.jsonl").read_text("utf-8"))
    assert record == {
        "size": 3,
        "kept": {"shard": "part-0", "document": 0},
        "removed": [{"shard": "part-1", "document": 0}, {"shard": "part-1", "document": 1}],
    }


def test_a_finished_shard_is_not_read_again_and_a_changed_one_is(tmp_path: Path) -> None:
    shard, target = Shard("a", "size 1"), tmp_path / "hashes"
    exact.hash_shard(["x"], shard, target)
    before = contents(target)
    exact.hash_shard(unread(), shard, target)
    assert contents(target) == before
    exact.hash_shard(["y"], Shard("a", "size 2"), target)
    assert contents(target) != before


def test_a_truncated_product_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "hashes"
    exact.hash_shard(["x", "y"], Shard("a", "1"), target)
    (target / "low.bin").write_bytes((target / "low.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"low\.bin: found 15 bytes; expected 16 bytes"):
        exact.find_copies([target], tmp_path / "decisions")


@pytest.mark.parametrize("header", ["not JSON", "[]", '{"format": "another"}'])
def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path, header: str) -> None:
    target = tmp_path / "hashes"
    target.mkdir()
    (target / "header.json").write_text(header)
    with pytest.raises(UserError, match="a finished product of kind 'text hashes'"):
        exact.hash_shard(["x"], Shard("a", "1"), target)
    assert contents(target) == {"header.json": header.encode()}


def test_a_product_of_another_kind_is_refused(tmp_path: Path) -> None:
    find([["a"]], tmp_path)
    with pytest.raises(UserError, match="found 'decisions'"):
        exact.find_copies([tmp_path / "decisions"], tmp_path / "again")


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for target in ("one", "two"):
        exact.hash_shard(["x"], Shard("a", target), tmp_path / target)
    with pytest.raises(UserError, match="every shard once"):
        exact.find_copies([tmp_path / "one", tmp_path / "two"], tmp_path / "decisions")


def test_a_shard_that_was_not_hashed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard 'b'"):
        reasons_to_go(find([["a"]], tmp_path), "b")
