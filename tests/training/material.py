"""What small training jobs are made of: two tiny models, two datasets of short documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.indexed import token_dtype, write_index
from megatron_soaes.accelerator.groups import first_rank_first
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.data.blend import TrainingBlend
from megatron_soaes.data.indexed import DocumentRange, TokenizerFacts, Windows, WindowSettings
from megatron_soaes.recipe.schema import Layout, ModelSource, TrainingStage
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.training.trainer import TrainingJob
from tests.checkpoint.tiny import Case, make_model

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
}
"""Between them: a norm on each head, biases, tied and untied embeddings, one KV head."""


def make_material(folder: Path) -> None:
    """Write `folder`/NAME/{hf,imported} for each model, and the datasets `domain` and `general`."""
    for name, case in MODELS.items():
        import_hf(make_model(folder / name / "hf", case), folder / name / "imported", verify=False)
    for seed, name in enumerate(SHARES):
        write_dataset(folder / name, random_documents(seed))


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


def window_settings(folder: Path) -> WindowSettings:
    """How every job cuts documents."""
    return WindowSettings(SEQUENCE, 11, TokenizerFacts(VOCABULARY, EOD, "0" * 64), folder / "cache")


def make_stage(**changes: Any) -> TrainingStage:
    """Twenty steps in fp32 at a constant rate that visibly learns; `changes` replace fields."""
    wanted: dict[str, Any] = {
        "name": "cpt",
        "blend": "mixture",
        "steps": STEPS,
        "sequence_length": SEQUENCE,
        "global_batch_size": BATCH,
        "precision": {"dtype": "fp32"},
        "optimizer": {"lr": 1e-2, "min_lr": 0.0},
        "schedule": {"shape": "constant"},
        "checkpoints": {"every": 1000},
    }
    return TrainingStage.model_validate(wanted | changes)


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
        blend = TrainingBlend(documents, shares, stage.steps * stage.global_batch_size, settings)
        validation = {"held_out": Windows(held_out, None, settings, 0)}
    return TrainingJob(
        stage=stage,
        layout=layout,
        shape=read_shape(folder / model / "hf" / "config.json"),
        source=ModelSource(source=folder / model / "hf"),
        seed=5,
        tokenizer=settings.tokenizer.sha256,
        start=folder / model / "imported",
        out=out,
        blend=blend,
        validation=validation,
        peak_flops=1e12,
    )
