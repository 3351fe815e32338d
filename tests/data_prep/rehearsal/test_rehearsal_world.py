from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.rehearsal.documents import amount
from data_prep.rehearsal.world import (
    COMPANY_ATTRIBUTES,
    MAX_COMPANIES,
    MAX_REGULATIONS,
    REGULATION_ATTRIBUTES,
    make_world,
)
from megatron_soaes.errors import UserError

seeds = st.integers(0, 10_000)


@given(seeds, st.integers(2, MAX_COMPANIES), st.integers(2, MAX_REGULATIONS))
def test_every_world_is_consistent(seed: int, companies: int, regulations: int) -> None:
    world = make_world(seed, companies, regulations)
    assert len({entity.name for entity in world.entities}) == companies + regulations
    for company in world.companies:
        revenue, cost, profit = (amount(company, key) for key in ("revenue", "cost", "profit"))
        assert profit == revenue - cost > 0
    for key in (a.key for a in COMPANY_ATTRIBUTES):
        assert len({company.facts[key] for company in world.companies}) == companies
    for key in (a.key for a in REGULATION_ATTRIBUTES):
        assert len({rule.facts[key] for rule in world.regulations}) == regulations


@given(seeds)
def test_splits_are_by_attribute_and_by_owner(seed: int) -> None:
    world = make_world(seed)
    by_owner: dict[str, set[str]] = {}
    for fact in world.facts:
        by_owner.setdefault(fact.entity, set()).add(fact.split)
    hidden = [name for name, splits in by_owner.items() if splits == {"C"}]
    assert hidden == [world.companies[-1].name, world.regulations[-1].name]
    assert all(splits == {"A", "B"} for name, splits in by_owner.items() if name not in hidden)
    asked = {fact.attribute.key for fact in world.asked()}
    assert asked >= {a.key for a in COMPANY_ATTRIBUTES}


def test_a_seed_decides_the_world() -> None:
    assert make_world(1) == make_world(1)
    assert make_world(1) != make_world(2)


@given(seeds, seeds, st.integers(2, MAX_COMPANIES // 2), st.integers(2, MAX_REGULATIONS // 2))
def test_a_world_can_avoid_another(one: int, other: int, companies: int, regulations: int) -> None:
    avoided = make_world(one, companies, regulations)
    made = make_world(other, companies, regulations, avoid=avoided)
    taken, free = (
        {text for e in world.entities for text in (e.name, *e.facts.values())}
        for world in (avoided, made)
    )
    assert not taken & free
    with pytest.raises(UserError, match=f"a number from 2 to {MAX_COMPANIES - companies}"):
        make_world(other, MAX_COMPANIES - companies + 1, avoid=avoided)


@pytest.mark.parametrize("sizes", [(MAX_COMPANIES + 1, 5), (10, MAX_REGULATIONS + 1), (1, 5)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="a number from 2 to"):
        make_world(0, *sizes)
