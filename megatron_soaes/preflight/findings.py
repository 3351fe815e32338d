"""What a preflight found, subject by subject."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.problems import Problem, RecipeErrors


@dataclass(frozen=True)
class Unseen:
    """Something that could not be looked at, and why."""

    what: str


Found = Iterator[str | UserError | Problem | Unseen]
"""What a check yields: a line about what is well, what is wrong, or what it did not look at; it may
raise a UserError. A line about what is well comes only when it holds."""


@dataclass(frozen=True)
class Finding:
    """One subject that was looked at."""

    subject: str
    well: tuple[str, ...]
    wrong: tuple[str, ...]
    """Each with the place, what was found, what was expected and what to do."""
    unseen: tuple[str, ...] = ()
    """What of it was not looked at."""

    @property
    def is_well(self) -> bool:
        """Whether all of it was looked at, and nothing is wrong."""
        return not self.wrong and not self.unseen


def look(subject: str, found: Found) -> Finding:
    """Collect what a check has to say, to its end or to the error that ends it.

    An error that no check foresaw is something wrong, too: the page must tell all the others.
    """
    well: list[str] = []
    wrong: list[str] = []
    unseen: list[str] = []
    try:
        for one in found:
            if isinstance(one, Unseen):
                unseen.append(one.what)
            else:
                (well if isinstance(one, str) else wrong).append(str(one))
    except RecipeErrors as errors:
        wrong += map(str, errors.problems)
    except UserError as error:
        wrong.append(str(error))
    except Exception as error:
        wrong.append(str(_unexpected(subject, error)))
    return Finding(subject, tuple(well), tuple(wrong), tuple(unseen))


def _unexpected(subject: str, error: Exception) -> UserError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        subject,
        f"an unexpected {type(error).__name__} ({error}) at {place.filename}:{place.lineno}",
        "a check that comes to its end", "Mend what it speaks of, or report this.",
    )  # fmt: skip
