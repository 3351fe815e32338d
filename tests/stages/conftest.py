"""The exam, made once for the room."""

from __future__ import annotations

import pytest

from tests.stages.exam import Exam, make_exam


@pytest.fixture(scope="package")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Exam:
    """Models, checkpoints, task files and a recipe; tests leave them as they are."""
    return make_exam(tmp_path_factory.mktemp("exam"))
