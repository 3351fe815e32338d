"""The config.json of an export, read by transformers 5 and by tools that know the older form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from megatron_soaes.models.families import hf_config
from megatron_soaes.recipe.schema import FamilyName
from megatron_soaes.recipe.shapes import read_shape
from tests.checkpoint.tiny import ARCHITECTURES, LLAMA3_ROPE, Case, make_model


def exported_config(directory: Path, case: Case) -> dict[str, object]:
    """The config.json an export of a new model would have; replaces the model's own."""
    file = make_model(directory, case) / "config.json"
    original = json.loads(file.read_text(encoding="utf-8"))
    assert "rope_theta" not in original, "transformers 5 writes the new form"
    config = hf_config(read_shape(file), original, "bfloat16")
    file.write_text(json.dumps(config), encoding="utf-8")
    return config


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_rope_and_dtype_stand_where_older_tools_look(tmp_path: Path, family: FamilyName) -> None:
    config = exported_config(tmp_path, Case(family))
    assert config["rope_theta"] == 10000.0
    assert config["rope_scaling"] is None
    assert config["torch_dtype"] == "bfloat16"
    assert not {"rope_parameters", "dtype"} & config.keys()
    assert config["head_dim"] == (16 if family == "qwen3" else 8)


def test_llama3_scaling_is_written_in_the_older_form(tmp_path: Path) -> None:
    config = exported_config(tmp_path, Case(rope=LLAMA3_ROPE))
    scaling = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}
    assert config["rope_scaling"] == scaling
    assert config["rope_theta"] == LLAMA3_ROPE["rope_theta"]


def test_transformers_reads_the_same_rope_from_it(tmp_path: Path) -> None:
    exported_config(tmp_path, Case(rope=LLAMA3_ROPE))
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == LLAMA3_ROPE
