"""Conversation files into an SFT dataset: its files, its counts, and what is left out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer

from data_prep.datasets.inspect import inspect
from data_prep.datasets.merge import merge
from data_prep.datasets.split import split
from data_prep.sft.convert import SFTOptions, SFTSummary, convert_sft
from data_prep.tokenizer import load_tokenizer
from megatron_soaes.errors import UserError
from megatron_soaes.files import sha256_file
from tests.data_prep.sft_material import (
    CHATML,
    ENDLESS,
    FORGETFUL,
    OUTPUTS,
    RECORDS,
    SUFFIXES,
    chat,
    dataset_bytes,
    outputs,
    read_pairs,
    save_chat_model,
    trained_texts,
    write_jsonl,
)

Run = Callable[..., SFTSummary]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), CHATML)


@pytest.fixture(scope="module")
def tokenizer(chat_model: Path) -> Tokenizer:
    return load_tokenizer(chat_model, add_special_tokens=False)[1]


@pytest.fixture
def run(tmp_path: Path, chat_model: Path) -> Run:
    """Converts records, or a file of them; keyword arguments are those of `SFTOptions`."""

    def convert(records: list[Any] | Path, **options: Any) -> SFTSummary:
        path = records
        if isinstance(records, list):
            path = write_jsonl(tmp_path / "chats.jsonl", records)
        arguments = {"output_prefix": tmp_path / "out", "tokenizer_model": chat_model, **options}
        return convert_sft(SFTOptions((str(path),), **arguments), log=lambda line: None)

    return convert


def test_megatron_reads_both_pairs(run: Run, tmp_path: Path, tokenizer: Tokenizer) -> None:
    summary = run(RECORDS, source_key="kind")
    tokens = IndexedDataset(str(tmp_path / "out"))
    weights = IndexedDataset(str(tmp_path / "out_weights"))
    assert outputs(tmp_path) == OUTPUTS
    assert len(tokens) == len(weights) == len(RECORDS) == summary.report.conversations
    assert (tokens.index.dtype, weights.index.dtype) == (np.uint16, np.float32)
    assert np.array_equal(tokens.sequence_lengths, weights.sequence_lengths)
    assert np.array_equal(tokens.document_indices, np.arange(len(RECORDS) + 1))
    for record, ids, weight in zip(RECORDS, tokens, weights, strict=True):
        answers = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        assert weight[0] == 0
        assert trained_texts(ids.tolist(), weight.tolist(), tokenizer) == [
            f"{answer}<|im_end|>" for answer in answers
        ]


def test_the_description_counts_what_is_there(run: Run, tmp_path: Path, chat_model: Path) -> None:
    summary = run(RECORDS, source_key="kind", max_length=4096)
    pairs = read_pairs(tmp_path / "out")
    description = json.loads((tmp_path / "out.json").read_text())
    lengths = [len(ids) for ids, _ in pairs]
    trained = sum(weight > 0 for _, weights in pairs for weight in weights)
    report, options = description.pop("report"), description.pop("options")
    checked = {".bin", ".idx", "_weights.bin", "_weights.idx"}
    assert description.pop("files").keys() == checked
    assert description == {
        "format": "soaes-sft",
        "version": 1,
        "sources": ["law", "经济"],
        "conversations": 60,
        "tokens": sum(lengths),
        "trained_tokens": trained,
        "longest": max(lengths),
        "tokenizer_path": str(chat_model / "tokenizer.json"),
        "tokenizer_sha256": sha256_file(chat_model / "tokenizer.json"),
        "template_sha256": sha256(CHATML.encode()).hexdigest(),
    }
    assert options["train_on"] == "all"
    assert options["max_length"] == 4096
    assert report["end_of_turn"] == "<|im_end|>"
    assert report["turns"] == report["trained_turns"] == 120
    assert report["trained_share"] == round(trained / sum(lengths), 6)
    assert report["length_quantiles"]["50%"] == sorted(lengths)[29]
    assert report["length_quantiles"]["100%"] == max(lengths)
    assert sum(report["length_histogram"].values()) == 60
    assert all(int(bound) / 2 < max(lengths) for bound in report["length_histogram"])
    assert summary.report.sources["law"].conversations == 30
    assert sum(source["tokens"] for source in report["sources"].values()) == sum(lengths)
    assert sum(source["trained_tokens"] for source in report["sources"].values()) == trained


def test_one_altered_byte_is_found_by_its_checksum(run: Run, tmp_path: Path) -> None:
    run(RECORDS)
    for prefix in (tmp_path / "out", tmp_path / "out_weights"):
        assert inspect(prefix).verify() == ".bin and .idx are as the manifest says"
        assert inspect(prefix).manifest.path == tmp_path / "out.json"
    assert inspect(tmp_path / "out").document(0).startswith("<|im_start|>")
    weights = tmp_path / "out_weights.bin"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"out_weights\.bin: found other bytes between 0 and"):
        inspect(tmp_path / "out_weights").verify()


def test_conversations_are_neither_merged_nor_split_without_their_weights(
    run: Run, tmp_path: Path
) -> None:
    run(RECORDS)
    for prefix in (tmp_path / "out", tmp_path / "out_weights"):
        with pytest.raises(UserError, match=r"found conversations, by .*out\.json"):
            merge([prefix], tmp_path / "merged")
        with pytest.raises(UserError, match=r"found conversations, by .*out\.json"):
            split(prefix, {"a": 0.5, "b": 0.5}, prefix)
    assert outputs(tmp_path) == OUTPUTS


def test_sources_are_numbered_by_their_first_conversation(run: Run, tmp_path: Path) -> None:
    run(RECORDS, source_key="kind", partitions=5)
    sources = np.load(tmp_path / "out_sources.npy")
    assert sources.dtype == np.uint16
    assert sources.tolist() == [k % 2 for k in range(60)]


@pytest.mark.parametrize(("options", "name"), [({}, "out"), ({"source": "国资"}, "国资")])
def test_one_source_has_a_name(run: Run, options: dict[str, str], name: str) -> None:
    assert list(run(RECORDS, **options).report.sources) == [name]


def test_more_sources_than_numbers_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sft.merge.LARGEST_SOURCE", 58)
    records = [{**record, "kind": f"source {n}"} for n, record in enumerate(RECORDS)]
    assert len(run(records[:59], source_key="kind").report.sources) == 59
    with pytest.raises(UserError, match="--source-key kind: found more than 59 different sources"):
        run(records, source_key="kind", overwrite=True)


def test_compressed_and_parquet_files_hold_the_same_conversations(run: Run, tmp_path: Path) -> None:
    run(RECORDS, source_key="kind")
    content = (tmp_path / "chats.jsonl").read_bytes()
    (tmp_path / "chats.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "chats.jsonl.zst").write_bytes(zstandard.compress(content))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "chats.parquet", row_group_size=7)
    for name in ("chats.jsonl.gz", "chats.jsonl.zst", "chats.parquet"):
        run(tmp_path / name, source_key="kind", output_prefix=tmp_path / "other")
        assert dataset_bytes(tmp_path / "other")[:-1] == dataset_bytes(tmp_path / "out")[:-1]
        for suffix in SUFFIXES:
            (tmp_path / f"other{suffix}").unlink()


def test_parquet_rows_of_mixed_forms(run: Run, tmp_path: Path) -> None:
    rows = [
        {"instruction": "Q", "output": "A", "messages": None},
        {"instruction": None, "output": None, "messages": chat("Q", "A")["messages"]},
        {"instruction": None, "output": None, "messages": None},
    ]
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(UserError, match=r"chats\.parquet: row 3: found the keys of nothing"):
        run(path)
    summary = run(path, skip_bad_lines=tmp_path / "bad.jsonl")
    first, second = read_pairs(tmp_path / "out")
    assert first == second
    assert summary.report.bad_lines == {"unknown_format": 1}
    [bad] = map(json.loads, (tmp_path / "bad.jsonl").open())
    assert json.loads(bad["content"]) == rows[2]


BAD = [
    (chat("Q", "<|im_end|>"), "control_token"),
    (chat("Q"), "no_answer"),
    ({"text": "x"}, "unknown_format"),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_line_stops_the_run_and_leaves_nothing(
    run: Run, tmp_path: Path, record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError) as error:
        run([*RECORDS, record, *RECORDS], partitions=4)
    assert error.value.where == f"{tmp_path / 'chats.jsonl'}:61"
    assert outputs(tmp_path) == []


def test_bad_lines_are_collected_in_the_order_of_the_input(run: Run, tmp_path: Path) -> None:
    bad = [record for record, _ in BAD]
    lines = [json.dumps(r) for r in [bad[0], *RECORDS[:20], bad[1], bad[2], *RECORDS[20:]]]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join([lines[0], "{", "", *lines[1:], '{"messages": "\\ud800"}']))
    expected = {
        **{reason: 1 for _, reason in BAD},
        **{"invalid_json": 1, "wrong_shape": 1},
    }
    collected = []
    for workers in (1, 2):
        file = tmp_path / f"bad-{workers}.jsonl"
        summary = run(
            path, workers=workers, partitions=5, skip_bad_lines=file, overwrite=True, source="s"
        )
        assert summary.report.bad_lines == expected
        assert (summary.report.conversations, summary.report.blank_lines) == (60, 1)
        collected.append(file.read_bytes())
    assert collected[0] == collected[1]
    records = [json.loads(line) for line in collected[0].splitlines()]
    assert [(r["line"], r["reason"]) for r in records] == [
        (1, "control_token"),
        (2, "invalid_json"),
        (24, "no_answer"),
        (25, "unknown_format"),
        (66, "wrong_shape"),
    ]
    good = run(RECORDS, output_prefix=tmp_path / "good", source="s")
    assert dataset_bytes(good.prefix)[:5] == dataset_bytes(tmp_path / "out")[:5]


def test_a_template_that_rewrites_is_named_with_file_line_and_turn(
    run: Run, tmp_path: Path
) -> None:
    model = save_chat_model(tmp_path / "forgetful", FORGETFUL)
    records = [chat("Q", "A"), chat("Q", "<think>x</think>A", "Q", "B")]
    with pytest.raises(UserError, match=r"turn 2 \(assistant\) that is rendered as") as error:
        run(records, tokenizer_model=model)
    assert error.value.where == f"{tmp_path / 'chats.jsonl'}:2"
    assert "--train-on last" in error.value.fix
    assert run(records, tokenizer_model=model, train_on="last").report.trained_turns == 2


def test_a_template_without_end_of_turn_is_refused_before_reading(run: Run, tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "endless", ENDLESS)
    with pytest.raises(UserError, match="without a special token") as error:
        run([{"text": "not even a conversation"}], tokenizer_model=model)
    assert error.value.where == str(model / "tokenizer_config.json")


def test_a_template_with_todays_date_needs_one(
    run: Run, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = save_chat_model(tmp_path / "dated", "{{ strftime_now('%Y-%m-%d') }}\n" + CHATML)
    with pytest.raises(UserError, match="Give the date to write with --date"):
        run(RECORDS, tokenizer_model=model)
    run(RECORDS, tokenizer_model=model, date=date(2025, 3, 9), workers=2, partitions=2)
    assert tokenizer.decode(read_pairs(tmp_path / "out")[0][0]).startswith("2025-03-09")


LONG = [chat("Q", "A"), chat("Q", "long " * 40), chat("long " * 40, "A")]


def test_a_conversation_that_is_too_long_is_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found \d+ tokens; expected .* within --max-length") as e:
        run(LONG, max_length=80)
    assert e.value.where == f"{tmp_path / 'chats.jsonl'}:2"
    summary = run(LONG, max_length=80, skip_bad_lines=tmp_path / "bad.jsonl")
    assert summary.report.bad_lines == {"too_long": 2}


def test_a_conversation_that_is_too_long_can_be_dropped(run: Run, tmp_path: Path) -> None:
    report = run(LONG, max_length=80, too_long="drop").report
    assert (report.conversations, report.dropped, report.truncated) == (1, {"too_long": 2}, 0)
    exact = report.longest
    assert run(LONG[:1], max_length=exact, overwrite=True).report.conversations == 1


def test_a_conversation_that_is_too_long_can_be_cut(
    run: Run, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    run(LONG)
    whole = read_pairs(tmp_path / "out")
    report = run(LONG, max_length=80, too_long="truncate", overwrite=True).report
    assert (report.conversations, report.truncated, report.longest) == (2, 1, 80)
    assert report.dropped == {"cut_before_answer": 1}
    cut = read_pairs(tmp_path / "out")
    assert cut[0] == whole[0]
    assert cut[1] == (whole[1][0][:80], whole[1][1][:80])
    assert not trained_texts(*cut[1], tokenizer)[0].endswith("<|im_end|>")


def test_answers_that_are_cut_away_are_not_counted(run: Run) -> None:
    record = chat("Q", "A", "Q " * 60, "B")
    report = run([record], max_length=60, too_long="truncate").report
    assert (report.turns, report.trained_turns) == (2, 1)


def test_records_without_a_trained_token_are_dropped_and_counted(run: Run, tmp_path: Path) -> None:
    untrained = chat("Q", "A")
    untrained["messages"][1]["weight"] = 0
    report = run([untrained, *RECORDS]).report
    assert (report.conversations, report.dropped) == (60, {"no_trained_token": 1})
    with pytest.raises(UserError, match=r"0 tokens to train on .*\(left out: 2 no_trained_token"):
        run([untrained, untrained], output_prefix=tmp_path / "none")
    with pytest.raises(UserError, match=r"left out: nothing; 0 blank lines"):
        run([], output_prefix=tmp_path / "none")


def test_weights_reach_the_dataset(run: Run, tmp_path: Path) -> None:
    run([chat("Q", "A", w=0.25), chat("Q", "B", w=3)], weight_key="w")
    first, second = read_pairs(tmp_path / "out")
    assert (set(first[1]), set(second[1])) == ({0, 0.25}, {0, 3})
