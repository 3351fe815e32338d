"""Tiny models that the tests of a run share; nobody changes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.tiny import Case, make_model

ModelOf = Callable[[Case], Path]


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> ModelOf:
    """The HF directory of a case in bf16, written when it is first asked for."""
    made: dict[str, Path] = {}

    def directory(case: Case) -> Path:
        key = repr(case)
        if key not in made:
            folder = tmp_path_factory.mktemp("model") / "hf"
            made[key] = make_model(folder, case, dtype=torch.bfloat16)
        return made[key]

    return directory
