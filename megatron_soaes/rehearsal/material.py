"""Everything that a small recipe reads, laid out in one folder: models, text, tasks, prompts.

What the user has here is used in its first records; the rest is invented in its form. The same
recipe and files give the same bytes, and what is there already is not written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from data_prep.convert import ConvertOptions, convert
from data_prep.sft.convert import SFTOptions, convert_sft
from data_prep.tokenizer import read_tokenizer
from megatron_soaes.files import atomic_file
from megatron_soaes.recipe.data_settings import Dataset
from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.recipe.schema import AnyStage, ModelName, PreciseStage, Recipe, SpeculateStage
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.rehearsal import texts
from megatron_soaes.rehearsal.borrowed import Room, Taken, borrowed, first_lines
from megatron_soaes.rehearsal.changes import with_parts
from megatron_soaes.rehearsal.shrink import layouts_of, small_layers
from megatron_soaes.rehearsal.tiny_model import (
    PADDING_ROWS,
    TOKENIZER_FILE,
    StandIn,
    train_stand_in,
    write_tiny_model,
)

FILE_NAME = "rehearsal"
"""Of an invented file; a glob of the recipe stays one that finds it."""
ROOM_SHARE = 0.75
"""Of the shortest sequence, that a conversation may take: its template's text comes on top."""


@dataclass
class Material:
    """A folder of material for a recipe, and what stands in it for what."""

    recipe: Recipe
    """As the user wrote it."""
    shapes: Mapping[ModelName, ModelShape]
    folder: Path
    notes: list[str] = field(default_factory=list)
    """What each thing is, in words."""

    def lay_out(self, small: Recipe) -> Recipe:
        """Write all of it; the small recipe that reads it. UserError for unreadable files."""
        models = {name: self._model(name) for name in self.shapes}
        target = models["target"]
        room = Room(
            read_tokenizer(target / TOKENIZER_FILE),
            int(ROOM_SHARE * min(_lengths(small))),
        )
        sources = {}
        for name, directory in models.items():
            source = small.models.get(name)
            assert source is not None
            update = {"source": directory, "weights": None, "config": None}
            changed = {one: v for one, v in update.items() if getattr(source, one) != v}
            sources[name] = source.model_copy(update=changed)
        datasets = {
            name: self._dataset(name, dataset, number, room, target)
            for number, (name, dataset) in enumerate(small.data.datasets.items())
        }
        return with_parts(
            small,
            models=with_parts(small.models, **sources),
            data=with_parts(small.data, datasets=datasets) if datasets else small.data,
            evaluation=self._evaluation(small.evaluation),
            stages=[self._stage(one) for one in small.stages],
        )

    def _model(self, name: ModelName) -> Path:
        source, shape = self.recipe.models.get(name), self.shapes[name]
        assert source is not None
        config_file = source.config or source.source / "config.json"
        tokenizer = self._real_tokenizer(name)
        real = tokenizer is not None
        if tokenizer is not None:
            read_tokenizer(tokenizer / TOKENIZER_FILE)  # an error names the user's file, not a copy
        largest = max(one.vocab_size for one in self.shapes.values())
        smallest = min(one.vocab_size for one in self.shapes.values())
        is_larger = shape.vocab_size == largest > smallest
        stand_in = StandIn(
            config=json.loads(config_file.read_text(encoding="utf-8")),
            shape=shape,
            layouts=layouts_of(self.recipe, name),
            layers=small_layers(self.recipe, name),
            tokenizer=tokenizer
            or train_stand_in(texts.tokenizer_texts(), self.folder / "tokenizer"),
            real_tokenizer=real,
            padding_rows=PADDING_ROWS if is_larger else 0,
        )
        tiny = stand_in.tiny_config()
        used = f"the tokenizer of {tokenizer}" if real else "a small ChatML tokenizer"
        self.notes.append(
            f"models.{name}: {shape.family}, {shape.layers} layers of {shape.hidden} "
            f"({shape.heads} heads, {shape.kv_heads} KV) -> untrained, "
            f"{tiny['num_hidden_layers']} layers of {tiny['hidden_size']} "
            f"({tiny['num_attention_heads']} heads, {tiny['num_key_value_heads']} KV), {used}"
        )
        if source.weights is not None:
            self.notes.append(
                f"models.{name}.weights: {source.weights} -> those of the HF directory"
            )
        return write_tiny_model(self.folder / "models" / name, stand_in, self.recipe.seed)

    def _real_tokenizer(self, name: ModelName) -> Path | None:
        """The model's own tokenizer, else that of the other model; None where neither is here."""
        names: tuple[ModelName, ...] = (name, "target", "draft")
        sources = (source for one in names if (source := self.recipe.models.get(one)))
        return next((one.source for one in sources if _has_tokenizer(one.source)), None)

    def _dataset(
        self, name: str, dataset: Dataset, number: int, room: Room, target: Path
    ) -> Dataset:
        where = f"data.datasets.{name}"
        if dataset.responses:
            return dataset
        if not dataset.files:
            return self._indexed(name, dataset, number, target)
        taken = borrowed(dataset, room)
        if taken is None:
            self.notes.append(f"{where}: {', '.join(dataset.files)} -> invented text")
            rows = texts.as_lines(texts.dataset_rows(dataset, number))
            # Each pattern has a part: records of one dataset are told apart.
            count = len(dataset.files)
            taken = [
                {_invented_name(pattern): rows[part::count]}
                for part, pattern in enumerate(dataset.files)
            ]
        else:
            records = sum(len(lines) for one in taken for lines in one.values())
            kind = "conversations that fit" if dataset.is_chat else "documents, cut where long"
            self.notes.append(f"{where}: {', '.join(dataset.files)} -> the first {records} {kind}")
        patterns = [
            self._files(self.folder / "data" / name / str(part), pattern, one)
            for part, (pattern, one) in enumerate(zip(dataset.files, taken, strict=True))
        ]
        field_name = "conversations" if dataset.is_chat else "text"
        return dataset.model_copy(update={field_name: patterns})

    def _files(self, folder: Path, pattern: str, taken: Taken) -> str:
        """Write the files of a pattern, and no other; the path or glob that finds them."""
        for old in folder.glob("*"):
            if old.name not in taken:
                old.unlink()
        for name, lines in taken.items():
            suffix = Path(name).suffix.lower()
            _write(folder / name, texts.encoded(lines, suffix))
        (first, *others) = taken
        if others or _is_glob(pattern):
            return str(folder / "*")
        return str(folder / first)

    def _indexed(self, name: str, dataset: Dataset, number: int, target: Path) -> Dataset:
        """An indexed dataset, made of invented text as `soaes prep` makes one."""
        prefix = self.folder / "indexed" / name
        text = prefix.with_suffix(".jsonl")
        lines = texts.as_lines(texts.dataset_rows(dataset, number))
        _write(text, b"".join(lines))
        given = dataset.indexed_conversations or dataset.indexed
        self.notes.append(f"data.datasets.{name}: {given} -> invented text, indexed here")
        inputs = (str(text),)
        with redirect_stdout(StringIO()):
            if dataset.is_chat:
                convert_sft(SFTOptions(inputs, prefix, target, overwrite=True))
                return dataset.model_copy(update={"indexed_conversations": prefix})
            options = ConvertOptions(
                inputs, prefix, target, append_eod=True, include_special_tokens=False,
                overwrite=True,
            )  # fmt: skip
            convert(options)
        return dataset.model_copy(update={"indexed": options.dataset("text")})

    def _evaluation(self, evaluation: Evaluation) -> Evaluation:
        update: dict[str, Any] = {}
        for kind in ("questions", "choices", "texts"):
            files = getattr(evaluation, kind)
            if files:
                update[kind] = {name: self._task(kind, name, file) for name, file in files.items()}
        if evaluation.few_shot:
            update["few_shot"] = {
                name: one.model_copy(
                    update={"examples": self._task("few_shot", name, one.examples)}
                )
                for name, one in evaluation.few_shot.items()
            }
        return evaluation.model_copy(update=update)

    def _task(self, kind: str, name: str, file: Path) -> Path:
        lines = texts.as_lines(texts.task_rows(kind))
        return self._lines(f"evaluation.{kind}.{name}", file, lines)

    def _stage(self, stage: AnyStage) -> AnyStage:
        if not isinstance(stage, SpeculateStage):
            return stage
        lines = texts.prompt_lines(is_json=stage.prompts.suffix == ".jsonl")
        prompts = self._lines(f"stages.{stage.name}.prompts", stage.prompts, lines)
        return stage.model_copy(update={"prompts": prompts})

    def _lines(self, where: str, file: Path, invented: list[bytes]) -> Path:
        """The first lines of a file, or invented ones, under a name of their own."""
        own = first_lines(file, texts.ITEMS)
        used = f"its first {texts.ITEMS} lines" if own else "invented lines"
        self.notes.append(f"{where}: {file} -> {used}")
        out = self.folder / "lines" / f"{where}{file.suffix}"
        _write(out, own or b"".join(invented))
        return out


def _lengths(small: Recipe) -> list[int]:
    """Tokens of every kind of sample."""
    stages = [one.sequence_length for one in small.stages if isinstance(one, PreciseStage)]
    return [*stages, small.evaluation.sequence_length]


def _has_tokenizer(directory: Path) -> bool:
    return (directory / TOKENIZER_FILE).is_file()


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _invented_name(pattern: str) -> str:
    """A file name with the pattern's suffixes."""
    suffix = Path(pattern).suffix.lower()
    inner = ".jsonl" if suffix in {".gz", ".zst"} else ""
    known = suffix if suffix in {".gz", ".zst", ".parquet"} else ".jsonl"
    return f"{FILE_NAME}{inner}{known}"


def _write(path: Path, content: bytes) -> None:
    """Write a file unless it is there as it should be: its time is part of what a run remembers."""
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_file(path, "wb") as stream:
        stream.write(content)
