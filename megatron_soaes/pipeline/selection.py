"""Which stages of a recipe a run is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.problems import did_you_mean


@dataclass(frozen=True)
class Selection:
    """A range of the stages in their order, and those of it that run though they are done."""

    first: str | None = None
    """None: from the beginning. The stages before it must be done."""
    last: str | None = None
    """None: to the end."""
    forced: tuple[str, ...] = ()
    """They start anew, whatever there is of them."""
    only: str | None = None
    """This stage alone; what it reads must be made. Others may run beside it."""

    def split(self, names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Of a run's stages those before the range, and those in it.

        Raises UserError for a stage that the run has not, an empty range, and a forced stage
        outside of the range.
        """
        for option, name in [
            ("--from", self.first),
            ("--to", self.last),
            ("--only", self.only),
            *(("--force", name) for name in self.forced),
        ]:
            if name is not None and name not in names:
                raise UserError(
                    option, repr(name), "a stage of this recipe", did_you_mean(name, names)
                )
        if self.only is not None:
            return self._alone(names)
        start = 0 if self.first is None else names.index(self.first)
        stop = len(names) if self.last is None else names.index(self.last) + 1
        if names and start >= stop:
            raise UserError(
                f"--to {self.last}", f"it before {self.first}, where --from begins",
                "the last stage not before the first", f"The order is {', '.join(names)}.",
            )  # fmt: skip
        for name in self.forced:
            if not start <= names.index(name) < stop:
                raise UserError(
                    f"--force {name}", "it outside of --from and --to", "a stage that is asked for",
                    "Widen the range, or leave the option out.",
                )  # fmt: skip
        return names[:start], names[start:stop]

    def _alone(self, names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        assert self.only is not None
        if self.first is not None or self.last is not None:
            raise UserError(
                f"--only {self.only}", "--from or --to beside it", "a stage, or a range of them",
                "Leave one of them out.",
            )  # fmt: skip
        for name in self.forced:
            if name != self.only:
                raise UserError(
                    f"--force {name}", f"--only {self.only}", "a stage that is asked for",
                    "Leave one of them out.",
                )  # fmt: skip
        return names[: names.index(self.only)], [self.only]


ALL_STAGES = Selection()
