from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest

from data_prep.rehearsal.documents import (
    GENRE_DOCUMENTS_PER_ENTITY,
    amount,
    documents,
    genre_documents,
    numeral,
    research_share,
)
from data_prep.rehearsal.statements import DOCUMENT_QUESTIONS, STATEMENTS
from data_prep.rehearsal.world import NOTICE, YEAR, Entity, World, make_world
from megatron_soaes.errors import UserError
from megatron_soaes.evaluation.facts import contains_fact

QUANTITY = re.compile(r"\d+年\d+月\d+日|\d+(?:\.\d+)?(?:亿元|万元|个工作日|年|人|%)?")
KINDS = {
    *("profile", "annual_report", "announcement", "comparison", "implementation"),
    *("policy_questions", "regulation", "regulation_notice"),
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(3, companies=6, regulations=3)


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict[str, str]]:
    return list(islice(documents(world, seed=3), 600))


def sentences(rows: list[dict[str, str]]) -> list[str]:
    return [s for row in rows for s in re.split(r"[。\n]", row["text"]) if s]


def true_quantities(entity: Entity) -> set[str]:
    share = {research_share(entity)} if entity.kind == "company" else set()
    return {f"{YEAR}年"} | set(entity.facts.values()) | share


def test_every_number_belongs_to_an_entity_named_in_its_sentence(
    world: World, rows: list[dict[str, str]]
) -> None:
    for sentence in sentences(rows):
        named = [entity for entity in world.entities if entity.name in sentence]
        allowed = set().union(*map(true_quantities, named))
        assert set(QUANTITY.findall(sentence)) <= allowed, sentence


def test_every_name_and_place_belongs_to_an_entity_named_in_its_sentence(
    world: World, rows: list[dict[str, str]]
) -> None:
    values = {v for entity in world.entities for v in entity.facts.values() if not v[0].isdigit()}
    for sentence in sentences(rows):
        named = [entity for entity in world.entities if entity.name in sentence]
        owned = {v for entity in named for v in entity.facts.values()}
        assert {v for v in values if v in sentence} <= owned, sentence


def test_every_fact_is_told_in_every_wording(world: World, rows: list[dict[str, str]]) -> None:
    text = "\n".join(row["text"] for row in rows)
    for fact in world.facts:
        forms = STATEMENTS[fact.attribute.key]
        told = [form.format(n=fact.entity, v=fact.value) in text for form in forms]
        assert sum(told) >= len(forms) // 2, fact


def test_the_largest_of_a_comparison_is_the_largest(
    world: World, rows: list[dict[str, str]]
) -> None:
    found = 0
    for row in rows:
        match = re.search(r"其中，(.+?)(营业收入|营业成本|利润总额|研发投入)最高", row["text"])
        if match is None:
            continue
        found += 1
        key = {"营业收入": "revenue", "营业成本": "cost", "利润总额": "profit"}.get(
            match[2], "research"
        )
        named = [c for c in world.companies if c.name in row["text"]]
        assert max(named, key=lambda c: amount(c, key)).name == match[1]
    assert found > 0


def test_documents_are_distinct_marked_as_invented_and_of_every_kind(
    rows: list[dict[str, str]],
) -> None:
    assert len({row["text"] for row in rows}) == len(rows)
    assert all(row["text"].startswith(NOTICE) for row in rows)
    assert {row["source"] for row in rows} == {f"invented/{kind}" for kind in KINDS}


def test_articles_are_numbered_without_a_gap(rows: list[dict[str, str]]) -> None:
    rules = [row["text"] for row in rows if row["source"] == "invented/regulation"]
    for text in rules:
        articles = re.findall(r"^第(\S+)条 ", text, re.MULTILINE)
        assert articles == [numeral(i) for i in range(1, len(articles) + 1)]


def test_question_documents_ask_only_about_facts_of_split_a(
    world: World, rows: list[dict[str, str]]
) -> None:
    asked = {
        form.format(n=fact.entity, noun=fact.attribute.noun)
        for fact in world.asked()
        for form in DOCUMENT_QUESTIONS
    }
    found = {q for row in rows for q in re.findall(r"^问：(.+)$", row["text"], re.MULTILINE)}
    assert found
    assert found <= asked


@pytest.mark.parametrize(("number", "text"), [(1, "一"), (10, "十"), (12, "十二"), (20, "二十")])
def test_numeral(number: int, text: str) -> None:
    assert numeral(number) == text


def test_documents_of_other_worlds_share_no_name_and_no_value(world: World) -> None:
    taken = {text for e in world.entities for text in (e.name, *e.facts.values())}
    values = [text for text in taken if text not in {e.name for e in world.entities}]
    rows = list(islice(genre_documents(world, seed=3), 300))
    assert len({row["text"] for row in rows}) == len(rows)
    assert {row["source"] for row in rows} == {f"invented/{kind}" for kind in KINDS}
    for row in rows:
        assert not [e.name for e in world.entities if e.name in row["text"]]
        assert not contains_fact(row["text"], values)


def test_other_worlds_are_many(world: World) -> None:
    rows = list(islice(genre_documents(world, seed=3), 300))
    reports = [row["text"] for row in rows if row["source"] == "invented/annual_report"]
    names = Counter(re.findall("【虚构】(.+集团)", "\n".join(reports)))
    assert len(names) > 20
    assert max(names.values()) <= 2 * GENRE_DOCUMENTS_PER_ENTITY


def test_a_world_that_takes_all_names_leaves_no_genre() -> None:
    with pytest.raises(UserError, match="at most 18 and 10"):
        next(genre_documents(make_world(0, companies=19), seed=0))
