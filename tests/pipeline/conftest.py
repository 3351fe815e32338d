"""A model to start from, shared by the tests of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.tiny import make_model
from tests.data_prep.conftest import save_tokenizer, train_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """`model` in the test's folder: a tiny HF model with a tokenizer."""
    return save_tokenizer(make_model(tmp_path / "model"), train_tokenizer())
