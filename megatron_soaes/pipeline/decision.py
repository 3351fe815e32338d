"""What is to be done about a stage, and why. Decided without touching anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.manifest import Manifest, differing, paths_of, read_manifest, why_stale
from megatron_soaes.stages.base import Plan

BEGUN_FILE = "begun.json"
"""Hashes of the inputs an unfinished stage was begun with."""


class Action(StrEnum):
    """What a run does about a stage."""

    SKIP = "unchanged, skipped"
    GO_ON = "goes on"
    RUN = "runs"
    RUN_AGAIN = "runs again"
    """What there is of it is set aside first."""


@dataclass(frozen=True)
class Decision:
    """An action and the reason for it, which may be empty."""

    action: Action
    why: str = ""
    manifest: Manifest | None = None
    """Of a stage that is done."""

    def __str__(self) -> str:
        return f"{self.action} ({self.why})" if self.why else str(self.action)


def decide(plan: Plan, input_hashes: Mapping[str, str], *, forced: bool = False) -> Decision:
    """What is to be done about a stage whose inputs are `input_hashes`.

    Raises UserError for inputs that changed under an unfinished stage, and a damaged manifest.
    """
    if forced and plan.directory.exists():
        return Decision(Action.RUN_AGAIN, "forced")
    return judge(plan, read_manifest(plan.directory), input_hashes)


def judge(plan: Plan, manifest: Manifest | None, input_hashes: Mapping[str, str]) -> Decision:
    """The same for one that is not forced, with its manifest if it has one."""
    if manifest is None:
        return Decision(Action.GO_ON if _begun(plan, input_hashes) else Action.RUN)
    stale = why_stale(manifest, plan, input_hashes)
    if stale is None:
        return Decision(Action.SKIP, manifest=manifest)
    return Decision(Action.RUN_AGAIN, stale, manifest)


def _begun(plan: Plan, input_hashes: Mapping[str, str]) -> bool:
    """Whether an unfinished run can be gone on with."""
    begun = plan.directory / BEGUN_FILE
    if not begun.exists() or not plan.resumable:
        return False
    try:
        before = dict(json.loads(begun.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            begun, f"a damaged file ({error})", "the JSON this program writes",
            f"Restore it, or start the stage anew: --force {plan.name}.",
        ) from None  # fmt: skip
    if changed := differing(before, input_hashes):
        raise UserError(
            f"stage {plan.name}",
            f"other inputs than it was begun with ({paths_of(changed, plan)})",
            "the same inputs until it is finished",
            f"Restore them, or start the stage anew: --force {plan.name}.",
        )
    return True
