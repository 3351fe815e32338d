"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import Producer

LONGEST = ("slurm", "training", "pipeline")
"""Rooms that begin first, so that no worker ends alone with one of them."""

# How long an example takes depends on who shares the machine; no test fails for its time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class RoomByRoom(LoadScopeScheduling):
    """One worker runs the tests of a room, so that what they share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return _room(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> RoomByRoom:
    return RoomByRoom(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [*LONGEST, _room(item.nodeid)].index(_room(item.nodeid)))


def _room(nodeid: str) -> str:
    """`slurm` of `tests/slurm/test_chain.py::test_a_chain`."""
    return nodeid.partition("::")[0].split("/")[1]
