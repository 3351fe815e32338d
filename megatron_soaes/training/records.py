"""metrics.jsonl: a record a line of what training told. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_soaes import files

METRICS_FILE = "metrics.jsonl"


def keep_records_until(metrics: Path, step: int) -> None:
    """Drop the records of what a resumed run will do again, and a line cut by a crash.

    One that begins anew, after step 0, does everything again: the validation before the first step
    too.
    """
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line + "\n")
        except ValueError:
            continue
    files.write_text(metrics, "".join(kept))


def read_records(metrics: Path) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, without a line that is not written to its end yet."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
