"""Datasets looked into, verified, merged and split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from typer.testing import CliRunner

from data_prep.convert import ConvertOptions, convert
from data_prep.datasets.inspect import inspect
from data_prep.datasets.merge import merge
from data_prep.datasets.split import part_of, split
from data_prep.indexed import open_indexed
from megatron_soaes.cli import app
from megatron_soaes.errors import UserError

TEXTS = ["the quick brown fox", "", "深化改革", "a lazy dog", "the dog", "fox " * 50]
Convert = Callable[..., Path]


@pytest.fixture
def converted(corpus: Callable[..., Path], tmp_path: Path, model: Path) -> Convert:
    """Converts texts and returns the prefix of their dataset."""

    def convert_texts(texts: list[str], name: str = "out", **options: int) -> Path:
        path = corpus(texts, f"{name}.jsonl")
        made = ConvertOptions((str(path),), tmp_path / name, model, append_eod=True, **options)  # type: ignore[arg-type]
        return convert(made, log=lambda line: None).datasets["text"]

    return convert_texts


def contents(prefix: Path) -> tuple[bytes, bytes]:
    """Both files."""
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def documents(prefix: Path) -> list[list[int]]:
    """All documents."""
    return [tokens.tolist() for tokens in open_indexed(prefix)]


def run(*arguments: object) -> str:
    """The output of `soaes prep ...`."""
    result = CliRunner().invoke(app, ["prep", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_inspect_counts_and_writes_a_document_as_text(converted: Convert) -> None:
    prefix = converted(TEXTS)
    output = run("inspect", prefix, "--verify")
    tokens = sum(map(len, documents(prefix)))
    assert f"6 documents (1 empty), 5 sequences, {tokens} tokens, uint16" in output
    assert "longest: " in output
    assert ".bin and .idx are as the manifest says" in output
    assert run("inspect", prefix, "--doc", "2") == "深化改革<|endoftext|>\n"


def test_a_document_that_is_none_is_refused(converted: Convert) -> None:
    with pytest.raises(UserError, match="--doc: found 6; expected 0 to 5"):
        run("inspect", converted(TEXTS), "--doc", "6")


def test_a_dataset_that_is_cut_short_says_where(converted: Convert) -> None:
    prefix = converted(TEXTS)
    tokens = Path(f"{prefix}.bin")
    tokens.write_bytes(tokens.read_bytes()[:-30])
    with pytest.raises(
        UserError, match=r"\.bin: found .* bytes, 30 short: it ends inside document 5"
    ):
        run("inspect", prefix)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_one_altered_byte_is_found_by_its_checksum(converted: Convert, suffix: str) -> None:
    prefix = converted(TEXTS, partitions=3)
    file = Path(f"{prefix}.{suffix}")
    data = bytearray(file.read_bytes())
    place = 1 if suffix == "bin" else 9 + 8 + 1
    data[place] ^= 1
    file.write_bytes(data)
    if suffix == "idx":
        with pytest.raises(UserError, match=r"\.idx: found"):
            run("inspect", prefix, "--verify")
    else:
        assert "6 documents" in run("inspect", prefix)
        with pytest.raises(UserError, match=r"\.bin: found other bytes between 0 and "):
            run("inspect", prefix, "--verify")


def test_a_dataset_of_another_tool_is_read_too(tmp_path: Path, model: Path) -> None:
    builder = IndexedDatasetBuilder(str(tmp_path / "other.bin"), dtype=np.int32)
    builder.add_document([1, 2, 3, 4, 5], [2, 3])
    builder.add_document([6], [1])
    builder.finalize(str(tmp_path / "other.idx"))
    output = run("inspect", tmp_path / "other.bin", "--verify")
    assert "2 documents (0 empty), 3 sequences, 6 tokens, int32" in output
    assert "no checksums are known" in output
    with pytest.raises(UserError, match="Name it with --tokenizer"):
        run("inspect", tmp_path / "other", "--doc", "0")
    assert run("inspect", tmp_path / "other", "--doc", "1", "--tokenizer", model)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_every_type_of_megatron_is_read(tmp_path: Path, model: Path, dtype: type) -> None:
    builder = IndexedDatasetBuilder(str(tmp_path / "other.bin"), dtype=dtype)
    builder.add_document([5, 6, 7], [2, 1])
    builder.finalize(str(tmp_path / "other.idx"))
    output = run("inspect", tmp_path / "other")
    assert f"2 sequences, 3 tokens, {np.dtype(dtype).name}" in output
    assert documents(tmp_path / "other") == [[5, 6, 7]]
    if np.dtype(dtype).kind == "f":
        with pytest.raises(UserError, match="values that are no token ids"):
            run("inspect", tmp_path / "other", "--doc", "0", "--tokenizer", model)


def test_a_multimodal_dataset_is_refused(tmp_path: Path) -> None:
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.int32, multimodal=True)
    builder.add_document([1, 2], [1, 1], [0, 1])
    builder.finalize(str(tmp_path / "m.idx"))
    with pytest.raises(UserError, match="a multimodal dataset"):
        run("inspect", tmp_path / "m")


def test_merged_datasets_are_those_of_the_merged_corpus(converted: Convert, tmp_path: Path) -> None:
    parts = [converted(TEXTS[:2], "a"), converted(TEXTS[2:3], "b"), converted(TEXTS[3:], "c")]
    run("merge", *parts, "--output-prefix", tmp_path / "all")
    assert contents(tmp_path / "all") == contents(converted(TEXTS, "whole"))
    assert ".bin and .idx are as the manifest says" in inspect(tmp_path / "all").verify()
    manifest = json.loads((tmp_path / "all.manifest.json").read_text("utf-8"))
    assert [entry["documents"] for entry in manifest["merged"]] == [2, 1, 3]


DOCUMENTS = st.lists(st.lists(st.integers(0, 60000), max_size=4), max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.lists(DOCUMENTS, min_size=1, max_size=3))
def test_merging_concatenates_documents_of_any_sequences(
    tmp_path_factory: pytest.TempPathFactory, datasets: list[list[list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    prefixes = []
    for number, rows in enumerate(datasets):
        builder = IndexedDatasetBuilder(str(folder / f"{number}.bin"), dtype=np.uint16)
        for tokens in rows:
            # Every other token ends a sequence.
            lengths = [len(tokens[at : at + 2]) for at in range(0, len(tokens), 2)]
            builder.add_document(tokens, lengths)
        builder.finalize(str(folder / f"{number}.idx"))
        prefixes.append(folder / str(number))
    merge(prefixes, folder / "all")
    assert documents(folder / "all") == [tokens for rows in datasets for tokens in rows]


def test_datasets_that_do_not_belong_together_are_not_merged(
    converted: Convert, tmp_path: Path
) -> None:
    one = converted(TEXTS, "one")
    with pytest.raises(UserError, match="a second time"):
        merge([one, one], tmp_path / "all")
    manifest = tmp_path / "one.manifest.json"
    other = converted(TEXTS, "two")
    content = json.loads(manifest.read_text("utf-8"))
    content["run"]["tokenizer"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="with the other's tokenizer"):
        merge([one, other], tmp_path / "all")
    builder = IndexedDatasetBuilder(str(tmp_path / "wide.bin"), dtype=np.int32)
    builder.add_document([1], [1])
    builder.finalize(str(tmp_path / "wide.idx"))
    with pytest.raises(UserError, match="found tokens of type int32; expected uint16"):
        merge([other, tmp_path / "wide"], tmp_path / "all")
    assert not list(tmp_path.glob("*all*"))


def test_a_dataset_without_checksums_can_be_merged(converted: Convert, tmp_path: Path) -> None:
    one, two = converted(TEXTS, "one"), converted(TEXTS, "two")
    (tmp_path / "two.manifest.json").unlink()
    merge([one, two], tmp_path / "all")
    assert documents(tmp_path / "all") == documents(one) + documents(two)
    assert run("inspect", tmp_path / "all", "--verify").endswith("no checksum of .bin is known\n")


def test_a_manifest_of_an_earlier_dataset_is_not_believed(
    converted: Convert, tmp_path: Path
) -> None:
    one, two = converted(TEXTS, "one"), converted(TEXTS[:3], "two")
    for suffix in (".bin", ".idx"):
        Path(f"{two}{suffix}").replace(f"{one}{suffix}")
    with pytest.raises(UserError, match=r"by .*one\.manifest\.json"):
        merge([one], tmp_path / "all")


def test_split_parts_hold_all_documents_and_equal_ones_together(
    converted: Convert, tmp_path: Path
) -> None:
    texts = [f"the dog {n % 150}" for n in range(300)]
    prefix = converted(texts)
    run("split", prefix, "--fractions", "train=0.8,valid=0.2")
    train, valid = (documents(Path(f"{prefix}_{name}")) for name in ("train", "valid"))
    assert sorted(train + valid) == sorted(documents(prefix))
    assert not {tuple(tokens) for tokens in train} & {tuple(tokens) for tokens in valid}
    assert 0.1 < len(valid) / 300 < 0.3
    assert ".bin and .idx are as" in inspect(Path(f"{prefix}_valid")).verify()


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8),
    st.floats(0.05, 0.9),
    st.integers(0, 9),
)
def test_a_documents_part_depends_on_nothing_but_itself(
    rows: list[list[int]], fraction: float, seed: int
) -> None:
    edges, wider = np.array([fraction, 1.0]), np.array([fraction + 0.05, 1.0])
    for row in rows:
        tokens = np.array(row, dtype="<u2")
        part = part_of(tokens, edges, seed)
        assert part == part_of(tokens.copy(), edges, seed)
        # A larger first part keeps what it had.
        assert part_of(tokens, wider, seed) <= part


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=12), st.integers(0, 9)
)
def test_every_document_is_whole_in_one_part_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    builder = IndexedDatasetBuilder(str(folder / "in.bin"), dtype=np.int32)
    for tokens in rows:
        builder.add_document(tokens, [1] * len(tokens))
    builder.finalize(str(folder / "in.idx"))
    edges = np.array([0.5, 1.0])
    parts = [part_of(np.array(tokens, dtype="<i4"), edges, seed) for tokens in rows]
    if set(parts) != {0, 1}:
        with pytest.raises(UserError, match=f"no document of {len(rows)}"):
            split(folder / "in", {"a": 0.5, "b": 0.5}, folder / "out", seed)
        return
    made = split(folder / "in", {"a": 0.5, "b": 0.5}, folder / "out", seed)
    for part, prefix in enumerate(made.prefixes.values()):
        mine = [tokens for tokens, of in zip(rows, parts, strict=True) if of == part]
        dataset = open_indexed(prefix)
        assert [tokens.tolist() for tokens in dataset] == mine
        assert len(dataset.lengths) == sum(map(len, mine))


def test_a_split_is_stable_when_the_corpus_grows(converted: Convert, tmp_path: Path) -> None:
    texts = [f"fox {n}" for n in range(40)]
    fractions = {"train": 0.7, "valid": 0.3}
    small = split(converted(texts, "small"), fractions, tmp_path / "s").prefixes["valid"]
    large = split(converted([*texts, *TEXTS], "large"), fractions, tmp_path / "l").prefixes["valid"]
    assert [row for row in documents(large) if row in documents(small)] == documents(small)


@pytest.mark.parametrize(
    ("fractions", "found"),
    [
        ("train=0.5,valid=0.4", "a sum of 0.9"),
        ("train=1,valid", "'valid'; expected NAME=NUMBER"),
        ("train=1.5,valid=-0.5", "a plain name and a number above 0"),
        ("train=0.999999,valid=0.000001", "no document of 6"),
    ],
)
def test_fractions_that_make_no_parts_are_refused(
    converted: Convert, fractions: str, found: str
) -> None:
    prefix = converted(TEXTS)
    before = sorted(prefix.parent.iterdir())
    with pytest.raises(UserError, match=found):
        run("split", prefix, "--fractions", fractions)
    assert sorted(prefix.parent.iterdir()) == before


def test_nothing_is_overwritten(converted: Convert, tmp_path: Path) -> None:
    one, two = converted(TEXTS, "one"), converted(TEXTS[:1], "two")
    with pytest.raises(UserError, match=r"two_text_document\.bin: found an existing file"):
        merge([one], two)
