"""A small valid recipe with two models, as text and files: what tests start from and break."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_soaes.recipe.check import shapes_of
from megatron_soaes.recipe.check_arithmetic import check_arithmetic
from megatron_soaes.recipe.check_cluster import check_cluster
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import Problem

TARGET_LAYOUT = "models.target.layout"

RECIPE = """\
version: 1
name: rehearsal
workdir: results
models:
  target:
    source: models/target
    family: qwen2
    layout: {tensor_parallel: 2, pipeline_parallel: 2}
  draft:
    source: models/draft
data:
  datasets:
    domain: {text: [corpus/domain-*.jsonl], holdout: 0.1}
    general: {indexed: corpus/general}
    unseen: {text: [corpus/unseen.jsonl]}
  blends:
    mix:
      weights: {domain: 1.0}
      replay: {weights: {general: 1.0}, share: 0.5}
stages:
  - name: cpt
    kind: cpt
    blend: mix
    steps: 20
    sequence_length: 128
    global_batch_size: 8
    optimizer: {lr: 1e-3, min_lr: 1e-4}
    schedule: {warmup_steps: 2}
    validation: {sets: [domain, unseen], every: 10}
    gates: ["validation.domain.loss <= 6.0"]
  - name: draft-cpt
    kind: cpt
    model: draft
    blend: mix
    steps: 10
    sequence_length: 128
    global_batch_size: 8
  - name: compare
    kind: evaluate
    checkpoints: [import, cpt]
  - name: to-hf
    kind: export
evaluation: {perplexity: [domain, unseen], sequence_length: 128}
"""

TARGET: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 250,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
DRAFT = TARGET | {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}

QWEN2_5_72B = TARGET | {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


RECIPE_72B = """\
version: 1
name: soaes-72b
workdir: results
models:
  target:
    source: /models/Qwen2.5-72B
    config: models/target/config.json
    layout: {tensor_parallel: 8, sequence_parallel: true, pipeline_parallel: 8}
data:
  datasets: {domain: {indexed: corpus/domain, holdout: 0.001}}
  blends: {mix: {weights: {domain: 1}}}
stages:
  - name: cpt
    kind: cpt
    blend: mix
    steps: 1000
    sequence_length: 4096
    global_batch_size: 512
    precision: {fp8: {recipe: tensorwise}}
    recompute: {granularity: selective}
cluster: {gpu: h100-80g, nodes: 8, gpus_per_node: 8, transformer_engine: 2.11.0}
"""


def write_recipe(folder: Path, text: str = RECIPE, target: dict[str, Any] | None = None) -> Path:
    """`recipe.yaml` in `folder`, with both models' config.json."""
    for name, config in (("target", target or TARGET), ("draft", DRAFT)):
        model = folder / "models" / name
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(json.dumps(config))
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def problems_of(path: Path, *overrides: str) -> list[Problem]:
    """The rules that a recipe file breaks where there is no machine to look at."""
    recipe = load_recipe(path, overrides)
    shapes, problems = shapes_of(recipe)
    return [*problems, *check_arithmetic(recipe, shapes), *check_cluster(recipe)]
