"""YAML settings: what is wrong in a file is named by its line and field."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_prep.curation.strict_yaml import read_strict, refuse
from megatron_soaes.errors import UserError


class Tier(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    score: float = Field(ge=0, le=1)
    folder: Path = Path("there")


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tiers: list[Tier]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for number, tier in enumerate(self.tiers[1:], start=1):
            if tier.name == self.tiers[0].name:
                refuse(("tiers", number, "name"), tier.name, "a {name} of its own")
        return self


def read(folder: Path, text: str) -> Settings:
    file = folder / "tiers.yaml"
    file.write_text(text, encoding="utf-8")
    return read_strict(file, Settings)


def refused(folder: Path, text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        read(folder, text)
    return caught.value


def test_a_file_becomes_its_model(tmp_path: Path) -> None:
    settings = read(tmp_path, "tiers:\n- {name: official, score: 1, folder: here}\n")
    assert settings.tiers == [Tier(name="official", score=1.0, folder=Path("here"))]


def test_every_problem_has_its_line_and_field(tmp_path: Path) -> None:
    error = refused(
        tmp_path,
        "# tiers of sources\ntiers:\n- name: 5\n  score: 0.5\n- name: press\n  score: 1.4\n"
        "  colour: red\n- score: 0.1\n",
    )
    assert error.where == f"{tmp_path / 'tiers.yaml'}:3"
    assert error.found == (
        "tiers[0].name: 5 (input should be a valid string); "
        "line 6, tiers[1].score: 1.4 (input should be less than or equal to 1); "
        "line 7, tiers[1].colour: an unknown field; "
        "line 8, tiers[2].name: nothing (a required field)"
    )


def test_types_are_not_guessed(tmp_path: Path) -> None:
    assert "tiers[0].score" in refused(tmp_path, 'tiers:\n- {name: a, score: "0.5"}').found
    assert "tiers[0].name" in refused(tmp_path, "tiers:\n- {name: yes, score: 0.5}").found


def test_a_rule_of_the_model_names_its_field(tmp_path: Path) -> None:
    error = refused(tmp_path, "tiers:\n- {name: a, score: 1}\n- score: 0\n  name: a\n")
    assert error.where.endswith("tiers.yaml:4")
    assert error.found == 'tiers[1].name: "a" (a {name} of its own)'


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, "tiers: []\ntiers: []\n")
    assert error.where.endswith("tiers.yaml:2")
    assert "second time" in error.found


def test_long_values_are_cut(tmp_path: Path) -> None:
    error = refused(tmp_path, f"tiers: {'x' * 500}\n")
    assert len(error.found) < 150


@pytest.mark.parametrize("text", ["", "- a list\n", "tiers: [\n"])
def test_what_holds_no_fields_is_refused(tmp_path: Path, text: str) -> None:
    assert "tiers.yaml" in refused(tmp_path, text).where


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.yaml"):
        read_strict(tmp_path / "missing.yaml", Settings)
    (tmp_path / "latin.yaml").write_bytes(b"tiers: \xe9")
    with pytest.raises(UserError, match=r"latin\.yaml"):
        read_strict(tmp_path / "latin.yaml", Settings)
