"""What small training jobs are made of: two tiny models, two datasets of short documents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.indexed import token_dtype, write_index
from megatron_soaes.accelerator.groups import first_rank_first
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.data.blend import TrainingBlend
from megatron_soaes.data.conversations import ConversationRange, Packs, PackSettings
from megatron_soaes.data.indexed import DocumentRange, TokenizerFacts, Windows, WindowSettings
from megatron_soaes.recipe.schema import CPTStage, ModelSource
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.recipe.training_settings import Layout
from megatron_soaes.training.job import TrainingJob
from tests.checkpoint.tiny import Case, make_model
from tests.data.material import random_conversations, window_sources, write_conversations

VOCABULARY = 250
PADDED = 256
EOD = 1
SEQUENCE = 32
BATCH = 4
STEPS = 20
ONE_PROCESS = Layout()
SHARES = {"domain": 0.7, "general": 0.3}
MODELS = {
    "qwen3": Case("qwen3", tied=True, kv_heads=1, vocab_size=VOCABULARY, layers=2),
    "deep": Case("qwen3", tied=True, kv_heads=1, vocab_size=VOCABULARY, layers=4),
    "qwen2": Case("qwen2", tied=False, kv_heads=2, vocab_size=VOCABULARY, layers=2),
    "teacher": Case("qwen2", tied=False, kv_heads=2, vocab_size=300, layers=3),
}
"""Between them: a norm on each head, biases, tied and untied embeddings, one KV head; and a teacher
with rows for more tokens than its students have."""


def make_material(folder: Path) -> None:
    """Write `folder`/NAME/{hf,imported} for each model, and the datasets `domain` and `general`."""
    for name, case in MODELS.items():
        import_hf(make_model(folder / name / "hf", case), folder / name / "imported", verify=False)
    for seed, name in enumerate(SHARES):
        write_dataset(folder / name, random_documents(seed))
    write_conversations(folder / "chats", random_conversations(7, 60, SEQUENCE + 1, VOCABULARY))


def random_documents(seed: int, count: int = 200) -> list[list[int]]:
    """Documents of 2 to 25 tokens that end with EOD; a few words are far more frequent."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 25, count)
    return [
        [*np.minimum(generator.zipf(1.5, n) + 1, VOCABULARY - 1).tolist(), EOD] for n in lengths
    ]


def write_dataset(prefix: Path, documents: Iterable[list[int]]) -> None:
    """Write PREFIX.bin and PREFIX.idx."""
    kept = list(documents)
    dtype = token_dtype(VOCABULARY)
    lengths = np.array([len(document) for document in kept], dtype=np.int32)
    prefix.with_name(prefix.name + ".bin").write_bytes(
        np.concatenate([np.array(document, dtype) for document in kept]).tobytes()
    )
    with prefix.with_name(prefix.name + ".idx").open("wb") as stream:
        write_index(stream, dtype, len(kept), len(kept), lambda: [lengths])


def chat_settings(folder: Path) -> PackSettings:
    """How conversations are packed."""
    facts = window_settings(folder).tokenizer
    return PackSettings(SEQUENCE, 11, facts, folder / "cache")


def make_sft_job(
    folder: Path, out: Path, model: str = "qwen3", layout: Layout = ONE_PROCESS, **changes: Any
) -> TrainingJob:
    """Eight steps on packed conversations with a quarter of replayed documents (collective)."""
    # Few tokens have a weight: at the rate of documents, rounding would grow from step to step.
    optimizer = {"lr": 3e-3, "min_lr": 0.0}
    wanted: dict[str, Any] = {"steps": 8, "optimizer": optimizer} | changes
    job = make_job(folder, out, model, layout, **wanted)
    settings = window_settings(folder)
    documents = {"general": DocumentRange("general", folder / "general")}
    chats = ConversationRange("chats", folder / "chats", 0.0, 0.8)
    with first_rank_first():
        sources = window_sources(documents, settings) | {
            "chats": lambda samples: Packs(chats, chat_settings(folder), 1)
        }
        shares = {"chats": 0.75, "general": 0.25}
        mixture = TrainingBlend(sources, shares, job.steps * job.stage.global_batch_size)
        held_out = Packs(replace(chats, first_share=0.8, last_share=1.0), chat_settings(folder), 1)
    return replace(job, mixture=mixture, validation={"chats": held_out})


def window_settings(folder: Path) -> WindowSettings:
    """How every job cuts documents."""
    return WindowSettings(SEQUENCE, 11, TokenizerFacts(VOCABULARY, EOD, "0" * 64), folder / "cache")


def make_stage(**changes: Any) -> CPTStage:
    """Twenty steps in fp32 at a constant rate that visibly learns; `changes` replace fields."""
    wanted: dict[str, Any] = {
        "name": "cpt",
        "kind": "cpt",
        "blend": "mixture",
        "steps": STEPS,
        "sequence_length": SEQUENCE,
        "global_batch_size": BATCH,
        "precision": {"dtype": "fp32"},
        "optimizer": {"lr": 1e-2, "min_lr": 0.0},
        "schedule": {"shape": "constant"},
        "checkpoints": {"every": 1000},
    }
    return CPTStage.model_validate(wanted | changes)


def make_job(
    folder: Path,
    out: Path,
    model: str = "qwen3",
    layout: Layout = ONE_PROCESS,
    shares: dict[str, float] = SHARES,
    **changes: Any,
) -> TrainingJob:
    """A job on the material under `folder`; `changes` are fields of the stage (collective)."""
    stage = make_stage(**changes)
    documents = {name: DocumentRange(name, folder / name, 0.0, 0.9) for name in SHARES}
    held_out = DocumentRange("domain", folder / "domain", 0.9, 1.0)
    settings = window_settings(folder)
    with first_rank_first():
        sources = window_sources(documents, settings)
        blend = TrainingBlend(sources, shares, stage.steps * stage.global_batch_size)
        validation = {"held_out": Windows(held_out, None, settings, 0)}
    return TrainingJob(
        stage=stage,
        steps=stage.steps,
        layout=layout,
        shape=read_shape(folder / model / "hf" / "config.json"),
        source=ModelSource(source=folder / model / "hf"),
        seed=5,
        tokenizer=settings.tokenizer.sha256,
        start=folder / model / "imported",
        out=out,
        mixture=blend,
        validation=validation,
        peak_flops=1e12,
    )
