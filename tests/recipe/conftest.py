"""Recipe files for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .recipe_files import QWEN2_5_72B, RECIPE_72B, write_recipe


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A rehearsal-sized recipe that keeps every rule."""
    return write_recipe(tmp_path)


@pytest.fixture
def recipe_72b_file(tmp_path: Path) -> Path:
    """A 72B target trained in FP8 on 64 GPUs."""
    return write_recipe(tmp_path, RECIPE_72B, QWEN2_5_72B)
