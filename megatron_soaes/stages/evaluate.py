"""Several checkpoints of one model, measured on the same data, side by side."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_soaes import files
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.schema import EvaluateStage as EvaluateSettings
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.recipe.training_settings import Layout, Precision
from megatron_soaes.stages.base import Plan, Stage
from megatron_soaes.stages.datasets import data_config, data_inputs, held_out_sets, reading_for
from megatron_soaes.stages.locations import checkpoint_root

if TYPE_CHECKING:
    from megatron_soaes.data.sample import SampleSource
    from megatron_soaes.evaluation.result import Suite
    from megatron_soaes.stages.measuring import Tasks

REPORT_FILE = "report.txt"
SUMMARY_FILE = "summary.txt"
COMPARISON_FILE = "comparison.json"
REPORT_WIDTH = 100
WITHOUT_EFFECT_ON_RESULTS = {
    "perplexity", "questions", "choices", "texts", "batch_size", "micro_batch_size"
}  # fmt: skip
"""Settings of `evaluation` that decide no number, or that inputs and their names stand for."""


class EvaluateStage(Stage):
    """Measures each checkpoint on all that `evaluation` names."""

    kind = "evaluate"

    def __init__(self, recipe: Recipe, settings: EvaluateSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        evaluation = self.recipe.evaluation
        checkpoints = {
            f"checkpoint/{name}": checkpoint_root(self.recipe, name, self.settings.model)
            for name in self.settings.checkpoints
        }
        sets = evaluation.perplexity
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={**checkpoints, **data_inputs(self.recipe, sets), **evaluation.tasks},
            outputs=self._outputs(),
            config={
                "checkpoints": self.settings.checkpoints,
                "dtype": self.settings.dtype,
                "sets": data_config(self.recipe, sets),
                "seed": self.recipe.seed,
                **evaluation.model_dump(mode="json", exclude=WITHOUT_EFFECT_ON_RESULTS),
            },
            directory=self.directory,
            processes=self.layout().processes,
            resumable=True,
        )

    def _outputs(self) -> dict[str, Path]:
        if not self.recipe.evaluation.tasks:
            return {}
        names = [f"{name}.json" for name in self.settings.checkpoints]
        if len(names) > 1:
            names.append(COMPARISON_FILE)
        return {name: self.directory / name for name in [*names, REPORT_FILE, SUMMARY_FILE]}

    def layout(self) -> Layout:
        """The stage's layout; plain where text is generated or judged."""
        layout = graph.layout_of(self.recipe, self.settings)
        if not self.recipe.evaluation.tasks:
            return layout
        return layout.model_copy(update={"sequence_parallel": False})

    def run(self) -> dict[str, Any]:
        from megatron_soaes.accelerator.groups import first_rank_first, world_rank
        from megatron_soaes.stages.measuring import read_tasks
        from megatron_soaes.training.engine import layout_groups

        recipe, evaluation = self.recipe, self.recipe.evaluation
        source = graph.model_of(recipe, self.settings)
        shape = shapes_of(recipe)[0][self.settings.model]
        tasks = read_tasks(evaluation)
        sets: dict[str, SampleSource] = {}
        if evaluation.perplexity:
            reading = reading_for(recipe, source, shape, evaluation.sequence_length)
            with first_rank_first():
                sets = held_out_sets(reading, evaluation.perplexity, "refuse")
        with layout_groups(self.layout()):
            metrics = {name: self._one(name, sets, tasks) for name in self.settings.checkpoints}
        if evaluation.tasks and world_rank() == 0:
            self._report()
        return metrics

    def _one(self, name: str, sets: dict[str, SampleSource], tasks: Tasks) -> dict[str, Any]:
        """Load a checkpoint, measure it, and leave its result; its metrics (collective)."""
        from megatron_soaes.checkpoint.directory import best_iteration, require_iteration
        from megatron_soaes.training.engine import build_options, load_model
        from megatron_soaes.training.objective import CrossEntropy
        from megatron_soaes.training.validation import validate

        recipe, layout = self.recipe, self.layout()
        evaluation = recipe.evaluation
        source = graph.model_of(recipe, self.settings)
        shape = shapes_of(recipe)[0][self.settings.model]
        options = build_options(shape, source, layout, Precision(dtype=self.settings.dtype))
        root = checkpoint_root(recipe, name, self.settings.model)
        best = name.endswith(graph.BEST)
        iteration = best_iteration(root) if best else require_iteration(root)
        chunks = load_model(shape, options, root, iteration)
        loss = CrossEntropy(shape.vocab_size)
        metrics: dict[str, Any] = dict(
            validate(chunks, loss, sets, evaluation.micro_batch_size, layout)
        )
        if evaluation.tasks:
            metrics |= means(self._tasks(name, iteration, chunks, tasks))
        return metrics

    def _tasks(self, name: str, iteration: int, chunks: Any, tasks: Tasks) -> dict[str, Suite]:
        """Measure the tasks and, on the first rank, write the result (collective)."""
        from megatron_soaes.accelerator.groups import world_rank
        from megatron_soaes.evaluation.result import EvaluationResult
        from megatron_soaes.stages.measuring import measure
        from megatron_soaes.stages.subjects import checkpoint_model, loaded_model

        recipe, evaluation = self.recipe, self.recipe.evaluation
        root = checkpoint_root(recipe, name, self.settings.model)
        subject = loaded_model(
            checkpoint_model(name, root, iteration),
            graph.model_of(recipe, self.settings).source,
            shapes_of(recipe)[0][self.settings.model],
            chunks,
            dtype=self.settings.dtype,
            batch_size=evaluation.batch_size,
        )
        suites = measure(subject, tasks, evaluation, self.directory / "answers" / f"{name}.jsonl")
        if world_rank() == 0:
            result = EvaluationResult(subject.model, suites, {"recipe": recipe.seed})
            result.write(self.directory / f"{name}.json")
            print(f"  {name}: measured -> {self.directory / f'{name}.json'}", flush=True)
        return suites

    def _report(self) -> None:
        """Compare all results with the first; the tables go into files, long and short."""
        from megatron_soaes.evaluation.compare import compare
        from megatron_soaes.evaluation.report import (
            comparison_tables,
            result_table,
            summary_tables,
        )
        from megatron_soaes.evaluation.result import read_result
        from megatron_soaes.evaluation.statistics import to_json

        evaluation = self.recipe.evaluation
        paths = [self.directory / f"{name}.json" for name in self.settings.checkpoints]
        results = [read_result(path) for path in paths]
        if len(paths) == 1:
            long = short = [result_table(results[0])]
        else:
            found = compare(paths, evaluation.targets, evaluation.margin, self.recipe.seed)
            files.write_json(self.directory / COMPARISON_FILE, to_json(found))
            by_label = dict(zip(found.models, results, strict=True))
            long, short = comparison_tables(found), summary_tables(by_label, found)
        files.write_text(self.directory / REPORT_FILE, as_text(long))
        files.write_text(self.directory / SUMMARY_FILE, as_text(short))


def means(suites: dict[str, Suite]) -> dict[str, dict[str, float]]:
    """The value of every measure by suite: gates speak of `CHECKPOINT.SUITE.PROFILE.METRIC`."""
    return {
        name: {measure: scores.value for measure, scores in suite.measures.items()}
        for name, suite in suites.items()
    }


def as_text(tables: list[Any]) -> str:
    """Tables as a terminal of `REPORT_WIDTH` columns shows them."""
    from rich.console import Console

    out = StringIO()
    console = Console(file=out, width=REPORT_WIDTH, highlight=False)
    for table in tables:
        console.print(table)
    return out.getvalue()
