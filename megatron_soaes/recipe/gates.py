"""Gates: conditions on a stage's metrics that must hold for a run to go on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_soaes.errors import UserError
from megatron_soaes.recipe.conditions import OPERATORS, parse_condition
from megatron_soaes.recipe.problems import did_you_mean

METRIC = re.compile(r"[A-Za-z][\w.@-]*")


@dataclass(frozen=True)
class Gate:
    """`metric operator bound`, such as `validation.domain.loss <= 2.5`."""

    metric: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read `metric operator number`. Raises UserError for anything else."""
        found = parse_condition(text)
        if found is None or found.in_points or not METRIC.fullmatch(found.name):
            raise UserError(
                f"gate {text!r}",
                repr(text),
                "'metric operator number' with one of <=, >=, <, >",
                "Write it like 'validation.domain.loss <= 2.5'.",
            )
        return cls(found.name, found.operator, found.bound)

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metric is within the bound; NaN never is.

        Raises UserError when `metrics` has no such metric: a gate that measures nothing must not
        let a run go on.
        """
        if self.metric not in metrics:
            raise UserError(
                f"gate '{self}'",
                f"no metric {self.metric}",
                "a metric of this stage",
                did_you_mean(self.metric, metrics),
            )
        return OPERATORS[self.operator](metrics[self.metric], self.bound)

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.bound:g}"
