"""Text or conversations of one dataset -> indexed tokens, with the target's tokenizer."""

from __future__ import annotations

import glob
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.convert import ConvertOptions, convert
from data_prep.sft.convert import SFTOptions, convert_sft
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.base import Plan, Stage, Stopped
from megatron_soaes.stages.locations import indexed_files, preprocess_prefix

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE_FILE = "chat_template.jinja"


class PreprocessStage(Stage):
    """Runs `data_prep.preprocess_data` or `data_prep.preprocess_sft` on one dataset."""

    kind = "preprocess"

    def __init__(self, recipe: Recipe, name: str, dataset: str) -> None:
        super().__init__(recipe, name)
        self.dataset = dataset
        self.settings = recipe.data.datasets[dataset]

    def plan(self) -> Plan:
        source = self.recipe.models.target.source
        inputs = {f"text/{number:05d}": file for number, file in enumerate(self.files())}
        used = (*TOKENIZER_FILES, TEMPLATE_FILE) if self.settings.is_chat else TOKENIZER_FILES
        inputs |= {name: source / name for name in used if (source / name).is_file()}
        chat = self.settings.chat.model_dump(mode="json")
        return Plan(
            name=self.name,
            kind=self.kind,
            inputs=inputs,
            outputs=indexed_files(self.recipe, self.dataset),
            config={"chat": chat} if self.settings.is_chat else {"key": self.settings.key},
            directory=self.directory,
            resumable=True,
        )

    def run(self) -> dict[str, Any]:
        try:
            return self._convert_chats() if self.settings.is_chat else self._convert_documents()
        except KeyboardInterrupt:
            raise Stopped from None

    def _convert_documents(self) -> dict[str, Any]:
        key = self.settings.key
        summary = convert(
            ConvertOptions(
                inputs=tuple(str(file) for file in self.files()),
                output_prefix=preprocess_prefix(self.recipe, self.dataset),
                tokenizer_model=self.recipe.models.target.source,
                json_keys=(key,),
                append_eod=True,
                include_special_tokens=False,
                workers=len(os.sched_getaffinity(0)),
                overwrite=True,
            )
        )
        return {
            "documents": summary.documents,
            "tokens": summary.tokens[key],
            "empty_documents": summary.empty_documents[key],
        }

    def _convert_chats(self) -> dict[str, Any]:
        return asdict(convert_sft(self.chat_options()).report)

    def chat_options(self) -> SFTOptions:
        """How conversations are converted. Raises UserError as `files` does."""
        chat = self.settings.chat
        return SFTOptions(
            inputs=tuple(str(file) for file in self.files()),
            output_prefix=preprocess_prefix(self.recipe, self.dataset),
            tokenizer_model=self.recipe.models.target.source,
            format=chat.format,
            train_on=chat.train_on,
            system=chat.system,
            weight_key=chat.weight_key,
            source_key=chat.source_key,
            date=chat.date,
            workers=len(os.sched_getaffinity(0)),
            overwrite=True,
        )

    def files(self) -> list[Path]:
        """The files of the dataset; UserError, which names the field, for a glob without any."""
        found: list[Path] = []
        field = "conversations" if self.settings.is_chat else "text"
        for pattern in self.settings.files:
            files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
            if not files:
                raise UserError(
                    f"data.datasets.{self.dataset}.{field}", f"no file at {pattern}",
                    "at least one", "Correct the path.",
                )  # fmt: skip
            found += files
        return found
