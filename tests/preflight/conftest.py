"""A project with everything that its recipe needs, and copies of it to spoil."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_prep.sft.convert import SFTOptions, convert_sft
from megatron_soaes.preflight.run import Preflight, preflight
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe
from tests.checkpoint.tiny import Case, make_model
from tests.data_prep.conftest import TRAINING_TEXT, save_tokenizer, train_tokenizer
from tests.data_prep.sft_material import CHATML

RECIPE = """
version: 1
name: sound
workdir: work
cluster: {gpu: h100-80g, nodes: 2, gpus_per_node: 8, transformer_engine: 2.11.0}
models:
  target:
    source: target
    layout: {tensor_parallel: 2, sequence_parallel: true, pipeline_parallel: 2, data_parallel: 4}
  draft: {source: draft, layout: {pipeline_parallel: 2, virtual_pipeline: 2, data_parallel: 4}}
data:
  datasets:
    domain: {text: [domain.jsonl]}
    chats: {conversations: [chats.jsonl]}
    indexed: {indexed_conversations: indexed}
  blends:
    documents: {weights: {domain: 1}}
    talk: {weights: {chats: 1, indexed: 1}}
stages:
  - &cpt
    name: cpt
    kind: cpt
    blend: documents
    steps: 10
    sequence_length: 64
    global_batch_size: 16
    checkpoints: {keep_last: 2}
  - {<<: *cpt, name: draft-cpt, model: draft}
  - {name: sft, kind: sft, blend: talk, steps: 4, sequence_length: 64, global_batch_size: 16}
  - {name: measured, kind: evaluate, checkpoints: [import, sft], layout: {tensor_parallel: 8}}
  - {name: hf, kind: export, layout: {}}
  - {name: draft-hf, kind: export, model: draft, layout: {}}
  - {name: pair, kind: speculate, target: hf, draft: draft-hf, prompts: prompts.jsonl}
evaluation: {questions: {exam: exam.jsonl}, max_new_tokens: 8}
"""
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the fox"}]


def write_lines(file: Path, records: list[dict[str, object]]) -> None:
    """JSON Lines."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def recipe_in(project: Path, *overrides: str) -> Recipe:
    """The project's recipe."""
    return load_recipe(project / "recipe.yaml", overrides)


def look_at(project: Path, *overrides: str, environment: Path | None = None) -> Preflight:
    """The preflight of the project's recipe, on the machine that has its files."""
    return preflight(recipe_in(project, *overrides), environment, files_elsewhere=False)


def change_json(file: Path, **fields: object) -> None:
    """Set fields of a JSON object; None removes one."""
    content = json.loads(file.read_text("utf-8")) | fields
    kept = {name: value for name, value in content.items() if value is not None}
    file.write_text(json.dumps(kept), "utf-8")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe with everything that it needs; leave it as it is."""
    root = tmp_path_factory.mktemp("sound")
    tokenizer = train_tokenizer()
    for name in ("target", "draft"):
        made = make_model(root / name, Case("qwen2", vocab_size=512))
        save_tokenizer(made, tokenizer, chat_template=CHATML)
    write_lines(root / "chats.jsonl", [{"messages": TURNS}] * 9)
    write_lines(root / "domain.jsonl", [{"text": text} for text in TRAINING_TEXT])
    write_lines(root / "exam.jsonl", [{"question": "hello?", "answer": "the fox"}])
    write_lines(root / "prompts.jsonl", [{"messages": TURNS[:1]}, {"prompt": "the"}])
    convert_sft(
        SFTOptions(
            inputs=(str(root / "chats.jsonl"),),
            output_prefix=root / "indexed",
            tokenizer_model=root / "target",
            workers=1,
        )
    )
    (root / "recipe.yaml").write_text(RECIPE, "utf-8")
    return root


@pytest.fixture
def project(sound: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "project"))
