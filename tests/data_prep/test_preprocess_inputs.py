"""Corpora as users have them: many files, several formats, bad lines deep inside."""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_prep import ranges, readers
from data_prep.convert import ConvertOptions, ConvertSummary, convert
from data_prep.ranges import find_inputs, plan_ranges
from data_prep.readers import read_batches
from megatron_soaes.errors import UserError

TEXTS = [f"document {n} 第{n}号 " * (n % 5) for n in range(40)]

Run = Callable[..., ConvertSummary]


@pytest.fixture
def run(tmp_path: Path, model: Path) -> Run:
    """Converts files to `out`; keyword arguments are those of `ConvertOptions`."""

    def convert_inputs(*inputs: Path | str, **options: object) -> ConvertSummary:
        arguments = {"output_prefix": tmp_path / "out", "tokenizer_model": model, **options}
        return convert(ConvertOptions(tuple(map(str, inputs)), **arguments))  # type: ignore[arg-type]

    return convert_inputs


def dataset_bytes(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def left_behind(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if path.name.startswith((".", "out"))}


def write_parquet(path: Path, texts: list[str | None], row_group_size: int = 7) -> Path:
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def test_compressed_and_parquet_files_equal_plain_ones(
    run: Run, corpus: Callable[..., Path], tmp_path: Path
) -> None:
    plain = corpus(TEXTS)
    content = plain.read_bytes()
    half = content.index(b"\n", len(content) // 2) + 1
    frames = [zstandard.compress(part) for part in (content[:half], content[half:])]
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "corpus.jsonl.zst").write_bytes(b"".join(frames))
    write_parquet(tmp_path / "corpus.parquet", list(TEXTS))

    expected = dataset_bytes(run(plain, output_prefix=tmp_path / "out-plain").datasets["text"])
    for suffix in ("jsonl.gz", "jsonl.zst", "parquet"):
        prefix = tmp_path / f"out-{suffix}"
        summary = run(tmp_path / f"corpus.{suffix}", output_prefix=prefix)
        assert dataset_bytes(summary.datasets["text"]) == expected
    assert summary.ranges == 6


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_damaged_compressed_file_stops_the_run(
    run: Run, tmp_path: Path, compress: Callable[[bytes], bytes], fault: str
) -> None:
    lines = b"".join(json.dumps({"text": f"{n} {n**9}"}).encode() + b"\n" for n in range(5000))
    content = compress(lines)
    suffix = "gz" if compress is gzip.compress else "zst"
    path = tmp_path / f"corpus.jsonl.{suffix}"
    middle = len(content) // 2
    flipped = content[:middle] + bytes(byte ^ 0xFF for byte in content[middle:])
    path.write_bytes(content[:-20] if fault == "cut" else flipped)
    with pytest.raises(UserError, match=rf"corpus\.jsonl\.{suffix}: found damaged content"):
        run(path, skip_bad_lines=tmp_path / "bad.jsonl")
    assert left_behind(tmp_path) == set()


def test_a_damaged_parquet_file_stops_the_run(run: Run, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "corpus.parquet", list(TEXTS))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"corpus\.parquet: found damaged content"):
        run(path)


def test_parquet_columns_are_checked_before_the_run(run: Run, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "corpus.parquet", list(TEXTS))
    with pytest.raises(UserError, match="found columns id, text; expected a column 'body'"):
        run(path, json_keys=("body",))
    with pytest.raises(UserError, match="column 'id': found type int64; expected strings"):
        run(path, json_keys=("id",))


def test_parquet_rows_without_text_are_named(run: Run, tmp_path: Path) -> None:
    column = pa.array([*[b"good"] * 10, None, b"\xff\xfe", b"good"], pa.binary())
    strings = pa.StringArray.from_buffers(len(column), *column.buffers()[1:], column.buffers()[0])
    pq.write_table(pa.table({"text": strings}), tmp_path / "corpus.parquet", row_group_size=4)
    with pytest.raises(UserError, match=r"corpus\.parquet: row 11: found null at 'text'"):
        run(tmp_path / "corpus.parquet")
    summary = run(tmp_path / "corpus.parquet", skip_bad_lines=tmp_path / "bad.jsonl")
    assert (summary.documents, summary.bad_lines) == (11, {"null_value": 1, "invalid_utf8": 1})
    records = [json.loads(line) for line in (tmp_path / "bad.jsonl").open()]
    assert [(record["line"], record["reason"]) for record in records] == [
        (11, "null_value"),
        (12, "invalid_utf8"),
    ]
    assert base64.b64decode(records[1]["content_base64"]) == b"\xff\xfe"


def test_globs_are_sorted_and_arguments_keep_their_order(
    run: Run, corpus: Callable[..., Path], tmp_path: Path
) -> None:
    for name, text in (("b-2", "two"), ("b-1", "one"), ("a", "last")):
        corpus([text], f"{name}.jsonl")
    whole = dataset_bytes(
        run(corpus(["one", "two", "last"], "whole.jsonl"), output_prefix=tmp_path / "w").datasets[
            "text"
        ]
    )
    globbed = run(tmp_path / "b-*.jsonl", tmp_path / "a.jsonl")
    assert dataset_bytes(globbed.datasets["text"]) == whole


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["no-such-*.jsonl"], "no such file"),
        (["."], "a directory"),
        (["corpus.jsonl", "*.jsonl"], "a second time"),
    ],
)
def test_inputs_that_are_not_meant(
    *,
    run: Run,
    corpus: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[str],
    message: str,
) -> None:
    corpus(TEXTS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(*inputs)


def test_several_keys_make_several_datasets(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    records = [{"title": f"title {n}", "body": "body " * n} for n in range(5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    both = run(path, json_keys=("title", "body"))
    for key in ("title", "body"):
        one = run(path, json_keys=(key,), output_prefix=tmp_path / f"one-{key}")
        assert dataset_bytes(both.datasets[key]) == dataset_bytes(one.datasets[key])
    assert both.empty_documents == {"title": 0, "body": 1}
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.manifest.json",
        "out_body_document.bin",
        "out_body_document.idx",
        "out_title_document.bin",
        "out_title_document.idx",
    ]


def test_line_ends_marks_and_blank_lines_hold_no_text(
    run: Run, corpus: Callable[..., Path], tmp_path: Path
) -> None:
    texts = ["first", "twice", "not a number", "other key is broken", "last, without line end"]
    expected = dataset_bytes(run(corpus(texts), output_prefix=tmp_path / "plain").datasets["text"])
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes(
        b'\xef\xbb\xbf{"text": "first"}\r\n'
        b"\n \t\r\n"
        b'{"text": "once", "text": "twice"}\n'
        b'{"score": NaN, "text": "not a number"}\n'
        b'{"text": "other key is broken", "note": "\\ud800"}\n'
        b'{"text": "last, without line end"}'
    )
    (tmp_path / "odd.jsonl.gz").write_bytes(gzip.compress(odd.read_bytes()))
    for path in (odd, tmp_path / "odd.jsonl.gz"):
        summary = run(path, output_prefix=tmp_path / f"out-{path.name}")
        assert dataset_bytes(summary.datasets["text"]) == expected
        assert (summary.documents, summary.blank_lines) == (5, 2)


BAD_LINES = [
    (b'{"text": "unfinished', "invalid_json", "invalid JSON"),
    (b'{"text": "a"} {"text": "b"}', "invalid_json", "Extra data at column 15"),
    (b"[" * 100_000, "invalid_json", "nested too deeply"),
    (b'{"body": "no text"}', "missing_key", r"no key 'text' \(keys: body\)"),
    (b'{"text": null}', "null_value", "null at 'text'"),
    (b'{"text": 5}', "not_a_string", "a JSON number at 'text'"),
    (b'{"text": ["a", "b"]}', "not_a_string", "a JSON array at 'text'"),
    (b'["text"]', "not_an_object", "a JSON array"),
    (b'{"text": "half \\ud83d pair"}', "lone_surrogate", "half a surrogate pair"),
    (b'{"text": "bytes \xed\xa0\x80"}', "invalid_utf8", "byte 0xed at offset 16"),
    (b'{"text": "latin \xe9"}', "invalid_utf8", "byte 0xe9 at offset 16"),
    (b'{"text": "a raw \x00"}', "invalid_json", "Invalid control character"),
]


def corpus_with(line: bytes, directory: Path) -> Path:
    """Forty good lines and blank ones, `line` as the 33rd: deep in the second of two ranges."""
    good = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in TEXTS]
    path = directory / "corpus.jsonl"
    path.write_bytes(b"\n".join([*good[:20], b"", *good[20:31], line, *good[31:], b""]))
    return path


@pytest.mark.parametrize(("line", "reason", "message"), BAD_LINES)
def test_a_bad_line_stops_the_run_and_leaves_nothing(
    run: Run, tmp_path: Path, line: bytes, reason: str, message: str
) -> None:
    path = corpus_with(line, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        run(path, partitions=2)
    assert error.value.where == f"{path}:33"
    assert left_behind(tmp_path) == set()


@pytest.mark.parametrize(("line", "reason", "message"), BAD_LINES)
def test_a_bad_line_can_be_collected(
    run: Run, tmp_path: Path, line: bytes, reason: str, message: str
) -> None:
    good = run(corpus_with(b"", tmp_path), output_prefix=tmp_path / "good")
    path = corpus_with(line, tmp_path)
    summary = run(path, partitions=2, skip_bad_lines=tmp_path / "bad.jsonl")

    assert dataset_bytes(summary.datasets["text"]) == dataset_bytes(good.datasets["text"])
    assert (summary.documents, summary.bad_lines) == (40, {reason: 1})
    [record] = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (record["file"], record["line"], record["reason"]) == (str(path), 33, reason)
    content = record.get("content", "").encode() or base64.b64decode(record["content_base64"])
    assert content.rstrip() == line


def test_bad_lines_keep_the_order_of_the_input(run: Run, tmp_path: Path) -> None:
    bad_numbers = {3, 4, 17, 38, 60}
    for name in ("a.jsonl", "b.jsonl"):
        lines = ["{" if n in bad_numbers else json.dumps({"text": f"{n}"}) for n in range(1, 61)]
        (tmp_path / name).write_text("\n".join(lines))
    collected = []
    for workers in (1, 2):
        bad = tmp_path / f"bad-{workers}.jsonl"
        summary = run(
            tmp_path / "?.jsonl",
            partitions=4,
            workers=workers,
            skip_bad_lines=bad,
            output_prefix=tmp_path / f"out-{workers}",
        )
        assert summary.bad_lines == {"invalid_json": 10}
        collected.append(bad.read_bytes())
    assert collected[0] == collected[1]
    places = [(Path(r["file"]).name, r["line"]) for r in map(json.loads, bad.open())]
    assert places == [(f, n) for f in ("a.jsonl", "b.jsonl") for n in sorted(bad_numbers)]


def test_the_first_bad_line_is_named_whatever_the_workers(run: Run, tmp_path: Path) -> None:
    slow = [json.dumps({"text": "slow " * 2000})] * 60
    (tmp_path / "a.jsonl").write_text("\n".join([*slow, "{"]))
    (tmp_path / "b.jsonl").write_text("{")
    for workers in (1, 2):
        with pytest.raises(UserError) as error:
            run(tmp_path / "?.jsonl", workers=workers)
        assert error.value.where == f"{tmp_path / 'a.jsonl'}:61"


def test_a_corpus_without_text_is_refused(run: Run, corpus: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no token at 'text' in 2 documents"):
        run(corpus(["", ""]))
    with pytest.raises(UserError, match="no token at 'text' in 0 documents"):
        run(corpus([]))


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=15),
    blank=st.integers(0, 3),
    partitions=st.integers(1, 20),
    final_line_end=st.booleans(),
)
def test_ranges_hold_every_line_once(
    texts: list[str], blank: int, partitions: int, final_line_end: bool
) -> None:
    lines = ["" for _ in range(blank)] + [json.dumps({"text": text}) for text in texts]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "corpus.jsonl"
        path.write_text("\n".join(lines) + "\n" * final_line_end, newline="\n")
        planned = plan_ranges(find_inputs((str(path),)), ("text",), partitions)
        batches = [b for source in planned for b in read_batches(source, ("text",))]
        size = path.stat().st_size
    assert [text for batch in batches for text in batch.texts["text"]] == texts
    assert sum(batch.size for batch in batches) == size
    assert len(planned) <= partitions


def test_files_are_cut_by_size(
    corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus(TEXTS)
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1000)
    monkeypatch.setattr(readers, "BATCH_BYTES", 300)
    planned = plan_ranges(find_inputs((str(path),)), ("text",), None)
    assert all(source.stop - source.start <= 1000 for source in planned)
    assert planned[-1].stop == path.stat().st_size
    batches = [b for source in planned for b in read_batches(source, ("text",))]
    assert [text for batch in batches for text in batch.texts["text"]] == TEXTS
    assert len(batches) > len(planned) > 2


def test_partitions_cut_each_plain_file(
    run: Run, corpus: Callable[..., Path], tmp_path: Path
) -> None:
    corpus(TEXTS, "a.jsonl")
    corpus(TEXTS, "b.jsonl")
    one = run(tmp_path / "?.jsonl", partitions=1, output_prefix=tmp_path / "one")
    five = run(tmp_path / "?.jsonl", partitions=5, output_prefix=tmp_path / "five")
    assert (one.ranges, five.ranges) == (2, 10)
    assert dataset_bytes(one.datasets["text"]) == dataset_bytes(five.datasets["text"])


def test_partitions_are_refused_where_there_are_no_byte_ranges(run: Run, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "corpus.parquet", list(TEXTS))
    with pytest.raises(UserError, match=r"--partitions 2: found .*corpus\.parquet"):
        run(path, partitions=2)
