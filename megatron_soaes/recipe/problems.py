"""Broken rules of a recipe, collected so that one run of a check shows them all."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_soaes.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One broken rule."""

    path: str
    """The field, written as an override writes it: `stages.cpt.optimizer.lr`."""
    value: str
    """What stands there."""
    rule: str
    """What was expected; completes "expected ..."."""
    fix: str
    """What to do, as a sentence."""

    def __str__(self) -> str:
        return f"{self.path}: found {self.value}; expected {self.rule}. {self.fix}"


class RecipeErrors(UserError):
    """Every broken rule of one recipe, one on a line."""

    def __init__(self, where: object, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(str(problem) for problem in problems)
        super().__init__(where, count, "a recipe that keeps every rule", lines)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return f"{self.where}: {self.found}\n{self.fix}"

    def __reduce__(self) -> Any:
        return type(self), (self.where, self.problems)


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of `known`, or all of them when none is near."""
    options = sorted(set(known))
    near = difflib.get_close_matches(found, options, n=2)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"Known: {', '.join(options)}." if options else "There is none."


def unknown(path: str, names: Iterable[str], known: Iterable[str], rule: str) -> Iterator[Problem]:
    """A problem for each name that is not known; `rule` says what it should be."""
    options = list(known)
    for name in names:
        if name not in options:
            yield Problem(path, f"'{name}'", rule, did_you_mean(name, options))


def repeated(path: str, names: Iterable[str]) -> Iterator[Problem]:
    """A problem for each name that comes more than once."""
    for name, count in Counter(names).items():
        if count > 1:
            yield Problem(path, f"'{name}' {count} times", "each name once", "Remove the others.")
