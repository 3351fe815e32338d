"""Slurm's commands, and what they answer."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_soaes.errors import UserError

FIELD = re.compile(r"(\w+)=(\S*)")
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
     "PREEMPTED", "TIMEOUT"}
)  # fmt: skip
"""States that a job does not leave; one that goes back into the queue is PENDING."""


@dataclass(frozen=True)
class Element:
    """One job, or one element of an array, as the controller has it."""

    job: str
    """Its number; that of an element with an underscore."""
    state: str
    reason: str
    restarts: int
    exit_code: str
    """CODE:SIGNAL."""
    nodes: str

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.state in ENDED


def require_slurm() -> None:
    """Raises UserError where there is no Slurm."""
    if shutil.which("scontrol") is None:
        raise UserError(
            "slurm", "no scontrol on the PATH", "the commands of Slurm",
            "Run this on a login node of the cluster.",
        )  # fmt: skip


def slurm(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands. Raises UserError where there is no Slurm."""
    require_slurm()
    return subprocess.run(command, capture_output=True, text=True, check=False)


def elements_of(job: str) -> list[Element]:
    """The job, or every element of the array, with its state; empty once Slurm has forgotten it."""
    answer = slurm(["scontrol", "show", "job", "--oneliner", job])
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:
            return []
        raise UserError(
            f"job {job}", answer.stderr.strip() or "no answer", "an answer of the controller",
            "See whether `scontrol ping` says that it is up.",
        )  # fmt: skip
    return [_element(line) for line in answer.stdout.splitlines() if line.strip()]


def _element(line: str) -> Element:
    fields: dict[str, str] = {}
    for name, value in FIELD.findall(line):
        # The first counts: what comes later may be part of a text, such as a comment.
        fields.setdefault(name, value)
    task = fields.get("ArrayTaskId")
    job = f"{fields['ArrayJobId']}_{task}" if task else fields["JobId"]
    return Element(
        job, fields["JobState"], fields.get("Reason", ""), int(fields.get("Restarts", "0")),
        fields.get("ExitCode", ""), fields.get("NodeList", ""),
    )  # fmt: skip


def cancel_jobs(jobs: Sequence[str]) -> None:
    """End jobs, and take those that wait out of the queue. Raises UserError if Slurm refuses."""
    answer = slurm(["scancel", *jobs])
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
        raise UserError(
            f"jobs {' '.join(jobs)}", answer.stderr.strip(), "jobs that can be cancelled",
            "Look at them with squeue.",
        )  # fmt: skip
