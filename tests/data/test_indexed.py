"""Windows over an indexed dataset: Megatron-Core's tokens, disjoint ranges, bad data refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_soaes.data.indexed import DocumentRange, TokenizerFacts, Windows
from megatron_soaes.errors import UserError
from tests.data.material import EOD, VOCABULARY, numbered_documents, settings, write_dataset


def tokens_of(windows: Windows) -> set[int]:
    return {int(t) for i in range(len(windows)) for t in windows[i].tokens} - {EOD}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A hundred documents of nine tokens."""
    return write_dataset(tmp_path / "corpus", numbered_documents(100))


def test_windows_are_those_of_megatron_core(prefix: Path, tmp_path: Path) -> None:
    wanted = settings(tmp_path)
    config = GPTDatasetConfig(
        random_seed=wanted.seed,
        sequence_length=wanted.sequence_length,
        split="1",
        tokenizer=TokenizerFacts(VOCABULARY, EOD, "0" * 64),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    documents = np.arange(10, 90, dtype=np.int32)
    reference = GPTDataset(
        IndexedDataset(str(prefix)), str(prefix), documents, 70, Split.train, config
    )
    windows = Windows(DocumentRange("corpus", prefix, 0.1, 0.9), 70, wanted, source=4)

    assert len(windows) == len(reference) >= 70
    for i in range(len(reference)):
        sample = windows[i]
        assert sample.tokens[:-1].tolist() == reference[i]["tokens"].tolist()
        assert sample.tokens[1:].tolist() == reference[i]["labels"].tolist()
        assert sample.source == 4


def test_one_pass_reads_every_document(prefix: Path, tmp_path: Path) -> None:
    windows = Windows(DocumentRange("corpus", prefix), None, settings(tmp_path), 0)
    assert len(windows) == (100 * 9 - 1) // 16
    assert len(tokens_of(windows)) > 95


@pytest.mark.parametrize("holdout", [0.01, 0.1, 0.33, 0.5])
def test_held_out_documents_are_never_trained(prefix: Path, tmp_path: Path, holdout: float) -> None:
    short = settings(tmp_path, length=8)
    train = Windows(DocumentRange("corpus", prefix, 0.0, 1 - holdout), 300, short, 0)
    held_out = Windows(DocumentRange("corpus", prefix, 1 - holdout, 1.0), None, short, 0)
    assert tokens_of(train) == set(range(100, 200 - round(100 * holdout)))
    assert tokens_of(held_out) <= set(range(200 - round(100 * holdout), 200))
    assert tokens_of(held_out)


def test_the_seed_decides_the_order(prefix: Path, tmp_path: Path) -> None:
    def first(seed: int) -> list[int]:
        windows = Windows(DocumentRange("corpus", prefix), 50, settings(tmp_path, seed=seed), 0)
        return [int(token) for token in windows[0].tokens]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_the_index_is_kept_where_it_was_asked_for(prefix: Path, tmp_path: Path) -> None:
    before = set(prefix.parent.glob("corpus*"))
    Windows(DocumentRange("corpus", prefix), 50, settings(tmp_path), 0)
    assert list((tmp_path / "cache").iterdir())
    assert set(prefix.parent.glob("corpus*")) == before


def test_an_index_of_other_documents_is_not_taken(prefix: Path, tmp_path: Path) -> None:
    """The range or the text changed, the path and the number of samples did not."""
    short = settings(tmp_path, length=8)

    def words(last: float) -> set[int]:
        return tokens_of(Windows(DocumentRange("corpus", prefix, 0.0, last), 100, short, 0))

    assert words(1.0) == set(range(100, 200))
    assert words(0.5) == set(range(100, 150))
    write_dataset(prefix, numbered_documents(60))
    assert words(1.0) == set(range(100, 160))


def test_documents_without_end_are_refused(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "open", [[5] * 9 for _ in range(20)])
    with pytest.raises(UserError) as caught:
        Windows(DocumentRange("news", prefix), None, settings(tmp_path), 0)
    assert "news" in caught.value.where
    assert caught.value.found == "documents that end with token 5"
    assert "--append-eod" in caught.value.fix


def test_one_document_without_end_is_enough(tmp_path: Path) -> None:
    documents = numbered_documents(20)
    documents[13] = documents[13][:-1]
    prefix = write_dataset(tmp_path / "open", documents)
    with pytest.raises(UserError) as caught:
        Windows(DocumentRange("news", prefix), None, settings(tmp_path), 0)
    assert caught.value.found == "documents that end with token 113"


def test_another_tokenizers_end_is_refused(prefix: Path, tmp_path: Path) -> None:
    other = replace(settings(tmp_path), tokenizer=TokenizerFacts(VOCABULARY, EOD + 1, "0" * 64))
    with pytest.raises(UserError, match=f"end-of-document token {EOD + 1}"):
        Windows(DocumentRange("news", prefix), None, other, 0)


@pytest.mark.parametrize(("first", "last"), [(0.0, 0.0), (0.0, 0.01), (0.99, 1.0)])
def test_too_few_tokens_are_refused(
    prefix: Path, tmp_path: Path, first: float, last: float
) -> None:
    with pytest.raises(UserError) as caught:
        Windows(DocumentRange("corpus", prefix, first, last), None, settings(tmp_path), 0)
    assert caught.value.found in ("0 tokens in 0 documents", "9 tokens in 1 documents")
    assert caught.value.expected == "at least one window of 17"


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_missing_file_is_named(prefix: Path, tmp_path: Path, suffix: str) -> None:
    file = prefix.with_name("corpus" + suffix)
    file.unlink()
    with pytest.raises(UserError) as caught:
        Windows(DocumentRange("corpus", prefix), None, settings(tmp_path), 0)
    assert caught.value.where == str(file)


@pytest.mark.parametrize(
    ("suffix", "size", "found"),
    [
        (".bin", 4, "4 bytes, 1796 short: it ends inside document 0"),
        (".idx", 3, "no complete header"),
        (".idx", 500, "500 bytes"),
    ],
)
def test_a_dataset_that_was_cut_is_refused_when_it_is_opened(
    prefix: Path, tmp_path: Path, suffix: str, size: int, found: str
) -> None:
    """Megatron-Core's reader would assert, or fail at the first window beyond the end."""
    file = prefix.with_name(prefix.name + suffix)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError) as caught:
        Windows(DocumentRange("news", prefix), None, settings(tmp_path), 0)
    assert caught.value.where == str(file)
    assert caught.value.found == found
