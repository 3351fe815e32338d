"""What is measured of a model, and how: a section of recipes that `soaes evaluate` fills, too."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from megatron_soaes.recipe.section import Name, Section


class FewShot(Section):
    """Worked examples before every item of a multiple-choice task."""

    examples: Path = Field(description="JSONL of multiple choice; its first items are shown.")
    count: PositiveInt = Field(description="How many of them.")


class Evaluation(Section):
    """What every `evaluate` stage measures, and how."""

    perplexity: list[Name] = Field([], description="Held-out datasets.")
    questions: dict[Name, Path] = Field(
        {},
        description="JSONL of questions with reference answers; answers are generated greedily and "
        "scored with ROUGE, BLEU-4 and, where the file has facts, fact accuracy.",
    )
    choices: dict[Name, Path] = Field(
        {}, description="JSONL of multiple choice, scored by likelihood."
    )
    few_shot: dict[Name, FewShot] = Field(
        {}, description="Worked examples for some of `choices`, by their names."
    )
    texts: dict[Name, Path] = Field({}, description="JSONL of texts, measured in bits per byte.")
    profiles: list[Literal["llamafactory", "swift"]] = Field(
        ["llamafactory", "swift"],
        min_length=1,
        description="Whose ROUGE and BLEU-4; the tools disagree by a factor of two.",
    )
    prompt: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="How a question is asked. chat: by the chat template; plain: as a text to "
        "complete, for models that never saw a conversation; auto: chat where the tokenizer has a "
        "template. All checkpoints of a stage are asked alike.",
    )
    date: datetime.date | None = Field(
        None, description="The date that a chat template writes which asks for today's."
    )
    max_new_tokens: PositiveInt = Field(256, description="Longest answer.")
    batch_size: PositiveInt = Field(
        32, description="Sequences that a replica generates or judges at a time."
    )
    targets: list[str] = Field(
        [],
        description="What checkpoints should reach against the first, such as 'exam.rouge1 >= 1.08'"
        " (a ratio) or 'mini.acc >= 5 points'. Verdicts only; a gate stops a run.",
    )
    margin: str = Field(
        "2%", description="What may be lost and still count as kept: '2%' or '1.5 points'."
    )
    sequence_length: PositiveInt = Field(
        2048, description="Tokens of one evaluated window of `perplexity` and `texts`."
    )
    micro_batch_size: PositiveInt = Field(
        1, description="Windows of one forward pass of `perplexity`."
    )

    @property
    def tasks(self) -> dict[str, Path]:
        """The file of every task by `KIND/NAME`, worked examples included."""
        kinds = {"questions": self.questions, "choices": self.choices, "texts": self.texts}
        files = {f"{kind}/{name}": path for kind, of in kinds.items() for name, path in of.items()}
        return files | {f"few_shot/{name}": shown.examples for name, shown in self.few_shot.items()}

    @property
    def has_windows(self) -> bool:
        """Whether anything is measured in windows of `sequence_length`."""
        return bool(self.perplexity or self.texts)
