"""Stores what a teacher holds likely at every position of stored text, for distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.tokenizer import load_tokenizer
from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.recipe import graph
from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.schema import CaptureStage as CaptureSettings
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan, Stage, Stopped
from megatron_soaes.stages.datasets import (
    Reading,
    data_config,
    data_inputs,
    held_out_sets,
    reading_for,
)
from megatron_soaes.stages.locations import capture_store, checkpoint_root
from megatron_soaes.stages.mixtures import (
    mixture_config,
    packing_reports,
    too_long_of,
    training_mixture,
)

if TYPE_CHECKING:
    from megatron_soaes.data.blend import Mixture
    from megatron_soaes.data.sample import SampleSource
    from megatron_soaes.data.teacher_store import Layout, Origin
    from megatron_soaes.training.capture import AskedModel, WantedStore

WITHOUT_EFFECT_ON_ANSWERS = {"layout", "micro_batch_size", "gates", "hang_timeout_s"}
"""Settings that may change without making a finished stage stale."""


class CaptureStage(Stage):
    """Asks one checkpoint at every position of a blend and of validation sets."""

    kind = "capture"

    def __init__(self, recipe: Recipe, settings: CaptureSettings) -> None:
        super().__init__(recipe, settings.name)
        self.settings = settings

    def plan(self) -> Plan:
        recipe, stage = self.recipe, self.settings
        start = graph.start_of(recipe, stage)
        read = list(dict.fromkeys([*graph.datasets_of(recipe, stage), *stage.validation]))
        held_out = {
            f"validation/{name}": capture_store(recipe, stage.name, name)
            for name in stage.validation
        }
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs={
                "start": checkpoint_root(recipe, start, stage.model),
                **data_inputs(recipe, read),
            },
            outputs={"store": capture_store(recipe, stage.name), **held_out},
            config={
                **stage.model_dump(mode="json", exclude=WITHOUT_EFFECT_ON_ANSWERS),
                "after": start,
                "seed": recipe.seed,
                "mixture": mixture_config(recipe, stage),
                "datasets": data_config(recipe, read),
            },
            directory=self.directory,
            processes=graph.layout_of(recipe, stage).processes,
            resumable=True,
        )

    def run(self) -> dict[str, Any]:
        from megatron_soaes.accelerator.groups import first_rank_first, world_rank
        from megatron_soaes.training.capture import capture
        from megatron_soaes.training.engine import layout_groups
        from megatron_soaes.training.stopping import StopSignal

        recipe, stage = self.recipe, self.settings
        shape = shapes_of(recipe)[0][stage.model]
        source = graph.model_of(recipe, stage)
        reading = reading_for(recipe, source, shape, stage.sequence_length)
        with layout_groups(graph.layout_of(recipe, stage)):
            # The first rank writes the indexes that the others then map.
            with first_rank_first():
                mixture, count = training_mixture(reading, stage)
                held_out = held_out_sets(reading, stage.validation, too_long_of(recipe, stage))
            stores = self._stores(reading, mixture, count, held_out)
            if world_rank() == 0:
                for wanted in stores:
                    print(f"  {wanted.name}: {_size(wanted.layout)}", flush=True)
            teacher = self._teacher()
            stop = StopSignal()
            for wanted in stores:
                if not capture(teacher, wanted, stop, stage.hang_timeout_s):
                    raise Stopped
            return _metrics(stores) | {"packing": packing_reports(reading, stage)}

    def _stores(
        self, reading: Reading, mixture: Mixture, count: int, held_out: Mapping[str, SampleSource]
    ) -> list[WantedStore]:
        """All stores of the stage, that of the blend first (collective)."""
        from megatron_soaes.data.teacher_store import Layout
        from megatron_soaes.training.capture import WantedStore

        stage, kept = self.settings, self.settings.store

        def store_of(name: str | None, samples: Mixture | SampleSource, count: int) -> WantedStore:
            return WantedStore(
                name=f"validation/{name}" if name else "store",
                directory=capture_store(self.recipe, stage.name, name),
                samples=samples,
                origin=origins[name],
                layout=Layout(
                    kind=kept.kind,
                    entries=kept.entries,
                    samples=count,
                    positions=stage.sequence_length,
                    samples_per_shard=kept.samples_per_shard,
                    dtype=kept.dtype,
                    exponent=kept.exponent,
                ),
            )

        origins = captured_origins(reading, stage, mixture, held_out)
        sets = [
            store_of(name, samples, held_out_count(stage, samples))
            for name, samples in held_out.items()
        ]
        return [store_of(None, mixture, count), *sets]

    def _teacher(self) -> AskedModel:
        """The checkpoint in the stage's layout (collective)."""
        from megatron_soaes.training.capture import AskedModel
        from megatron_soaes.training.engine import build_options, load_model

        recipe, stage = self.recipe, self.settings
        source = graph.model_of(recipe, stage)
        shape, layout = shapes_of(recipe)[0][stage.model], graph.layout_of(recipe, stage)
        info, _ = load_tokenizer(source.source, add_special_tokens=False)
        vocab_size, wanted = info.largest_id + 1, stage.store
        if wanted.kind == "top_k" and wanted.entries > vocab_size:
            raise UserError(
                f"stages.{stage.name}.store.entries", str(wanted.entries),
                f"at most {vocab_size}, the ids of {info.path}", "Keep fewer.",
            )  # fmt: skip
        options = build_options(shape, source, layout, stage.precision)
        chunks = load_model(shape, options, *_checkpoint(recipe, stage))
        size, fp8 = stage.micro_batch_size, stage.precision.fp8
        return AskedModel(chunks, layout, size, vocab_size, recipe.seed, fp8)


def captured_origins(
    reading: Reading,
    stage: CaptureSettings,
    mixture: Mixture,
    held_out: Mapping[str, SampleSource],
) -> dict[str | None, Origin]:
    """What each store of a capture is about, by validation set; None is the blend's (collective).

    `mixture` and `held_out` are the samples of the capture. The same weights in another precision
    are another teacher: an interrupted capture must not go on with it.
    """
    from megatron_soaes.data.teacher_store import Origin
    from megatron_soaes.stages.subjects import checkpoint_model

    weights = checkpoint_model(stage.model, *_checkpoint(reading.recipe, stage)).weights_sha256
    precision = stage.precision.model_dump(mode="json")
    teacher = files.sha256_json({"weights": weights, "precision": precision})
    data: dict[str | None, str] = {None: mixture.hash}
    for name, samples in held_out.items():
        identity = {"of": samples.identity(), "samples": held_out_count(stage, samples)}
        data[name] = files.sha256_json(identity)
    tokenizer, temperature = reading.tokenizer.sha256, stage.store.temperature
    return {name: Origin(tokenizer, teacher, one, temperature) for name, one in data.items()}


def held_out_count(stage: CaptureSettings, samples: SampleSource) -> int:
    """How many samples of a validation set are captured."""
    return min(len(samples), stage.validation_samples)


def _checkpoint(recipe: Recipe, stage: CaptureSettings) -> tuple[Path, int]:
    """Root and iteration of the teacher."""
    from megatron_soaes.checkpoint.directory import best_iteration, require_iteration

    name = graph.start_of(recipe, stage)
    root = checkpoint_root(recipe, name, stage.model)
    best = name.endswith(graph.BEST)
    return root, best_iteration(root) if best else require_iteration(root)


def _size(layout: Layout) -> str:
    from megatron_soaes.data.teacher_store import bytes_per_token

    each = bytes_per_token(layout.entries)
    total = layout.samples * layout.positions * each
    return (
        f"{layout.samples:,} samples of {layout.positions:,} tokens, {each:,} bytes a token: "
        f"{total / 1e6:,.2f} MB"
    )


def _metrics(stores: list[WantedStore]) -> dict[str, Any]:
    """Of the whole stores, also of what an earlier run wrote (collective)."""
    from megatron_soaes.data.teacher_store import TeacherStore
    from megatron_soaes.training.capture import residual_mass

    blend, *held_out = stores
    layout = blend.layout
    metrics: dict[str, Any] = {
        "samples": layout.samples,
        "positions": layout.samples * layout.positions,
        "bytes": sum(layout.shard_bytes(shard) for shard in range(layout.shards)),
        "validation": {
            one.name.removeprefix("validation/"): {"samples": one.layout.samples}
            for one in held_out
        },
    }
    if layout.kind == "top_k":
        store = TeacherStore(blend.directory, blend.origin)
        metrics["residual_mass"] = residual_mass(store, blend.samples)
    return metrics
