"""Two tiny models and an exam that one of them wrote: it knows the answers, the other does not."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor

from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.prompts import load_tokenizer
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.schema import Recipe
from megatron_soaes.stages.rendering import ChatRendering, Tokens
from megatron_soaes.stages.subjects import hf_model
from tests.checkpoint.tiny import Case, edit_weights, make_model
from tests.data.material import write_dataset

VOCABULARY = 300
ITEMS = 24
NEW_TOKENS = 12
QUESTION = "What does rule {} of the company say?"
CHOICES = 4

RECIPE = """
version: 1
name: exam
workdir: work
models: {target: {source: good}}
data:
  datasets: {held: {indexed: held}, seen: {indexed: seen}}
  blends: {mix: {weights: {seen: 1}}}
stages:
  - {name: cpt, kind: cpt, blend: mix, steps: 1, sequence_length: 32, global_batch_size: 1}
  - {name: compare, kind: evaluate, checkpoints: [import, cpt]}
  - name: together
    kind: evaluate
    checkpoints: [import, cpt]
    layout: {tensor_parallel: 2, sequence_parallel: true}
evaluation:
  perplexity: [held]
  questions: {exam: exam.jsonl}
  choices: {mini: mini.jsonl}
  few_shot: {mini: {examples: examples.jsonl, count: 2}}
  texts: {prose: prose.jsonl}
  max_new_tokens: 12
  batch_size: 7
  sequence_length: 32
  targets: [exam.rouge1 >= 5 points]
"""
"""`import` is the model that knows nothing, `cpt` the one that wrote the exam."""


@dataclass(frozen=True)
class Exam:
    """Where everything lies."""

    root: Path

    @property
    def good(self) -> Path:
        return self.root / "good"

    @property
    def spoiled(self) -> Path:
        return self.root / "spoiled"

    def recipe(self, *overrides: str) -> Recipe:
        return load_recipe(self.root / "recipe.yaml", overrides)


def make_exam(root: Path) -> Exam:
    """Write models, checkpoints, task files and the recipe."""
    exam = Exam(root)
    text = "The company asks its people what the rule says, and every answer is a short one."
    save_tokenizer(train_tokenizer([text] * 10, VOCABULARY), root / "tokenizer")
    make_model(exam.good, Case("llama", vocab_size=VOCABULARY, layers=2))
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, exam.good)
    edit_weights(exam.good, lambda tensors: _write_words(tensors, exam.good))
    shutil.copytree(exam.good, exam.spoiled)
    edit_weights(exam.spoiled, _spoil)
    import_hf(exam.spoiled, root / "work/import-target/checkpoints", verify=False)
    import_hf(exam.good, root / "work/cpt/checkpoints", verify=False)
    for name in ("held", "seen"):
        write_dataset(root / name, [[(7 * i) % VOCABULARY for i in range(90)] + [0]])
    _write_tasks(exam)
    (root / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return exam


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _write_words(tensors: dict[str, Tensor], tokenizer_dir: Path) -> None:
    """A lively model that writes nothing but letters."""
    tokenizer = load_tokenizer(tokenizer_dir)
    others = [i for i in range(VOCABULARY) if not tokenizer.decode([i]).strip().isalpha()]
    tensors["lm_head.weight"][others] = 0
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "layers" in name:
            tensors[name] = tensor * 4


def _spoil(tensors: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "layers" in name:
            tensors[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()


def _write_tasks(exam: Exam) -> None:
    """Ask the good model; what it says is right."""
    subject = hf_model(exam.good, "fp32", 32)
    rendering, tokens = ChatRendering(exam.good, None), Tokens(subject.tokenizer, 32)
    questions = [QUESTION.format(i) for i in range(ITEMS)]
    prompts = [rendering.prompt([{"role": "user", "content": one}], one) for one in questions]
    answers = subject.generator.generate(prompts, Sampling(NEW_TOKENS, stop_ids=(0, 2)))
    write_lines(
        exam.root / "exam.jsonl",
        (
            {"question": question, "answer": answer.text, "source": "AB"[i % 2]}
            for i, (question, answer) in enumerate(zip(questions, answers, strict=True))
        ),
    )
    generator = random.Random(3)
    words = [
        ["".join(generator.sample(ascii_lowercase, 5)) for _ in range(CHOICES)] for _ in questions
    ]
    examples = [{"question": "Which?", "choices": words[i], "answer": i} for i in range(3)]
    write_lines(exam.root / "examples.jsonl", examples)
    prefix = "".join(f"Which?\n{words[i][i]}\n\n" for i in range(2))
    requests = [
        tokens.choice(f"{prefix}{question}\n", word)
        for question, choices in zip(questions, words, strict=True)
        for word in choices
    ]
    found = [one.total for one in subject.generator.log_likelihoods(requests)]
    rows = [found[i : i + CHOICES] for i in range(0, len(found), CHOICES)]
    write_lines(
        exam.root / "mini.jsonl",
        (
            {"question": question, "choices": choices, "answer": row.index(max(row))}
            for question, choices, row in zip(questions, words, rows, strict=True)
        ),
    )
    write_lines(
        exam.root / "prose.jsonl", ({"text": f"{i} {one}"} for i, one in enumerate(questions))
    )
