"""Lets a model answer prompts; its answers are a dataset to train on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_soaes.errors import UserError
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.recipe.schema import RespondStage as RespondSettings
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.stages.base import Plan, Stage, Stopped
from megatron_soaes.stages.datasets import data_config, data_inputs, reading_for
from megatron_soaes.stages.locations import checkpoint_root, responses_prefix
from megatron_soaes.stages.response_dataset import (
    Response,
    mixed,
    response_files,
    response_metrics,
    write_responses,
)

if TYPE_CHECKING:
    from megatron_soaes.decoding.interface import (
        Completion,
        Generator,
        LogLikelihood,
        Prompt,
        Request,
        Sampling,
    )
    from megatron_soaes.stages.datasets import Reading
    from megatron_soaes.stages.measuring import Subject
    from megatron_soaes.stages.prompt_sets import PromptSet

ANSWERS_FILE = "answers.jsonl"
HF_COPY = "hf"
BATCHES_AT_ONCE = 8
"""Full batches between two writes of `ANSWERS_FILE`: what a stop loses at most."""
WITHOUT_EFFECT_ON_ANSWERS = {"layout", "batch_size", "gates"}
"""Settings that may change without making a finished stage stale."""


class RespondStage(Stage):
    """Asks one checkpoint, under a layout, from an HF copy of it, or behind a server.

    The same prompt at the same temperature is answered once. A server gives its answers as text, so
    their tokens are the tokenizer's for that text, which may be cut otherwise than they were
    written; and it ends them as it sees fit: whatever stopped an answer, the dataset's end of turn
    or document is what follows it.
    """

    kind = "respond"

    def __init__(self, recipe: Recipe, settings: RespondSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        recipe, stage = self.recipe, self.settings
        start = graph.start_of(recipe, stage)
        prefix = responses_prefix(recipe, self.name)
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={
                "start": checkpoint_root(recipe, start, stage.model),
                **data_inputs(recipe, stage.prompts),
            },
            outputs={path.name: path for path in response_files(prefix).values()},
            config={
                **stage.model_dump(mode="json", exclude=WITHOUT_EFFECT_ON_ANSWERS),
                "after": start,
                "seed": recipe.seed,
                "datasets": data_config(recipe, stage.prompts),
            },
            directory=self.directory,
            processes=self.layout().processes,
            resumable=True,
        )

    def layout(self) -> Layout:
        """The stage's layout, without what text is not written with; plain for other backends."""
        if self.settings.backend != "megatron":
            return Layout()
        layout = graph.layout_of(self.recipe, self.settings)
        return layout.model_copy(update={"sequence_parallel": False})

    def run(self) -> dict[str, Any]:
        try:
            return self._run()
        except KeyboardInterrupt:
            raise Stopped from None  # what was answered is in the file

    def _run(self) -> dict[str, Any]:
        from megatron_soaes.accelerator.groups import world_rank

        recipe, stage = self.recipe, self.settings
        shape = shapes_of(recipe)[0][stage.model]
        source = graph.model_of(recipe, stage)
        reading = reading_for(recipe, source, shape, shape.max_position)
        sets = self._prompts(reading)
        with self._groups():
            subject = self._subject()
            found = {one.dataset: self._answers(subject, one) for one in sets}
        if world_rank() == 0:
            prefix = responses_prefix(recipe, self.name)
            write_responses(
                prefix,
                mixed([one for responses in found.values() for one in responses], recipe.seed),
                vocab_size=reading.tokenizer.vocab_size,
                tokenizer_sha256=reading.tokenizer.sha256,
                options=self.plan().config,
                text_of=lambda tokens: str(subject.tokenizer.decode(list(tokens))),
            )
            print(f"  {self.name}: answered -> {prefix}.jsonl, to train on: {prefix}", flush=True)
        return {
            one.dataset: response_metrics(one, len(self._temperatures), found[one.dataset])
            for one in sets
        }

    @property
    def _temperatures(self) -> list[float]:
        """Each once: the same prompt at the same temperature is the same answer."""
        return list(dict.fromkeys(self.settings.sampling.temperatures))

    def _prompts(self, reading: Reading) -> list[PromptSet]:
        from megatron_soaes.accelerator.groups import world_rank
        from megatron_soaes.stages.prompt_sets import Wanted, read_prompts

        stage = self.settings
        room = reading.sequence_length - stage.sampling.max_new_tokens
        wanted = Wanted(stage.document_prefix, room, stage.prompts_per_dataset)
        sets = [read_prompts(reading, name, wanted) for name in stage.prompts]
        if world_rank() == 0:
            for one in sets:
                reasons = ", ".join(f"{n:,} {why}" for why, n in one.left_out.items() if n)
                print(
                    f"  {one.dataset}: {len(one.prompts):,} prompts; left out: {reasons or 'none'}",
                    flush=True,
                )
        return sets

    def _groups(self) -> AbstractContextManager[None]:
        """The process groups in which the model is asked; an export makes its own."""
        from megatron_soaes.training.engine import layout_groups

        return layout_groups(self.layout()) if self._is_collective else nullcontext()

    @property
    def _is_collective(self) -> bool:
        return self.settings.backend == "megatron"

    def _subject(self) -> Subject:
        """The model to ask (collective)."""
        from megatron_soaes.checkpoint.directory import HF_FILES, best_iteration, require_iteration
        from megatron_soaes.stages import subjects

        stage = self.settings
        start = graph.start_of(self.recipe, stage)
        root = checkpoint_root(self.recipe, start, stage.model)
        if stage.backend == "endpoint":
            assert stage.url is not None and stage.served_model is not None
            return subjects.served_model(
                root / HF_FILES, stage.url, stage.served_model, stage.batch_size
            )
        best = start.endswith(graph.BEST)
        iteration = best_iteration(root) if best else require_iteration(root)
        if stage.backend == "lean":
            copy = self._hf_copy(root, iteration)
            return subjects.hf_model(copy, stage.dtype, stage.batch_size)
        return subjects.checkpoint(root, iteration, self.layout(), stage.dtype, stage.batch_size)

    def _hf_copy(self, root: Path, iteration: int) -> Path:
        """An HF copy of the checkpoint, kept for the runs that go on from this one."""
        from megatron_soaes.checkpoint.export_hf import export_hf

        copy = self.directory / HF_COPY
        if not copy.exists():
            size = self.recipe.export.shard_bytes
            report = export_hf(root, copy, iteration=iteration, shard_bytes=size)
            print(f"  {report.parity}", flush=True)
        return copy

    def _answers(self, subject: Subject, asked: PromptSet) -> list[Response]:
        """The answers to all prompts of a dataset (collective); what is on file is not asked again.

        Raises UserError when none of them has a token.
        """
        from megatron_soaes.decoding.answers import answer
        from megatron_soaes.decoding.interface import Sampling
        from megatron_soaes.decoding.prompts import text_of

        stage, wanted = self.settings, self.settings.sampling
        found: list[Response] = []
        for temperature in self._temperatures:
            what = f"{asked.dataset}, temperature {temperature:g}"
            completions = answer(
                _Telling(subject.generator, what, len(asked.prompts)),
                asked.prompts,
                Sampling(
                    wanted.max_new_tokens,
                    temperature,
                    wanted.top_p,
                    self.recipe.seed,
                    stop_ids=(asked.stop,),
                ),
                self.directory / ANSWERS_FILE,
                subject.identity,
                at_once=BATCHES_AT_ONCE * stage.batch_size * self.layout().data_parallel,
            )
            found += [
                Response(asked.dataset, temperature, prompt, completion, asked.stop)
                for prompt, completion in zip(asked.prompts, completions, strict=True)
            ]
        ids = 1 + max(subject.tokenizer.get_vocab().values())
        written = [one.in_vocabulary(ids, text_of(subject.tokenizer)) for one in found]
        written = [one for one in written if one.answer]
        if not written:
            raise UserError(
                f"stage {self.name}, dataset {asked.dataset}", "answers without a single token",
                "text", "See what the model behind the server writes after these prompts.",
            )  # fmt: skip
        return written


class _Telling:
    """A generator that says on the first rank how far it is."""

    def __init__(self, generator: Generator, what: str, prompts: int) -> None:
        self._generator = generator
        self._what = what
        self._prompts = prompts
        self._answered = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        from megatron_soaes.accelerator.groups import world_rank

        completions = self._generator.generate(prompts, sampling)
        self._answered += len(completions)
        if world_rank() == 0:
            print(
                f"  {self._what}: {self._answered:,} answered now, of {self._prompts:,} prompts",
                flush=True,
            )
        return completions

    def log_likelihoods(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        return self._generator.log_likelihoods(requests)
