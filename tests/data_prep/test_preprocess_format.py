"""The datasets are, byte for byte, what Megatron-Core writes for the same tokens."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.convert import ConvertOptions, convert
from data_prep.indexed import open_indexed, token_dtype
from megatron_soaes.errors import UserError

EOD = 0
TORTURE = [
    "plain text",
    "",
    "中央企业要深化改革，提高核心竞争力。" * 3,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f600 \U0001f1e8\U0001f1f3",
    "cafe\u0301 \u212b ｱｲｳ　\ufeff\u200b\u2028\u0378\U0010ffff",
    "nul \x00 bell \x07 del \x7f",
    "carriage\r\nreturn\r and\ttab  \n\n\n",
    "a document with <|endoftext|> and <|im_start|>user<|im_end|> inside",
    " ",
    "x" * 1_000_000,
    "",
]


def expected_tokens(tokenizer: Tokenizer, text: str, append_eod: bool) -> list[int]:
    """Megatron's rule: the end-of-document token follows only a text that has tokens."""
    ids: list[int] = tokenizer.encode(text).ids
    return [*ids, EOD] if ids and append_eod else ids


def write_with_megatron(prefix: Path, documents: list[list[int]], vocab_size: int) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for tokens in documents:
        builder.add_document(tokens, [len(tokens)] if tokens else [])
    builder.finalize(f"{prefix}.idx")


def parse_dataset(prefix: Path) -> list[list[int]]:
    """The documents of a dataset, read by the letter of the format alone."""
    index = Path(f"{prefix}.idx").read_bytes()
    magic, version, code, sequences, boundaries = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    at = 34
    lengths = struct.unpack_from(f"<{sequences}i", index, at)
    offsets = struct.unpack_from(f"<{sequences}q", index, at + 4 * sequences)
    first = struct.unpack_from(f"<{boundaries}q", index, at + 12 * sequences)
    assert len(index) == at + 12 * sequences + 8 * boundaries
    data, dtype = Path(f"{prefix}.bin").read_bytes(), {4: "<i4", 8: "<u2"}[code]
    return [
        [
            token
            for s in range(start, stop)
            for token in np.frombuffer(data, dtype, lengths[s], offsets[s]).tolist()
        ]
        for start, stop in pairwise(first)
    ]


@pytest.mark.parametrize(("append_eod", "ensure_ascii"), [(True, False), (False, True)])
def test_dataset_equals_megatrons(
    *,
    corpus: Callable[..., Path],
    tmp_path: Path,
    model: Path,
    tokenizer: Tokenizer,
    append_eod: bool,
    ensure_ascii: bool,
) -> None:
    path = corpus(TORTURE, ensure_ascii=ensure_ascii)
    options = ConvertOptions(
        (str(path),), tmp_path / "ours", model, append_eod=append_eod, partitions=5
    )
    summary = convert(options)

    documents = [expected_tokens(tokenizer, text, append_eod) for text in TORTURE]
    write_with_megatron(tmp_path / "theirs", documents, tokenizer.get_vocab_size())
    ours = summary.datasets["text"]
    for suffix in (".bin", ".idx"):
        assert Path(f"{ours}{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert parse_dataset(ours) == documents
    assert [tokens.tolist() for tokens in open_indexed(ours)] == documents
    dataset = IndexedDataset(str(ours))
    assert [tokens.tolist() for tokens in dataset] == [tokens for tokens in documents if tokens]
    assert summary.documents == len(TORTURE)
    assert summary.empty_documents == {"text": 2}
    assert summary.tokens == {"text": sum(map(len, documents))}


def test_large_vocabulary_is_written_as_int32(
    corpus: Callable[..., Path], tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"filler{number}" for number in range(65_500 - len(alphabet) - 1))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    assert tokenizer.get_vocab_size() == 65_500

    options = ConvertOptions(
        (str(corpus(["abc", "def"])),),
        tmp_path / "ours",
        make_model(tokenizer),
        append_eod=True,
    )
    ours = convert(options).datasets["text"]

    documents = [[*tokenizer.encode(text).ids, 65_499] for text in ("abc", "def")]
    write_with_megatron(tmp_path / "theirs", documents, 65_500)
    for suffix in (".bin", ".idx"):
        assert Path(f"{ours}{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    assert open_indexed(ours).tokens.dtype == np.int32


@pytest.mark.parametrize("vocab_size", [1, 65_499, 65_500, 65_536, 151_646])
def test_token_type_is_megatrons(vocab_size: int) -> None:
    assert token_dtype(vocab_size) == DType.optimal_dtype(vocab_size)


@settings(max_examples=12, deadline=None)
@given(
    texts=st.lists(st.text(max_size=60), max_size=12),
    partitions=st.integers(1, 6),
    ensure_ascii=st.booleans(),
)
def test_any_texts_round_trip(
    model: Path, tokenizer: Tokenizer, texts: list[str], partitions: int, ensure_ascii: bool
) -> None:
    texts = [*texts, "never empty"]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "corpus.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=ensure_ascii) for text in texts)
        path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
        options = ConvertOptions(
            (str(path),), Path(directory) / "out", model, partitions=partitions
        )
        dataset = open_indexed(convert(options, log=lambda line: None).datasets["text"])
        written = [tokens.tolist() for tokens in dataset]
    assert written == [tokenizer.encode(text).ids for text in texts]


@pytest.fixture
def dataset(corpus: Callable[..., Path], tmp_path: Path, model: Path) -> Path:
    path = corpus(["one", "", "three"])
    options = ConvertOptions((str(path),), tmp_path / "out", model)
    return convert(options).datasets["text"]


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".bin", lambda data: data[:-2], "2 short: it ends inside document 2"),
        (".bin", lambda data: data + b"xx", "bytes; expected"),
        (".idx", lambda data: data[:-1], "by its header"),
        (".idx", lambda data: data[:10], "complete header"),
        (".idx", lambda data: b"X" + data[1:], "magic"),
        (".idx", lambda data: data[:17] + b"\x09" + data[18:], "type code 9; expected"),
        (".idx", lambda data: data[:37] + b"\xff" + data[38:], "for sequence 0"),
        (".idx", lambda data: data[:42] + b"\x01" + data[43:], "offset 1 for sequence 0"),
        (".idx", lambda data: data[:-24] + b"\x02" + data[-23:], "document index"),
    ],
)
def test_a_damaged_dataset_is_found(
    dataset: Path, suffix: str, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = Path(f"{dataset}{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_indexed(dataset)
