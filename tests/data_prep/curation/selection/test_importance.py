"""Who issued a document, how new it is and how often it is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.curation.selection.importance import (
    AuthorityList,
    ImportanceSettings,
    judge_importance,
    judge_recency,
    read_authority_list,
)
from megatron_soaes.errors import UserError

AUTHORITIES = r"""
default: {score: 0.2}
levels:
- name: enterprise
  score: 0.5
  bodies: ['[一-龥]{2,12}有限公司', Heguang Group]
- name: government
  score: 1.0
  bodies: ['国务会议(办公厅)?', Ministry of Assets]
head:
  characters: 60
  forms:
  - '^[《]?{body}(关于|印发)'
  - '\bnotice of the {body}\b'
"""
SETTINGS = ImportanceSettings(as_of=date(2026, 1, 1))


def read(folder: Path, text: str = AUTHORITIES) -> AuthorityList:
    file = folder / "authorities.yaml"
    file.write_text(text, encoding="utf-8")
    return read_authority_list(file)


@pytest.mark.parametrize(
    ("document", "level", "body", "field"),
    [
        ({"text": "国务会议关于改革的意见"}, "government", "国务会议", "text"),
        ({"text": "特急\n《国务会议办公厅印发的通知》"}, "government", "国务会议办公厅", "text"),
        ({"text": "和光集团有限公司关于分红的公告"}, "enterprise", "和光集团有限公司", "text"),
        (
            {"text": "Notice of the Ministry of Assets on dividends"},
            "government",
            "Ministry of Assets",
            "text",
        ),
        ({"text": "根据国务会议关于改革的意见"}, None, None, None),
        ({"text": "国务会议研究室关于改革的意见"}, None, None, None),
        ({"text": "。" * 60 + "\n国务会议关于改革的意见"}, None, None, None),
        ({"text": "", "source": "heguang group "}, "enterprise", "heguang group", "source"),
        ({"text": "", "source": "the Heguang Group reader"}, None, None, None),
        (
            {"text": "国务会议关于改革的意见", "source": "Heguang Group"},
            "enterprise",
            "Heguang Group",
            "source",
        ),
    ],
)
def test_the_issuing_body_is_found_and_named(
    tmp_path: Path,
    document: dict[str, object],
    level: str | None,
    body: str | None,
    field: str | None,
) -> None:
    found = read(tmp_path).judge(document)
    assert (found.level, found.body, found.field) == (level, body, field)
    assert found.score == {"government": 1.0, "enterprise": 0.5, None: 0.2}[level]


def test_of_several_bodies_the_highest_level_counts(tmp_path: Path) -> None:
    text = "和光集团有限公司关于转发的通知\n国务会议关于改革的意见"
    assert read(tmp_path).judge({"text": text}).level == "government"


@pytest.mark.parametrize(
    ("before", "after", "line", "found"),
    [
        ("score: 0.5", "score: -1", 5, r"levels\[0\]\.score: -1"),
        ("Heguang Group", "'(Heguang'", 6, r"levels\[0\]\.bodies\[1\].*no regular expression"),
        ("Heguang Group", "'.*'", 6, "matches everywhere"),
        ("name: government", "name: enterprise", 7, "the name of an earlier level"),
        ("the {body}", "the body", 14, "holds {body} once"),
        ("the {body}", "(the {body}", 14, "no regular expression"),
        ("characters: 60", "chars: 60", 10, "head.characters: nothing"),
    ],
)
def test_mistakes_are_named_by_line_and_field(
    tmp_path: Path, before: str, after: str, line: int, found: str
) -> None:
    assert before in AUTHORITIES
    with pytest.raises(UserError, match=found) as caught:
        read(tmp_path, AUTHORITIES.replace(before, after))
    assert caught.value.where == f"{tmp_path / 'authorities.yaml'}:{line}"


@pytest.mark.parametrize(
    "found",
    [
        "2024-05-01", "2024/5/1", "2024.05.01", "20240501", "2024年5月1日", "2024-05", "202405",
        " 2024-05-01T23:00:00+08:00", date(2024, 5, 1), datetime(2024, 5, 1, 9, 30), "2024年5月",
    ],
)  # fmt: skip
def test_dates_are_read_as_people_write_them(found: object) -> None:
    recency = judge_recency(found, SETTINGS)
    assert (recency.date, recency.found) == ("2024-05-01", str(found))


def test_a_year_is_read_too() -> None:
    assert judge_recency(2024, SETTINGS).date == "2024-01-01"


@pytest.mark.parametrize("found", ["soon", "2024-13-01", "1714521600", "", "2026-01-02"])
def test_a_date_that_is_none_or_not_yet_is_told(found: str) -> None:
    recency = judge_recency(found, SETTINGS)
    assert (recency.score, recency.date, recency.found) == (SETTINGS.undated, None, found)


def test_a_missing_date_is_told() -> None:
    recency = judge_recency(None, SETTINGS)
    assert (recency.score, recency.date, recency.found) == (SETTINGS.undated, None, None)


def test_recency_halves_in_a_half_life() -> None:
    day = SETTINGS.as_of - timedelta(days=round(365.25 * SETTINGS.half_life))
    assert judge_recency(day, SETTINGS).score == pytest.approx(0.5, abs=1e-3)
    assert judge_recency(SETTINGS.as_of, SETTINGS).score == 1.0


def test_importance_is_the_weighted_mean_of_parts_that_are_kept(tmp_path: Path) -> None:
    document = {
        "text": "国务会议关于改革的意见",
        "metadata": {"date": "2026-01-01", "cluster_size": 10},
    }
    found = judge_importance(document, read(tmp_path), SETTINGS)
    assert found.authority.score == 1.0
    assert found.recency.score == 1.0
    assert found.duplicates.score == pytest.approx(0.5)
    assert found.score == pytest.approx(0.5 * 1 + 0.2 * 1 + 0.3 * 0.5)


def test_a_weight_of_0_leaves_a_part_out(tmp_path: Path) -> None:
    document = {"text": "国务会议关于改革的意见"}
    settings = replace(SETTINGS, recency=0.0, duplicates=0.0)
    assert judge_importance(document, read(tmp_path), settings).score == 1.0


@pytest.mark.parametrize("size", [0, -3, "7", 2.5])
def test_a_cluster_size_is_a_count(tmp_path: Path, size: object) -> None:
    document = {"id": "d7", "text": "", "cluster_size": size}
    with pytest.raises(UserError, match="document d7: cluster_size"):
        judge_importance(document, read(tmp_path), SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"authority": -0.1},
        {"authority": 0.0, "recency": 0.0, "duplicates": 0.0},
        {"half_life": 0.0},
        {"undated": 1.5},
        {"full_cluster": 1},
    ],
)
def test_settings_without_meaning_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match="settings of importance"):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


@given(
    day=st.dates(max_value=date(2025, 12, 31)),
    size=st.integers(1, 10**6),
    weights=st.tuples(*[st.floats(0.01, 100)] * 3),
)
def test_importance_lies_between_0_and_1_and_rises_with_each_part(
    tmp_path_factory: pytest.TempPathFactory,
    day: date,
    size: int,
    weights: tuple[float, float, float],
) -> None:
    authorities = read(tmp_path_factory.getbasetemp())
    settings = ImportanceSettings(SETTINGS.as_of, *weights)
    document = {"text": "", "date": day, "cluster_size": size}

    def score(**change: object) -> float:
        return judge_importance({**document, **change}, authorities, settings).score

    assert 0 <= score() <= 1
    assert score(date=day + timedelta(days=1)) >= score()
    assert score(cluster_size=size + 1) >= score()
    assert score(source="Ministry of Assets") >= score(source="Heguang Group") >= score()
