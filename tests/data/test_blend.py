"""A blend: shares, order, and which replica takes which position."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from megatron_soaes.data.blend import TrainingBlend, consumed_by_source, positions_of_rank
from megatron_soaes.data.indexed import DocumentRange
from megatron_soaes.recipe.data_settings import Blend
from tests.data.material import EOD, numbered_documents, settings, window_sources, write_dataset

NAMES = ["policy", "news", "general"]
SHARES = {"news": 0.5, "policy": 0.3, "general": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets; no token is in two of them."""
    root = tmp_path_factory.mktemp("blend")
    documents = numbered_documents(120)
    for i, name in enumerate(NAMES):
        write_dataset(root / name, documents[40 * i : 40 * (i + 1)])
    return root


def documents_in(folder: Path) -> dict[str, DocumentRange]:
    return {name: DocumentRange(name, folder / name) for name in NAMES}


def make(folder: Path, shares: dict[str, float] = SHARES, samples: int = 100) -> TrainingBlend:
    return TrainingBlend(window_sources(documents_in(folder), settings(folder)), shares, samples)


def test_a_sample_comes_from_the_dataset_it_names(folder: Path) -> None:
    blend = make(folder)
    for position in range(len(blend.source_ids)):
        sample = blend[position]
        first = 100 + 40 * sample.source
        words = set(sample.tokens.tolist()) - {EOD}
        assert words <= set(range(first, first + 40))
        assert NAMES[sample.source] == blend.sources[sample.source]


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=3),
    samples=st.integers(1, 200),
)
@examples(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_every_prefix_keeps_the_shares(folder: Path, weights: list[float], samples: int) -> None:
    shares = {name: w / sum(weights) for name, w in zip(NAMES, weights, strict=False)}
    blend = make(folder, shares, samples)
    for consumed in {1, samples // 3, samples // 2, samples}:
        counts = consumed_by_source(blend, consumed)
        assert sum(counts.values()) == consumed
        for name, share in shares.items():
            assert abs(counts.get(name, 0) - share * consumed) <= len(shares)


def test_what_was_consumed_is_what_was_given_out(folder: Path) -> None:
    blend = make(folder)
    given_out = Counter(blend.sources[blend[position].source] for position in range(37))
    assert consumed_by_source(blend, 37) == dict(given_out)
    assert consumed_by_source(blend, 0) == dict.fromkeys(SHARES, 0)


def test_no_window_comes_twice_before_all_came_once(folder: Path) -> None:
    blend = make(folder, {"policy": 1.0}, samples=20)
    windows = [tuple(blend[position].tokens.tolist()) for position in range(20)]
    assert len(set(windows)) == 20


def test_replay_takes_its_share() -> None:
    wanted = {"weights": {"news": 3.0, "policy": 1.0}}
    replay = {"weights": {"general": 1.0}, "share": 0.2}
    shares = Blend.model_validate({**wanted, "replay": replay}).shares()
    assert shares == pytest.approx({"news": 0.6, "policy": 0.2, "general": 0.2})


def test_replayed_samples_are_that_share_of_the_blend(folder: Path) -> None:
    wanted = {"weights": {"news": 1.0}, "replay": {"weights": {"general": 2.0}, "share": 0.25}}
    blend = make(folder, Blend.model_validate(wanted).shares(), samples=80)
    assert consumed_by_source(blend, 80) == {"news": 60, "general": 20}


def test_the_same_blend_has_the_same_hash_and_samples(folder: Path) -> None:
    one, two = make(folder), make(folder)
    assert one.hash == two.hash
    assert all(np.array_equal(one[i].tokens, two[i].tokens) for i in range(len(one.source_ids)))


CHANGES: dict[str, dict[str, Any]] = {
    "shares": {"shares": {"news": 0.4, "policy": 0.4, "general": 0.2}},
    "samples": {"samples": 101},
    "datasets": {"shares": {"news": 0.5, "policy": 0.5}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_tells_another_blend(folder: Path, change: str) -> None:
    assert make(folder, **CHANGES[change]).hash != make(folder).hash


def test_the_hash_tells_another_order_of_datasets(folder: Path) -> None:
    """The blend goes round the datasets in the order of the recipe."""
    turned = make(folder, dict(reversed(SHARES.items())))
    straight = make(folder)
    assert any(turned[i].source != straight[i].source for i in range(len(straight.source_ids)))
    assert turned.hash != straight.hash


@pytest.mark.parametrize("change", [{"seed": 8}, {"length": 8}])
def test_the_hash_tells_other_windows(folder: Path, change: dict[str, int]) -> None:
    changed = settings(folder, **change)
    assert (
        TrainingBlend(window_sources(documents_in(folder), changed), SHARES, 100).hash
        != make(folder).hash
    )


def test_the_hash_tells_other_documents(folder: Path, tmp_path: Path) -> None:
    for i, name in enumerate(NAMES):
        write_dataset(tmp_path / name, numbered_documents(120)[40 * i : 40 * (i + 1)])
    same = TrainingBlend(window_sources(documents_in(tmp_path), settings(tmp_path)), SHARES, 100)
    assert same.hash == make(folder).hash, "where the files lie does not matter"
    write_dataset(tmp_path / "news", numbered_documents(81)[40:81])
    more = TrainingBlend(window_sources(documents_in(tmp_path), settings(tmp_path)), SHARES, 100)
    assert more.hash != same.hash


def test_the_hash_tells_another_holdout(folder: Path) -> None:
    documents = documents_in(folder) | {"news": DocumentRange("news", folder / "news", 0.0, 0.9)}
    assert (
        TrainingBlend(window_sources(documents, settings(folder)), SHARES, 100).hash
        != make(folder).hash
    )


@given(
    first=st.integers(0, 1000),
    replicas=st.integers(1, 8),
    micro_batch=st.integers(1, 4),
    accumulation=st.integers(1, 4),
)
def test_replicas_share_a_global_batch(
    first: int, replicas: int, micro_batch: int, accumulation: int
) -> None:
    global_batch = replicas * micro_batch * accumulation
    parts = [
        positions_of_rank(first, global_batch, micro_batch, rank, replicas)
        for rank in range(replicas)
    ]
    assert {part.shape for part in parts} == {(accumulation, micro_batch)}
    together = np.concatenate([part.ravel() for part in parts])
    assert together.tolist() == list(range(first, first + global_batch))
