"""A target and a draft with one tokenizer and different vocabulary sizes, exported once a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.export.pair import PairOptions, export_pair
from tests.checkpoint.tiny import Case, make_model

TARGET = Case("qwen2", vocab_size=256, layers=2)
DRAFT = Case("qwen2", tied=True, vocab_size=250, layers=1)
FOLDER = "a pair's $HOME; `x` & co"
"""Written scripts must not care."""
Report = Callable[..., Path]


def make(hf_dir: Path, case: Case, seed: int = 7) -> Path:
    """An HF directory with a tokenizer of five tokens and an end."""
    make_model(hf_dir, case, dtype=torch.bfloat16, seed=seed)
    save_tokenizer(hf_dir)
    edit_json(hf_dir / "tokenizer_config.json", eos_token="<end>")
    edit_json(hf_dir / "generation_config.json", eos_token_id=[5, 2], pad_token_id=5)
    return hf_dir


def save_tokenizer(
    hf_dir: Path,
    tokens: str = "a b c ab bc",
    merges: str = "a b,b c",
    added: tuple[str, ...] = ("<end>",),
) -> None:
    """Write tokenizer.json: tokens in the order of their ids, merges by rank."""
    vocabulary = {token: number for number, token in enumerate(tokens.split())}
    pairs = [(one, other) for one, other in (merge.split() for merge in merges.split(","))]
    tokenizer = Tokenizer(BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(hf_dir / "tokenizer.json"))


def edit_json(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes it."""
    return make(tmp_path_factory.mktemp("target") / "hf", TARGET)


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody changes it."""
    return make(tmp_path_factory.mktemp("draft") / "hf", DRAFT, seed=8)


@pytest.fixture
def own_draft(tmp_path: Path) -> Path:
    """A draft that a test may damage."""
    return make(tmp_path / "draft", DRAFT)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fields of a report of `soaes speculate --out` that are read."""
    return write_report(tmp_path_factory.mktemp("report") / "report.json")


def write_report(file: Path, acceptance: float = 0.8, cost_ratio: float = 0.1) -> Path:
    lengths = [
        {
            "draft_length": length,
            "adaptive": adaptive,
            "acceptance": {"acceptance_of_judged": acceptance if length == 7 else 0.99},
        }
        for length, adaptive in ((2, False), (7, False), (9, True))
    ]
    file.write_text(json.dumps({"lengths": lengths, "cost_ratio": cost_ratio}))
    return file


@pytest.fixture(scope="session")
def engine_pair(
    tmp_path_factory: pytest.TempPathFactory, target: Path, draft: Path, measured: Path
) -> Path:
    """For 1.2.1: a target on 2 x 2 ranks, a draft that comes as a Megatron checkpoint."""
    root = tmp_path_factory.mktemp("engines")
    import_hf(draft, root / "draft", verify=False)
    options = PairOptions("1.2.1", tensor=2, draft_tensor=1, pipeline=2, measured=measured)
    export_pair(target, root / "draft", root / FOLDER, options)
    return root / FOLDER


@pytest.fixture(scope="session")
def hf_pair(tmp_path_factory: pytest.TempPathFactory, target: Path, draft: Path) -> Path:
    """For a version without engines, with nothing measured."""
    out = tmp_path_factory.mktemp("hf") / FOLDER
    options = PairOptions("1.3.0rc24", dtype="fp16", max_seq_len=128, max_batch_size=4)
    export_pair(target, draft, out, options)
    return out
