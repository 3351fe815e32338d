"""A small byte-level BPE tokenizer in Hugging Face files, and corpora in every supported format."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TRAINING_TEXT = ["the quick brown fox jumps over the lazy dog", "中央企业深化改革，提高核心竞争力"]


def train_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """A tokenizer with the normaliser, the pre-tokenizer and the special tokens of Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def save_tokenizer(directory: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """Write the files of a Hugging Face tokenizer directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        **config,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The reference that every dataset is compared with."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The directory of `tokenizer`."""
    return save_tokenizer(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes texts as a JSONL file and returns its path."""

    def write(
        texts: Sequence[object], name: str = "corpus.jsonl", ensure_ascii: bool = True
    ) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8") as stream:
            for text in texts:
                stream.write(json.dumps({"text": text}, ensure_ascii=ensure_ascii) + "\n")
        return path

    return write


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tokenizer and settings of `tokenizer_config.json`; returns the directory."""

    def write(tokenizer: Tokenizer, **config: object) -> Path:
        return save_tokenizer(tmp_path / "model", tokenizer, **config)

    return write
