"""Who can be trusted: tiers of sources as experts write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.selection.credibility import (
    DefaultTier,
    SourceList,
    SourceTiers,
    Tier,
    host_of,
    read_source_list,
)
from megatron_soaes.errors import UserError

TIERS = """
default: {name: unlisted, score: 0.3}
tiers:
- name: government
  score: 1.0
  hosts: [assets.example.cn, 统计.example.cn]
  sources: [明国资产部]
- name: enterprise
  score: 0.8
  hosts: [heguang.example]
  sources: [Heguang Group]
- name: forum
  score: 0.1
  hosts: [blogs.heguang.example]
"""


def read(folder: Path, text: str = TIERS) -> SourceList:
    file = folder / "sources.yaml"
    file.write_text(text, encoding="utf-8")
    return read_source_list(file)


@pytest.mark.parametrize(
    ("document", "tier", "entry", "field"),
    [
        ({"url": "https://assets.example.cn/1.html"}, "government", "assets.example.cn", "url"),
        ({"url": "http://WWW.Assets.example.cn:8080/"}, "government", "assets.example.cn", "url"),
        ({"url": "//统计.example.cn/2024"}, "government", "统计.example.cn", "url"),
        ({"url": "https://xn--0tr49b.example.cn"}, "unlisted", None, None),
        ({"url": "https://myassets.example.cn/"}, "unlisted", None, None),
        ({"url": "https://example.cn/assets.example.cn"}, "unlisted", None, None),
        ({"source": "明国资产部"}, "government", "明国资产部", "source"),
        ({"source": " ＨＥＧＵＡＮＧ group"}, "enterprise", "Heguang Group", "source"),
        ({"source": "press.heguang.example"}, "enterprise", "heguang.example", "source"),
        ({"source": "明国资产部的一个读者"}, "unlisted", None, None),
        ({"metadata": {"source": "明国资产部"}}, "government", "明国资产部", "source"),
        ({"url": "http://[broken", "source": "明国资产部"}, "government", "明国资产部", "source"),
        ({}, "unlisted", None, None),
    ],
)
def test_a_document_gets_the_tier_of_its_source_and_the_reason(
    tmp_path: Path, document: dict[str, object], tier: str, entry: str | None, field: str | None
) -> None:
    found = read(tmp_path).judge(document)
    assert (found.tier, found.entry, found.field) == (tier, entry, field)
    assert found.score == {"government": 1.0, "enterprise": 0.8, "unlisted": 0.3}[tier]


def test_the_longer_name_decides(tmp_path: Path) -> None:
    sources = read(tmp_path)
    assert sources.judge({"url": "https://heguang.example/"}).tier == "enterprise"
    assert sources.judge({"url": "https://me.blogs.heguang.example/"}).tier == "forum"


def test_where_it_was_published_counts_before_who_is_named(tmp_path: Path) -> None:
    reposted = {"url": "https://blogs.heguang.example/7", "source": "明国资产部"}
    assert read(tmp_path).judge(reposted).tier == "forum"
    elsewhere = {"url": "https://elsewhere.example/7", "source": "明国资产部"}
    assert read(tmp_path).judge(elsewhere).tier == "government"


@pytest.mark.parametrize(
    ("before", "after", "line", "found"),
    [
        ("score: 0.8", "score: 1.8", 9, r"tiers\[1\]\.score: 1\.8"),
        ("score: 0.8", "score: .nan", 9, r"tiers\[1\]\.score"),
        ("score: 0.8", 'score: "0.8"', 9, r"tiers\[1\]\.score"),
        ("  score: 0.8\n", "", 8, r"tiers\[1\]\.score: nothing"),
        ("  hosts: [b", "  domains: [b", 14, r"tiers\[2\]\.domains: an unknown field"),
        ("name: forum", "name: government", 12, "stands in tier 1 already"),
        ("name: forum", "name: unlisted", 12, "stands in the default tier already"),
        ("[heguang.example]", "[assets.example.cn]", 10, "stands in tier 'government' already"),
        ("[Heguang Group]", "[明国资产部 ]", 11, "stands in tier 'government' already"),
        ("[blogs.", "[https://blogs.", 14, "not a host"),
        ("[blogs.heguang.example]", "['*.heguang.example']", 14, "not a host"),
        ("[heguang.example]", "[heguang.example/news]", 10, "not a host"),
        ("[heguang.example]", "[heguang]", 10, "not a host"),
        ("[heguang.example]", "[Assets.EXAMPLE.cn]", 10, "stands in tier 'government' already"),
    ],
)
def test_mistakes_are_named_by_line_and_field(
    tmp_path: Path, before: str, after: str, line: int, found: str
) -> None:
    assert before in TIERS
    with pytest.raises(UserError, match=found) as caught:
        read(tmp_path, TIERS.replace(before, after))
    assert caught.value.where == f"{tmp_path / 'sources.yaml'}:{line}"


HOSTS = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z][a-z0-9]{1,5}){1,3}", fullmatch=True)


@given(HOSTS, st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=3))
def test_every_subdomain_belongs_to_its_domain(host: str, below: list[str]) -> None:
    tier = Tier(name="listed", score=1.0, hosts=[host])
    sources = SourceList(SourceTiers(default=DefaultTier(name="rest", score=0.0), tiers=[tier]))
    address = ".".join([*below, host])
    assert host_of(f"https://{address}/path") == address
    assert sources.judge({"url": address}).entry == host
    assert sources.judge({"url": f"x{host}"}).tier == "rest"


@given(st.text())
def test_any_text_has_a_score(text: str) -> None:
    tier = Tier(name="listed", score=1.0, hosts=["a.example"])
    sources = SourceList(SourceTiers(default=DefaultTier(name="rest", score=0.0), tiers=[tier]))
    assert 0 <= sources.judge({"url": text, "source": text}).score <= 1
