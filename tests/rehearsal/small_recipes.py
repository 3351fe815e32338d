"""A recipe at cluster size, with nothing of it on this machine but the shapes of its models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 48,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 4096,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
RECIPE = """\
version: 1
name: large
workdir: runs/large
cluster: {gpu: h100-80g, nodes: 8, gpus_per_node: 8, transformer_engine: 2.11.0}
models:
  target:
    source: models/base
    config: base.json
    layout: {tensor_parallel: 4, sequence_parallel: true, data_parallel: 4}
data:
  datasets:
    domain: {text: ['corpus/domain/*.jsonl.zst'], holdout: 0.001}
    talk: {conversations: [corpus/talk.jsonl], holdout: 0.01, chat: {source_key: topic}}
  blends:
    documents: {weights: {domain: 1}}
    mixed: {weights: {talk: 1}, replay: {weights: {domain: 1}, share: 0.2}}
stages:
  - name: cpt
    kind: cpt
    blend: documents
    steps: 8000
    sequence_length: 4096
    global_batch_size: 256
    precision: {fp8: {}}
    optimizer: {lr: 1.0e-5, min_lr: 1.0e-6, precision_aware: {first_moment: bf16}}
    schedule: {shape: wsd, warmup_steps: 100}
    validation: {sets: [domain], every: 250}
    checkpoints: {every: 500, asynchronous: true, keep_last: 2}
    gates: ['validation.domain.loss <= 2.5']
  - name: sft
    kind: sft
    blend: mixed
    epochs: 2
    sequence_length: 4096
    global_batch_size: 64
    layout: {data_parallel: 16}
    validation: {sets: [talk], best: talk}
  - name: evaluation
    kind: evaluate
    checkpoints: [import, sft@best]
    layout: {data_parallel: 8}
    gates: ['retained >= 0.95']
  - {name: hf, kind: export, layout: {}}
evaluation: {perplexity: [domain], choices: {suite: corpus/suite.jsonl}}
"""


def write_large(folder: Path, text: str = RECIPE, **shape: Any) -> Path:
    """`recipe.yaml` in `folder`, with the config.json that it names."""
    (folder / "base.json").write_text(json.dumps(SHAPE | shape), encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def large(folder: Path, *overrides: str) -> Recipe:
    """The recipe as the command loads it."""
    return load_recipe(write_large(folder), overrides)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
