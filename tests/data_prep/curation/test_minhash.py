"""Near copies over all shards: what is found, what is left alone, and what stays of a cluster."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.curation.dedup import candidates, clusters, minhash
from data_prep.curation.dedup.minhash import MinHash
from data_prep.curation.dedup.products import Shard
from data_prep.curation.dedup.shingles import BATCH_CHARACTERS
from data_prep.curation.dedup.union_find import DisjointSets
from megatron_soaes.errors import UserError
from tests.data_prep.curation.planted import (
    LANGUAGES,
    Corpus,
    contents,
    cut,
    named,
    near_duplicates,
    plant,
    removals,
)
from tests.data_prep.curation.test_minhash_shingles import naive_shingles


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return plant(copies=100, length=300, seed=7)


def naive_jaccard(left: str, right: str) -> float:
    first, second = set(naive_shingles(left, 5)), set(naive_shingles(right, 5))
    return len(first & second) / len(first | second)


def recall(corpus: Corpus, removed: dict[int, int], kind: str, level: float, lang: str) -> float:
    pairs = [
        (entry.document, entry.source)
        for entry in corpus.ledger
        if (entry.kind, entry.level, entry.language) == (kind, level, lang)
    ]
    return sum(removed.get(a) == b or removed.get(b) == a for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("bands", "floors"),
    [
        (14, {("exact", 0.0): 1.0, ("edit", 0.01): 0.99, ("edit", 0.02): 0.95, ("cut", 0.9): 0.99}),
        (20, {("exact", 0.0): 1.0, ("edit", 0.01): 0.99, ("edit", 0.02): 0.98, ("cut", 0.9): 0.99}),
    ],
)
def test_planted_copies_are_found_and_nothing_else(
    corpus: Corpus, tmp_path: Path, bands: int, floors: dict[tuple[str, float], float]
) -> None:
    decisions = near_duplicates(cut(corpus.texts, 3), tmp_path, MinHash(bands=bands))
    removed = removals(decisions)
    for language in LANGUAGES:
        for (kind, level), floor in floors.items():
            found = recall(corpus, removed, kind, level, language)
            assert found >= floor, (kind, level, language)
    planted = {frozenset((entry.document, entry.source)) for entry in corpus.ledger}
    assert {frozenset(pair) for pair in removed.items()} <= planted


@settings(max_examples=15, deadline=None)
@given(shards=st.integers(1, 6), seed=st.integers(0, 3), data=st.data())
def test_the_cut_and_the_order_of_work_do_not_change_what_goes(
    tmp_path_factory: pytest.TempPathFactory, shards: int, seed: int, data: st.DataObject
) -> None:
    texts = plant(copies=2, length=40, seed=seed).texts
    whole = near_duplicates([texts], tmp_path_factory.mktemp("whole"))
    order = data.draw(st.permutations(range(shards)))
    parts = near_duplicates(
        cut(texts, shards), tmp_path_factory.mktemp("parts"), signing_order=lambda _: list(order)
    )
    assert removals(parts) == removals(whole)
    assert removals(whole)


def chain(tmp_path: Path, verify: bool) -> tuple[list[str], dict[int, int]]:
    """A text, and others of which each shares most with the one before it."""
    words = [f"w{number}" for number in range(700)]
    texts = [" ".join(words[start : start + 400]) for start in range(0, 300, 15)]
    return texts, removals(near_duplicates([texts], tmp_path, verify=verify))


def test_what_goes_resembles_what_stays_for_it_even_along_a_chain(tmp_path: Path) -> None:
    texts, loose = chain(tmp_path / "loose", verify=False)
    assert min(naive_jaccard(texts[gone], texts[kept]) for gone, kept in loose.items()) < 0.5
    texts, exact = chain(tmp_path / "exact", verify=True)
    assert exact
    assert all(naive_jaccard(texts[gone], texts[kept]) >= 0.5 for gone, kept in exact.items())
    assert not set(exact) & set(exact.values())


def test_the_first_stays_or_the_best_where_there_are_scores(tmp_path: Path) -> None:
    text = "深化国有企业改革提高核心竞争力"
    shards = [[text, text], [text]]
    assert removals(near_duplicates(shards, tmp_path / "first")) == {1: 0, 2: 0}
    scores = [np.array([0.1, 0.9]), np.array([0.9])]
    best = near_duplicates(shards, tmp_path / "best", scores=scores)
    assert removals(best) == {0: 1, 2: 1}


@pytest.mark.parametrize(
    ("scores", "found"),
    [([np.array([1.0])], r"\[1\] of them"), ([np.array([1.0, np.nan])], "not finite")],
)
def test_scores_must_be_one_finite_number_a_document(
    tmp_path: Path, scores: clusters.Scores, found: str
) -> None:
    with pytest.raises(UserError, match=found):
        near_duplicates([["a b", "a b"]], tmp_path, scores=scores)


def test_documents_without_letters_are_no_copies_and_short_ones_may_be(tmp_path: Path) -> None:
    texts = ["", "...", "", "你好", "你好！", "yes", "no", "Yes."]
    assert removals(near_duplicates([texts, []], tmp_path)) == {4: 3, 7: 5}


def test_a_shard_of_several_batches_is_numbered_through(tmp_path: Path) -> None:
    batch = "long " * BATCH_CHARACTERS
    texts = ["你好", batch, "a b c", "你好", batch, "A b c."]
    assert removals(near_duplicates([texts], tmp_path)) == {3: 0, 4: 1, 5: 2}


def sign(number: int, directory: Path) -> None:
    shard, texts = list(named(cut(plant(5, 40, 0).texts, 4)))[number]
    minhash.sign_shard(texts, shard, directory / f"bands-{shard.name}", MinHash())


def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    for number in range(4):
        sign(number, tmp_path / "one")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(sign, range(4), [tmp_path / "two"] * 4))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def endless(started: Path) -> Iterator[str]:
    yield "x " * 2**19
    started.touch()
    while True:
        time.sleep(1)
        yield ""


def sign_for_ever(started: Path, target: Path) -> None:
    minhash.sign_shard(endless(started), Shard("a", "1"), target, MinHash())


def test_a_killed_shard_is_done_again_and_ends_the_same(tmp_path: Path) -> None:
    started, target = tmp_path / "started", tmp_path / "killed" / "bands"
    process = multiprocessing.get_context("spawn").Process(
        target=sign_for_ever, args=(started, target)
    )
    process.start()
    while not started.exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not target.exists()
    undisturbed = tmp_path / "undisturbed"
    for directory in (target, undisturbed):
        minhash.sign_shard(["深化改革", "a b c"], Shard("a", "1"), directory, MinHash())
    assert contents(target) == contents(undisturbed)


def test_all_steps_again_read_nothing_and_change_nothing(tmp_path: Path) -> None:
    shards = cut(plant(3, 40, 0).texts, 2)
    near_duplicates(shards, tmp_path)
    before = contents(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    near_duplicates([[] for _ in shards], tmp_path)
    assert contents(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_bands_of_other_settings_are_refused(tmp_path: Path) -> None:
    minhash.sign_shard(["a"], Shard("a", "1"), tmp_path / "bands", MinHash(seed=1))
    with pytest.raises(UserError, match="different: seed"):
        candidates.propose([tmp_path / "bands"], tmp_path / "candidates", MinHash(seed=2))


def test_a_shard_that_changed_since_it_was_signed_is_refused(tmp_path: Path) -> None:
    near_duplicates([["a b", "a b"]], tmp_path)
    with pytest.raises(UserError, match="found 1 documents; expected the 2 that were signed"):
        shard = Shard("part-0", "changed")
        target = tmp_path / "again"
        candidates.gather_shard(["a b"], shard, tmp_path / "candidates", target)
    assert not target.exists()


def test_shingles_of_other_candidates_are_refused(tmp_path: Path) -> None:
    for name, texts in (("one", ["a b", "a b"]), ("two", ["c", "a b", "a b"])):
        near_duplicates([texts], tmp_path / name)
    with pytest.raises(UserError, match="the shingles of other candidates"):
        clusters.decide(
            tmp_path / "one" / "candidates", [tmp_path / "two" / "shingles-part-0"], tmp_path / "d"
        )
    with pytest.raises(UserError, match="Gather every shard"):
        clusters.decide(tmp_path / "one" / "candidates", [], tmp_path / "d")


@pytest.mark.parametrize(
    ("field", "value"), [("bands", 0), ("rows", 0), ("units", 0), ("seed", -1)]
)
def test_settings_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{field}: found {value}"):
        MinHash(**{field: value})


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_disjoint_sets_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    sets = DisjointSets(20)
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    sets.join(left, right)
    expected = list(range(20))
    for _ in expected:
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert sets.find(np.arange(20)).tolist() == expected
    numbers, roots = sets.members()
    joined = [number for number in range(20) if expected.count(expected[number]) > 1]
    assert numbers.tolist() == joined
    assert roots.tolist() == [expected[number] for number in joined]
