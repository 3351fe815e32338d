"""How a conversion tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""What a conversion calls as it goes: with the parameters done and in all."""
