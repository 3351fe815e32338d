"""The state of a training stage that is not a tensor: JSON beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_soaes import files
from megatron_soaes.errors import UserError

FILE_NAME = "trainer_state.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Identity:
    """What decides the course of a training run; a resumed run must agree, or declare the change.

    The parallel layout, the micro-batch size, logging and saving are not in it: they may differ.
    """

    blend: str
    """Hash of the documents, shares, seed and window length, in order."""
    tokenizer: str
    """SHA-256 of the tokenizer.json the documents were tokenized with."""
    global_batch_size: int
    sequence_length: int
    steps: int
    seed: int
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    objective: dict[str, Any]
    """What is minimised, and the teacher; empty for the cross entropy with the text."""


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands after `iteration` steps."""

    iteration: int
    consumed_samples: int
    consumed_samples_by_source: dict[str, int]
    trained_tokens: int
    """Tokens predicted with a weight above 0."""
    skipped_steps: list[int]
    """Steps whose gradient was not finite."""
    identity: Identity
    random: dict[str, Any]
    """How random streams are derived; nothing else is needed to repeat them."""
    schedule: dict[str, Any]
    """State of Megatron-Core's OptimizerParamScheduler."""
    validation: list[dict[str, Any]]
    """Every validation so far: `step`, `losses` in nats by set, and in a distillation `acceptance`
    by set, which begins at step 0."""
    best: dict[str, Any] | None
    """`iteration` and `loss` of the best checkpoint; None where no set decides."""
    written_by: dict[str, Any] = field(default_factory=dict)
    """Layout, world size and versions of the run that saved; for the reader, never compared."""

    def write(self, directory: Path) -> None:
        """Write `trainer_state.json` into a checkpoint directory."""
        files.write_json(directory / FILE_NAME, {"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> TrainerState:
        """Read it back; UserError when it is missing, damaged or of another format version."""
        file = directory / FILE_NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            if version != FORMAT_VERSION:
                raise UserError(
                    file, f"format_version {version}", str(FORMAT_VERSION),
                    "Continue with the version of megatron_soaes that wrote it.",
                )  # fmt: skip
            return cls(**{**content, "identity": Identity(**content["identity"])})
        except FileNotFoundError:
            raise UserError(
                file, "no such file", "the state of a training run",
                "This checkpoint holds weights only: start a stage from it instead of resuming.",
            ) from None  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                file, f"damaged content ({error})", "the JSON this program writes",
                "Point the tracker file at an older iteration.",
            ) from None  # fmt: skip


def refuse_undeclared_changes(
    saved: Identity, wanted: Identity, allowed: list[str], where: object
) -> None:
    """Raise UserError naming every part of the identity that changed and was not declared."""
    before, now = asdict(saved), asdict(wanted)
    changed = {name: (before[name], now[name]) for name in now if before[name] != now[name]}
    undeclared = {name: pair for name, pair in changed.items() if name not in allowed}
    if undeclared:
        found = "; ".join(
            f"{name}: was {was}, is {now_}" for name, (was, now_) in undeclared.items()
        )
        raise UserError(
            where, f"a changed recipe ({found})", "the recipe the run was started with",
            f"Undo the change, declare it with allow_changes: [{', '.join(undeclared)}], or start "
            "the stage anew.",
        )  # fmt: skip
