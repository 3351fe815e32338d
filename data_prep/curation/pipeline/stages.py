"""The stages of a curation, in order; each waits for all of the one before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from data_prep.curation.language import Language
from data_prep.curation.pipeline import steps
from data_prep.curation.pipeline.blocks import (
    Clean,
    Cleaning,
    DropDecided,
    DropEvaluationText,
    Rule,
    Score,
    Select,
)
from data_prep.curation.pipeline.outcome import WriteOutcome
from data_prep.curation.pipeline.plan import Plan
from data_prep.curation.pipeline.reading import Keys, ReadPart
from data_prep.curation.pipeline.recipe import CurationRecipe, Scoring


@dataclass(frozen=True)
class Stage:
    """A datatrove pipeline and its number of tasks."""

    name: str
    steps: list[PipelineStep]
    tasks: int


def plan_stages(plan: Plan) -> list[Stage]:
    """All stages; those of blocks that the recipe switches off are left out."""
    parts = len(plan.parts)
    recipe = plan.recipe
    stages = [Stage("clean", _clean(plan), parts)]
    if recipe.exact_copies:
        stages.append(Stage("copies", [steps.FindCopies(plan)], 1))
    stages.append(Stage("unique", _unique(plan), parts))
    if near := recipe.near_copies:
        read = steps.ReadShard(partial(plan.shard, "unique"))
        stages.append(Stage("candidates", [steps.Propose(plan, near)], 1))
        stages.append(Stage("gather", [read, steps.Gather(plan)], parts))
        stages.append(Stage("near-copies", [steps.Decide(plan, near)], 1))
    if recipe.scores:
        stages.append(Stage("scored", _scored(plan, recipe.scores), parts))
    stages.append(Stage("documents", _documents(plan), parts))
    if recipe.tokenize:
        tokenize = steps.TokenizeCorpus(plan, recipe.tokenize)
        stages.append(Stage("tokens", [tokenize], len(recipe.corpora)))
    stages.append(Stage("outcome", [WriteOutcome(plan, blocks_of(recipe))], 1))
    return _chained(plan, stages)


def blocks_of(recipe: CurationRecipe) -> list[str]:
    """The blocks that keep an account, in the order in which documents pass them."""
    present = {
        "read": True,
        "clean": True,
        "copies": recipe.exact_copies is not None,
        "evaluation": recipe.evaluation is not None,
        "near-copies": recipe.near_copies is not None,
        "scores": recipe.scores is not None,
        "selection": recipe.keep is not None,
    }
    return [block for block, there in present.items() if there]


def logs_of(plan: Plan, stage: str) -> Path:
    """Folder of a stage's logs and of datatrove's marks of finished tasks."""
    return plan.recipe.output / "logs" / stage


def _clean(plan: Plan) -> list[PipelineStep]:
    recipe = plan.recipe
    keys = {
        name: Keys(corpus.text_key, corpus.id_key, corpus.source_key)
        for name, corpus in recipe.corpora.items()
    }
    rules: dict[Language, Sequence[Rule]] = {
        Language.ZH: [rule for rule in (recipe.quality_zh, recipe.repetition_zh) if rule],
        Language.EN: [rule for rule in (recipe.quality_en, recipe.repetition_en) if rule],
    }
    cleaning = Cleaning(
        recipe.normalise, recipe.language, recipe.boilerplate, recipe.script, rules,
        recipe.personal_data,
    )  # fmt: skip
    skip = recipe.bad_lines == "skip"
    pipeline: list[PipelineStep] = [
        ReadPart(plan.parts, keys, plan.accounts / "read", skip_bad=skip),
        Clean(cleaning, plan.accounts / "clean"),
        steps.WriteShard(partial(plan.shard, "clean")),
    ]
    return [*pipeline, steps.HashTexts(plan)] if recipe.exact_copies else pipeline


def _unique(plan: Plan) -> list[PipelineStep]:
    recipe = plan.recipe
    pipeline: list[PipelineStep] = [steps.ReadShard(partial(plan.shard, "clean"))]
    if recipe.exact_copies:
        decisions, account = steps.copies_of(plan), plan.accounts / "copies"
        pipeline.append(DropDecided(decisions, "copy", account))
    if recipe.evaluation:
        fields = tuple(recipe.evaluation.fields)
        pipeline.append(
            DropEvaluationText(
                recipe.evaluation.files, fields, recipe.evaluation.max_overlap,
                plan.accounts / "evaluation",
            )
        )  # fmt: skip
    pipeline.append(steps.WriteShard(partial(plan.shard, "unique")))
    if recipe.near_copies:
        pipeline.append(steps.SignTexts(plan, recipe.near_copies))
    return pipeline


def _left(plan: Plan) -> list[PipelineStep]:
    """What no deduplication takes."""
    pipeline: list[PipelineStep] = [steps.ReadShard(partial(plan.shard, "unique"))]
    if plan.recipe.near_copies:
        decisions, account = steps.near_copies_of(plan), plan.accounts / "near-copies"
        pipeline.append(DropDecided(decisions, "near_copy", account))
    return pipeline


def _scored(plan: Plan, scoring: Scoring) -> list[PipelineStep]:
    """Kept apart from what is chosen, so that another choice needs no more than the scores."""
    score = Score(scoring, plan.accounts / "scores")
    return [*_left(plan), score, steps.WriteShard(partial(plan.shard, "scored"))]


def _documents(plan: Plan) -> list[PipelineStep]:
    if plan.recipe.scores:
        pipeline: list[PipelineStep] = [steps.ReadShard(partial(plan.shard, "scored"))]
    else:
        pipeline = _left(plan)
    if plan.recipe.keep is not None:
        pipeline.append(Select(plan.recipe.keep, plan.accounts / "selection"))
    as_rows = plan.recipe.write == "parquet"
    return [*pipeline, (steps.WriteParquet if as_rows else steps.WriteShard)(plan.document_file)]


def _chained(plan: Plan, stages: list[Stage]) -> list[Stage]:
    """Each stage after the first begins by seeing that the one before is done."""
    chained = stages[:1]
    for before, stage in itertools.pairwise(stages):
        gate = steps.AfterStage(before.name, logs_of(plan, before.name), before.tasks)
        chained.append(Stage(stage.name, [gate, *stage.steps], stage.tasks))
    return chained
