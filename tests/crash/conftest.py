"""The run that nothing interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.graph import make_graph, start


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the graph after one run from its begin to its end."""
    root = tmp_path_factory.mktemp("uninterrupted")
    process = start(make_graph(root))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return root
