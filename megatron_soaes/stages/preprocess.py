"""Text of one dataset -> indexed tokens, with the target's tokenizer."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from data_prep.convert import ConvertOptions, convert
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan, Stage, Stopped
from megatron_soaes.stages.locations import indexed_files, preprocess_prefix

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class PreprocessStage(Stage):
    """Runs `data_prep.preprocess_data` on one dataset."""

    kind = "preprocess"

    def __init__(self, recipe: Recipe, name: str, dataset: str) -> None:
        super().__init__(recipe, name)
        self.dataset = dataset

    def plan(self) -> Plan:
        files = self._text_files()
        source = self.recipe.models.target.source
        inputs = {f"text/{number:05d}": file for number, file in enumerate(files)}
        inputs |= {name: source / name for name in TOKENIZER_FILES if (source / name).is_file()}
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs=inputs,
            outputs=indexed_files(self.recipe, self.dataset),
            config={"key": self.recipe.data.datasets[self.dataset].key},
            directory=self.directory,
            resumable=True,
        )

    def run(self) -> dict[str, Any]:
        dataset = self.recipe.data.datasets[self.dataset]
        options = ConvertOptions(
            inputs=tuple(str(file) for file in self._text_files()),
            output_prefix=preprocess_prefix(self.recipe, self.dataset),
            tokenizer_model=self.recipe.models.target.source,
            json_keys=(dataset.key,),
            append_eod=True,
            include_special_tokens=False,
            workers=len(os.sched_getaffinity(0)),
            overwrite=True,
        )
        try:
            summary = convert(options)
        except KeyboardInterrupt:
            raise Stopped from None
        return {
            "documents": summary.documents,
            "tokens": summary.tokens[dataset.key],
            "empty_documents": summary.empty_documents[dataset.key],
        }

    def _text_files(self) -> list[Path]:
        found: list[Path] = []
        for pattern in self.recipe.data.datasets[self.dataset].text:
            files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
            if not files:
                raise UserError(
                    f"data.datasets.{self.dataset}.text", f"no file at {pattern}",
                    "at least one", "Correct the path.",
                )  # fmt: skip
            found += files
        return found
