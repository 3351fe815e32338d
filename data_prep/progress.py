"""Progress lines of a conversion."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Counts bytes and documents and logs a line about every `log_interval` documents."""

    def __init__(self, total_bytes: int, log_interval: int, log: Callable[[str], None]) -> None:
        self._total_bytes = total_bytes
        self._log_interval = log_interval
        self._log = log
        self._bytes = 0
        self._documents = 0
        self._next = log_interval
        self._started = time.monotonic()

    def advance(self, size: int, documents: int) -> None:
        """Add what was done since the last call."""
        self._bytes += size
        self._documents += documents
        if self._documents < self._next:
            return
        self._next = self._documents + self._log_interval
        seconds = max(time.monotonic() - self._started, 1e-6)
        left = seconds * (self._total_bytes - self._bytes) / max(self._bytes, 1)
        self._log(
            f"{self._documents:,} documents, {self._bytes / 1e6:,.1f} of "
            f"{self._total_bytes / 1e6:,.1f} MB, {self._bytes / 1e6 / seconds:.1f} MB/s, "
            f"{self._documents / seconds:,.0f} documents/s, {max(left, 0):,.0f} s left"
        )
