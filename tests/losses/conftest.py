"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group


@pytest.fixture(scope="package")
def one_process() -> Iterator[None]:
    """The groups of a run without other ranks."""
    with process_group(Rendezvous(0, 1, "127.0.0.1", 0)), model_parallel():
        yield
