"""The recipes of the study, as what their YAML files say; `soaes run` does the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.curriculum.settings import BASE_BATCH, BATCH, SEQUENCE_LENGTH, Settings
from megatron_soaes import files
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.stages.locations import indexed_prefix

RECIPE_FILE = "recipe.yaml"
LAYOUT = {"data_parallel": 2}
DOCUMENTS = {
    f"{part}{suffix}": f"{part}/{file}.jsonl"
    for part in ("general", "domain")
    for suffix, file in (("", "train"), ("_valid", "valid"))
} | {"genre": "genre/train.jsonl"}
CONVERSATIONS = {
    f"{part}{suffix}": f"{part}/{file}.jsonl"
    for part in ("dialogue", "expert")
    for suffix, file in (("", "train"), ("_valid", "valid"))
}
CPT_VALIDATION = ["domain_valid", "general_valid"]
SFT_VALIDATION = ["expert_valid"]

Recipe = dict[str, Any]
Section = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where everything of a study lies."""

    root: Path

    @property
    def corpus(self) -> Path:
        return self.root / "corpus"

    @property
    def continuation(self) -> Path:
        return self.corpus / "domain/continuation.jsonl"

    @property
    def data(self) -> Path:
        """Run that tokenizes once for all others."""
        return self.root / "data"

    @property
    def base(self) -> Path:
        return self.root / "base"

    def tuning(self, phase: str, lr: float) -> Path:
        """Run of one learning rate of `cpt` or `sft` on the tuning seed."""
        return self.root / "tuning" / f"{phase}-{lr:g}"

    def arm(self, seed: int, arm: str) -> Path:
        """Run of one arm with one seed."""
        return self.root / f"seed-{seed}" / arm


def exported(run: Path) -> Path:
    """HF directory that the `hf` stage of a run wrote."""
    return run / "hf" / "hf"


def result_file(run: Path, checkpoint: str) -> Path:
    """What the `evaluation` stage of a run found about a checkpoint."""
    return run / "evaluation" / f"{checkpoint}.json"


def write_recipe(run: Path, recipe: Recipe) -> Path:
    """Write a run's recipe into its folder; returns the file."""
    file = run / RECIPE_FILE
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        files.write_text(file, text)
    return file


def data_recipe(places: Places) -> Recipe:
    """Tokenize every dataset."""
    corpus = places.corpus
    documents = {name: {"text": [str(corpus / file)]} for name, file in DOCUMENTS.items()}
    talk = {name: {"conversations": [str(corpus / file)]} for name, file in CONVERSATIONS.items()}
    return {
        "version": 1,
        "name": "curriculum-data",
        "workdir": ".",
        "models": {"target": {"source": str(corpus / "base-init")}},
        "data": {"datasets": {**documents, **talk}},
    }


@dataclass(frozen=True)
class Recipes:
    """The recipes of one study's models."""

    places: Places
    settings: Settings

    def base(self) -> Recipe:
        """Train the base from nothing on general text and documents of other companies."""
        settings = self.settings
        sizes = {"micro_batch_size": BASE_BATCH // 2, "global_batch_size": BASE_BATCH}
        stage = _cpt("pretrain", "base", settings.base_lr, settings.base_steps) | sizes
        share = settings.genre_share
        blends = {"base": {"weights": {"general": 1 - share, "genre": share}}}
        return self._language_model(1, self.places.corpus / "base-init", blends, stage)

    def cpt(self, seed: int, lr: float) -> Recipe:
        """Continual pre-training on the domain beside replayed general text."""
        replay = {"weights": {"general": 1}, "share": self.settings.cpt_replay}
        blends = {"mixed": {"weights": {"domain": 1}, "replay": replay}}
        stage = _cpt("cpt", "mixed", lr, self.settings.cpt_steps)
        return self._language_model(seed, exported(self.places.base), blends, stage)

    def replay(self, seed: int, lr: float) -> Recipe:
        """The control of CPT: as many steps on general text alone."""
        stage = _cpt("replay", "general", lr, self.settings.cpt_steps)
        blends = {"general": {"weights": {"general": 1}}}
        return self._language_model(seed, exported(self.places.base), blends, stage)

    def curriculum(self, seed: int, source: Path, lrs: Mapping[str, float]) -> Recipe:
        """Stage 1 then stage 2; the same samples in one stage; stage-2 data alone for all steps.

        `lrs` has the learning rate of `progressive`, `single` and `stage2`.
        """
        steps = self.settings.sft_steps
        single = _training("single", "sft_single_stage", lrs["single"], steps, SFT_VALIDATION)
        single["of"] = ["sft1", "progressive"]
        alone = _sft("stage2", "expert_alone", lrs["stage2"], steps) | {"after": "import"}
        stages = [*self._progressive(lrs["progressive"]), single, alone]
        return self._chat_model(seed, source, stages, ["progressive", "single", "stage2"])

    def progressive(self, seed: int, source: Path, lr: float) -> Recipe:
        """Stage 1 then stage 2 only, from a model that saw no domain text."""
        return self._chat_model(seed, source, self._progressive(lr), ["progressive"])

    def _progressive(self, lr: float) -> list[Section]:
        return [
            _sft("sft1", "dialogues", lr, self.settings.sft1_steps),
            _sft("progressive", "expert_with_replay", lr, self.settings.sft2_steps),
        ]

    def _language_model(self, seed: int, source: Path, blends: Section, stage: Section) -> Recipe:
        """One stage on documents; measured by retention and by going on with documents."""
        name = stage["name"]
        return _recipe(
            self.places,
            source=source,
            seed=seed,
            blends=blends,
            stages=[stage, _evaluation(name), {"name": "hf", "kind": "export", "after": name}],
            evaluation={
                **_retention(self.places),
                "questions": {"continuation": str(self.places.continuation)},
                "max_new_tokens": self.settings.continuation_tokens,
            },
        )

    def _chat_model(
        self, seed: int, source: Path, stages: list[Section], evaluated: list[str]
    ) -> Recipe:
        """SFT stages; measured by retention and by the exam."""
        general, dialogues = self.settings.sft_general, self.settings.sft2_dialogues
        with_general = {"weights": {"general": 1}, "share": general}
        with_both = {
            "weights": {"dialogue": dialogues, "general": general},
            "share": dialogues + general,
        }
        return _recipe(
            self.places,
            source=source,
            seed=seed,
            blends={
                "dialogues": {"weights": {"dialogue": 1}, "replay": with_general},
                "expert_with_replay": {"weights": {"expert": 1}, "replay": with_both},
                "expert_alone": {"weights": {"expert": 1}, "replay": with_general},
            },
            stages=[*stages, _evaluation(*evaluated)],
            evaluation={
                **_retention(self.places),
                "questions": {"exam": str(self.places.corpus / "exam.jsonl")},
                "prompt": "chat",
                "max_new_tokens": self.settings.answer_tokens,
            },
        )


def _recipe(
    places: Places,
    *,
    source: Path,
    seed: int,
    blends: Section,
    stages: list[Section],
    evaluation: Section,
) -> Recipe:
    return {
        "version": 1,
        "name": "curriculum",
        "workdir": ".",
        "seed": seed,
        "models": {"target": {"source": str(source), "layout": LAYOUT}},
        "data": {"datasets": _indexed(places), "blends": blends},
        "stages": stages,
        "evaluation": evaluation,
    }


def _indexed(places: Places) -> Section:
    """All datasets as the run in `places.data` tokenized them."""
    made = load_recipe(places.data / RECIPE_FILE)
    return {
        **{name: {"indexed": str(indexed_prefix(made, name))} for name in DOCUMENTS},
        **{
            name: {"indexed_conversations": str(indexed_prefix(made, name))}
            for name in CONVERSATIONS
        },
    }


def _training(name: str, kind: str, lr: float, steps: int, validation: list[str]) -> Section:
    """What all training stages share: cosine to a twentieth after a warm-up of a twentieth."""
    return {
        "name": name,
        "kind": kind,
        "sequence_length": SEQUENCE_LENGTH,
        "micro_batch_size": BATCH // 2,
        "global_batch_size": BATCH,
        "optimizer": {"lr": lr, "min_lr": lr / 20},
        "schedule": {"shape": "cosine", "warmup_steps": max(1, steps // 20)},
        "validation": {"sets": validation, "every": steps, "batches": 32},
        "checkpoints": {"every": min(steps, 500), "keep_last": 1},
        "log_every": min(steps, 50),
    }


def _cpt(name: str, blend: str, lr: float, steps: int) -> Section:
    return {**_training(name, "cpt", lr, steps, CPT_VALIDATION), "blend": blend, "steps": steps}


def _sft(name: str, blend: str, lr: float, steps: int) -> Section:
    return {**_training(name, "sft", lr, steps, SFT_VALIDATION), "blend": blend, "steps": steps}


def _evaluation(*checkpoints: str) -> Section:
    return {"name": "evaluation", "kind": "evaluate", "checkpoints": list(checkpoints)}


def _retention(places: Places) -> Section:
    general = places.corpus / "general"
    return {
        "choices": {"cloze": str(general / "cloze.jsonl")},
        "texts": {"bytes": str(general / "bytes.jsonl")},
        "profiles": ["llamafactory"],
        "sequence_length": SEQUENCE_LENGTH,
    }
