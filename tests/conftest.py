"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes depends on who shares the machine; no test fails for its time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
