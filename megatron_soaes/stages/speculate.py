"""What an exported draft is worth to an exported target: one comparison for each mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.recipe.schema import SpeculateStage as SpeculateSettings
from megatron_soaes.stages.base import Plan, Stage
from megatron_soaes.stages.locations import exported_hf

if TYPE_CHECKING:
    from megatron_soaes.decoding.comparison import Comparison

REPORT_FILE = "report.txt"
DECIDING = {
    "target", "draft", "most_prompts", "modes", "draft_lengths", "adaptive", "repeats",
    "max_new_tokens", "dtype", "draft_dtype",
}  # fmt: skip
"""Settings that decide what is measured, besides the prompts, which are an input."""


class SpeculateStage(Stage):
    """Greedy decoding with the draft against plain decoding, as `soaes speculate` measures it.

    One process with all cores, whatever the models' layouts.
    """

    kind = "speculate"

    def __init__(self, recipe: Recipe, settings: SpeculateSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        settings = self.settings
        names = [f"{mode}.{suffix}" for mode in settings.modes for suffix in ("json", "svg")]
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={
                "target": exported_hf(self.recipe, settings.target),
                "draft": exported_hf(self.recipe, settings.draft),
                "prompts": settings.prompts,
            },
            outputs={name: self.directory / name for name in (*names, REPORT_FILE)},
            config=settings.model_dump(mode="json", include=DECIDING),
            directory=self.directory,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.decoding.comparison_report import comparison_text, write_comparison

        found = {}
        for mode in self.settings.modes:
            found[mode] = self._compare(mode)
            write_comparison(found[mode], self.directory / f"{mode}.json")
        report = self.directory / REPORT_FILE
        files.write_text(report, "\n".join(map(comparison_text, found.values())))
        print(f"  {self.name}: measured -> {report}", flush=True)
        for one in found.values():
            self._require_identity(one)
        return {mode: figures(one) for mode, one in found.items()}

    def _compare(self, mode: str) -> Comparison:
        from megatron_soaes.decoding.comparison import compare_directories
        from megatron_soaes.decoding.interface import Sampling

        settings, inputs = self.settings, self.plan().inputs
        return compare_directories(
            inputs["target"],
            inputs["draft"],
            inputs["prompts"],
            Sampling(settings.max_new_tokens),
            dtypes=(settings.dtype, settings.draft_dtype),
            most_prompts=settings.most_prompts,
            draft_lengths=settings.draft_lengths,
            exact=mode == "exact",
            adaptive=settings.adaptive,
            repeats=settings.repeats,
            note=lambda line: print(f"  {self.name}, {mode} mode: {line}", flush=True),
        )

    def _require_identity(self, found: Comparison) -> None:
        """Exact mode promises the logits of plain decoding: anything else ends the run."""
        if not found.exact or found.identity_holds:
            return
        same = figures(found)
        raise UserError(
            f"stage {self.name}, exact mode",
            f"the text of {same['identical_prompts']} and the logits of "
            f"{same['equal_logits_prompts']} of {same['prompts']} prompts as in plain decoding",
            "those of all, bitwise",
            f"No setting explains this: it is an error in the program or of the machine. Keep "
            f"{self.directory} and report it; `modes: [fast]` runs without the promise.",
        )


def figures(found: Comparison) -> dict[str, float]:
    """The metrics of a mode, those of a draft length at the fastest one.

    `speedup` (with `speedup_low` and `speedup_high`, 95 %) is over plain decoding in fast mode,
    `speedup_in_mode` and `share_of_ideal` over plain decoding in the same mode. `alpha` is the
    share of judged tokens that was accepted, `acceptance_rate` that of drafted tokens. `drafting`,
    `judging` and `rest` are shares of the time. `identical` is the share of prompts whose text,
    `equal_logits` (exact mode) whose logits are those of plain decoding, at the worst of all
    lengths. `go` is 1 where the pair is recommended, at `recommended_draft_length`.
    """
    best, seen = found.fastest, found.fastest.acceptance
    assert best.ideal_speedup is not None and best.share_of_ideal is not None
    same = [one.identity for one in found.lengths if one.identity is not None]
    texts = min(one.equal for one in same)
    metrics: dict[str, float] = {
        "speedup": best.speedup.value,
        "speedup_low": best.speedup.low,
        "speedup_high": best.speedup.high,
        "speedup_in_mode": best.speedup_in_mode.value,
        "draft_length": best.draft_length,
        "plain_seconds_per_token": found.plain_seconds_per_token,
        "seconds_per_token": best.seconds_per_token,
        "alpha": seen.acceptance_of_judged,
        "acceptance_rate": seen.acceptance_rate,
        "acceptance_length_with_bonus": seen.acceptance_length_with_bonus,
        "acceptance_length_without_bonus": seen.acceptance_length_without_bonus,
        "cost_ratio": found.costs.cost_ratio,
        "ideal_speedup": best.ideal_speedup,
        "share_of_ideal": best.share_of_ideal,
        "drafting": best.time.drafting,
        "judging": best.time.judging,
        "rest": best.time.rest,
        "prompts": found.prompts,
        "identical_prompts": texts,
        "identical": texts / found.prompts,
        "go": int(found.recommendation.go),
        "recommended_draft_length": found.recommendation.draft_length,
    }
    logits = [one.equal_logits for one in same if one.equal_logits is not None]
    if logits:
        metrics["equal_logits_prompts"] = min(logits)
        metrics["equal_logits"] = min(logits) / found.prompts
    return metrics
