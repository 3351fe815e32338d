"""Errors a user can act on, and the exit codes of every command."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a `soaes` command or a training worker returns to the shell (docs/exit-codes.md)."""

    OK = 0
    FAILURE = 1
    """An unexpected error; the traceback is in the log."""
    BAD_INPUT = 2
    """A `UserError`: the message says what to change."""
    NON_FINITE = 3
    """Training stopped after too many non-finite steps in a row; a report of the batch exists."""
    STALLED = 4
    """A rank made no progress for too long; the stacks of all ranks are in their logs."""
    UNSOUND = 5
    """A node of the job is not sound, or the network between them; nothing was started."""
    STOPPED = 75
    """A signal asked for a stop; the state was saved. The same command goes on (EX_TEMPFAIL)."""


class UserError(Exception):
    """Something in the user's hands is wrong: a file, a line, a recipe field, a missing package.

    `where` names the file (with the line) or the field, `found` what stands there, `expected` the
    rule it breaks and `fix` what to do.
    """

    def __init__(self, where: object, found: str, expected: str, fix: str) -> None:
        super().__init__(f"{where}: found {found}; expected {expected}. {fix}")
        self.where = str(where)
        self.found = found
        self.expected = expected
        self.fix = fix

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str, str]]:
        """Keep the four parts when the error crosses a process boundary."""
        return type(self), (self.where, self.found, self.expected, self.fix)


class NonFiniteError(Exception):
    """NaN or infinity in as many training steps in a row as the recipe tolerates."""
