"""What a preflight found, subject by subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.problems import Problem, RecipeErrors

Found = Iterator[str | UserError | Problem]
"""What a check yields: a line about what is well, or what is wrong; it may raise a UserError."""


@dataclass(frozen=True)
class Finding:
    """One subject that was looked at."""

    subject: str
    well: tuple[str, ...]
    wrong: tuple[str, ...]
    """Each with the place, what was found, what was expected and what to do."""


def look(subject: str, found: Found) -> Finding:
    """Collect what a check has to say, to its end or to the error that ends it."""
    well: list[str] = []
    wrong: list[str] = []
    try:
        for one in found:
            (well if isinstance(one, str) else wrong).append(str(one))
    except RecipeErrors as errors:
        wrong += map(str, errors.problems)
    except UserError as error:
        wrong.append(str(error))
    return Finding(subject, tuple(well), tuple(wrong))
