"""A preflight as one page of text."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_soaes.preflight.run import Preflight


def page(name: str, found: Preflight) -> str:
    """What was looked at, what is wrong, and what only the cluster can tell."""
    return "\n".join(_lines(name, found)) + "\n"


def _lines(name: str, found: Preflight) -> Iterator[str]:
    yield f"Preflight of '{name}'"
    for finding in found.findings:
        if not (finding.well or finding.wrong):
            continue  # what it did not look at stands below
        yield f"\n{'WRONG' if finding.wrong else 'well '}  {finding.subject}"
        yield from (f"       {line}" for line in finding.well)
        yield from (f"     ! {line}" for line in finding.wrong)
    yield "\nNot looked at:"
    yield from (f"  - {line}" for line in found.not_looked_at)
    count = len(found.wrong)
    yield ""
    yield "Ready to submit." if count == 0 else f"Not ready: {count} to mend."
