"""What a user wants of a comparison: targets, and the margin of what counts as equal."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.conditions import number, parse_condition

MARGIN_FORM = re.compile(r"\s*([\d.]+)\s*(%|points?)\s*")


@dataclass(frozen=True)
class Target:
    """`metric operator number` for new / base, or with `points` for new - base."""

    metric: str
    """The end of a measure's full name, such as `rouge1`, `swift.rouge1`, `exam.swift.rouge1`."""
    operator: str
    bound: float
    in_points: bool

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `rouge1 >= 1.08` or `accuracy >= 5 points`. Raises UserError for anything else."""
        found = parse_condition(text)
        if found is None:
            raise UserError(
                f"target {text!r}",
                repr(text),
                "'metric operator number' or 'metric operator number points', with <=, >=, < or >",
                "Write it like 'rouge1 >= 1.08' (a ratio) or 'accuracy >= 5 points'.",
            )
        return cls(*found)

    def is_about(self, path: str) -> bool:
        """Whether a measure is meant.

        The parts of the name must come in order and the last must be the metric. Parts of a suite,
        `exam[A]`, are meant only when named.
        """
        if "[" in path and "[" not in self.metric:
            return False
        names, wanted = path.split("."), self.metric.split(".")
        remaining = iter(names)
        return wanted[-1] == names[-1] and all(name in remaining for name in wanted)

    def __str__(self) -> str:
        points = " points" if self.in_points else ""
        return f"{self.metric} {self.operator} {self.bound:g}{points}"


@dataclass(frozen=True)
class Margin:
    """What a model may lose and still count as equal: a share of the base's value, or points."""

    size: float
    unit: str
    """"%" or "points"."""

    @classmethod
    def parse(cls, text: str) -> Margin:
        """Read `2%` or `1.5 points`. Raises UserError for anything else."""
        match = MARGIN_FORM.fullmatch(text)
        size = number(match[1]) if match else math.nan
        if match is None or not size > 0:
            raise UserError(
                f"margin {text!r}", repr(text), "'2%' or '1.5 points'", "Write it like that."
            )
        return cls(size, "%" if match[2] == "%" else "points")

    def target(self, metric: str, higher_is_better: bool) -> Target:
        """The target that a model within the margin reaches."""
        sign = -1 if higher_is_better else 1
        operator = ">=" if higher_is_better else "<="
        if self.unit == "%":
            return Target(metric, operator, 1 + sign * self.size / 100, in_points=False)
        return Target(metric, operator, sign * self.size, in_points=True)

    def points(self, base: float) -> float:
        """The margin in the unit of the scores."""
        return abs(base) * self.size / 100 if self.unit == "%" else self.size

    def __str__(self) -> str:
        return f"{self.size:g}%" if self.unit == "%" else f"{self.size:g} points"
