"""The recipe of a curation: a YAML file that says what is read, how it is judged, what is written.

Every threshold of every block can be set; what is left out keeps the block's own default.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_prep.curation.boilerplate import Boilerplate
from data_prep.curation.dedup.clusters import MIN_JACCARD
from data_prep.curation.dedup.minhash import MinHash
from data_prep.curation.language import LanguageRule
from data_prep.curation.normalise import Normalise
from data_prep.curation.pii.mask import MaskPersonalData
from data_prep.curation.quality_en import QualityEn
from data_prep.curation.quality_zh import QualityZh
from data_prep.curation.repetition import Repetition, RepetitionZh
from data_prep.curation.script_policy import ScriptPolicy
from data_prep.curation.selection.scores import Selection
from data_prep.curation.strict_yaml import read_strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Shell = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:,@%+=-]+$")]
"""What goes into a batch script: nothing that a shell would read as more than a word."""


class Section(BaseModel):
    """Unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Corpus(Section):
    """Files of one kind that become one dataset."""

    input: Annotated[list[str], Field(min_length=1)]
    """Paths or globs: .jsonl, .jsonl.gz, .jsonl.zst and .parquet hold records; .txt, .md and .html
    are a document each; .warc.gz holds pages."""
    text_key: str = "text"
    id_key: str = "id"
    source_key: str = "source"
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of its tokens in the blend, against those of the other corpora."""


class Exact(Section):
    """Copies of a whole text go; the first in the corpus stays."""


class Near(Section):
    """Documents that nearly equal another go; the first in the corpus stays."""

    minhash: MinHash = MinHash()
    min_jaccard: Share = MIN_JACCARD
    """Candidates below this similarity, computed exactly on their shingles, both stay."""


class Evaluation(Section):
    """Documents that hold a passage of an evaluation set go."""

    files: Annotated[list[Path], Field(min_length=1)]
    """JSON lines of evaluation items."""
    fields: Annotated[list[str], Field(min_length=1)] = ["prompt", "answer"]
    max_overlap: Share = 0.0
    """Largest share of a document's n-grams that may be those of an item."""


class Scoring(Section):
    """Every document gets its credibility, relevance and importance, from 0 to 1."""

    sources: Path
    """Tiers of sources: YAML that experts edit."""
    authorities: Path
    """Levels of issuing bodies: YAML that experts edit."""
    model: Path
    """Of `soaes prep relevance train`."""
    as_of: date
    """The day that a document's age is counted to."""
    keep: str | None = None
    """Least scores of a document that stays, such as `credibility>=0.5 and relevance>=0.6`."""

    @field_validator("keep")
    @classmethod
    def _parses(cls, keep: str | None) -> str | None:
        if keep is not None:
            Selection.parse(keep)
        return keep


class Tokenize(Section):
    """Each corpus becomes an indexed dataset of this tokenizer."""

    tokenizer: Path
    """A Hugging Face model directory or a tokenizer.json."""
    append_eod: bool = True


class Slurm(Section):
    """How datatrove's Slurm executor asks for its jobs."""

    partition: Shell
    time: Shell = "24:00:00"
    """Limit of one task."""
    memory_gb: Annotated[int, Field(ge=1)] = 4
    qos: Shell | None = None
    account: Shell | None = None
    activate: Path | None = None
    """The `activate` script of the Python environment on the nodes."""
    max_tasks: Annotated[int, Field(ge=1)] = 1000
    """Largest job array the cluster takes; more parts than that share the tasks of one array."""


class CurationRecipe(Section):
    """Everything the outcome depends on, and `slurm`, on which it does not."""

    output: Path
    """Folder of the curated documents, datasets and accounts."""
    corpora: Annotated[dict[Name, Corpus], Field(min_length=1)]
    bad_lines: Literal["stop", "skip"] = "stop"
    """What a line without a document does: end the run, or be counted."""
    write: Literal["jsonl.zst", "parquet"] = "jsonl.zst"
    """Format of the documents that are left."""
    part_megabytes: Annotated[int, Field(ge=1)] = 256
    """Of a file of JSON lines that one task reads."""
    normalise: Normalise = Normalise()
    language: LanguageRule = LanguageRule()
    boilerplate: Boilerplate | None = Boilerplate()
    script: ScriptPolicy = ScriptPolicy()
    quality_zh: QualityZh | None = QualityZh()
    quality_en: QualityEn | None = QualityEn()
    repetition_zh: RepetitionZh | None = RepetitionZh()
    repetition_en: Repetition | None = Repetition()
    personal_data: MaskPersonalData | None = MaskPersonalData()
    exact_copies: Exact | None = Exact()
    near_copies: Near | None = Near()
    evaluation: Evaluation | None = None
    scores: Scoring | None = None
    tokenize: Tokenize | None = None
    slurm: Slurm | None = None

    @property
    def keep(self) -> str | None:
        """Least scores of a document that stays; None where documents are not chosen by scores."""
        return self.scores.keep if self.scores else None

    def outcome(self) -> dict[str, object]:
        """What decides the documents and their scores, as JSON; what is chosen by them is not."""
        return self.model_dump(
            mode="json", exclude={"slurm": True, "output": True, "scores": {"keep": True}}
        )

    def files(self) -> list[Path]:
        """Files beside the corpus whose content decides the outcome."""
        files = list(self.evaluation.files) if self.evaluation else []
        if self.scores:
            files += [self.scores.sources, self.scores.authorities, self.scores.model]
        return files


def load_curation(path: Path) -> CurationRecipe:
    """Read a recipe; relative paths and globs start at its folder.

    Raises UserError for a file that is no recipe, with the line and field.
    """
    recipe = read_strict(path, CurationRecipe)
    folder = path.resolve().parent
    corpora = {
        name: corpus.model_copy(
            update={"input": [str(_from(folder, Path(pattern))) for pattern in corpus.input]}
        )
        for name, corpus in recipe.corpora.items()
    }
    update: dict[str, object] = {"output": _from(folder, recipe.output), "corpora": corpora}
    if recipe.evaluation:
        files = [_from(folder, file) for file in recipe.evaluation.files]
        update["evaluation"] = recipe.evaluation.model_copy(update={"files": files})
    for name, fields in (
        ("scores", ("sources", "authorities", "model")), ("tokenize", ("tokenizer",)),
    ):  # fmt: skip
        if section := getattr(recipe, name):
            paths = {field: _from(folder, getattr(section, field)) for field in fields}
            update[name] = section.model_copy(update=paths)
    return recipe.model_copy(update=update)


def _from(folder: Path, path: Path) -> Path:
    return Path(os.path.normpath(folder / path.expanduser()))
