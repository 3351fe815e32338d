"""The conversion of conversations as a job: workers, stops, refusals, the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from data_prep.preprocess_sft import main, parse_options
from data_prep.ranges import InputRange
from data_prep.sft.convert import SFTOptions, SFTSummary, convert_sft
from data_prep.shards import ShardJob, write_shard
from megatron_soaes.errors import UserError
from tests.data_prep.sft_material import (
    CHATML,
    FORGETFUL,
    OUTPUTS,
    RECORDS,
    chat,
    dataset_bytes,
    outputs,
    save_chat_model,
    write_jsonl,
)

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., SFTSummary]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), CHATML)


@pytest.fixture
def run(tmp_path: Path, chat_model: Path) -> Run:
    """Converts `RECORDS`; keyword arguments are those of `SFTOptions`."""
    path = write_jsonl(tmp_path / "chats.jsonl", RECORDS)

    def convert(**options: Any) -> SFTSummary:
        arguments = {"output_prefix": tmp_path / "out", "tokenizer_model": chat_model, **options}
        return convert_sft(SFTOptions((str(path),), **arguments), log=lambda line: None)

    return convert


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_and_ranges_do_not_change_the_bytes(run: Run, tmp_path: Path, workers: int) -> None:
    run(source_key="kind")
    expected = dataset_bytes(tmp_path / "out")
    run(source_key="kind", workers=workers, partitions=7, overwrite=True)
    assert dataset_bytes(tmp_path / "out") == expected


def test_files_are_cut_into_smaller_ranges_than_text(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sft.convert.RANGE_BYTES", 2000)
    assert run().ranges > 3


def test_backends_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    assert run(source="s").backend == "fastokens"
    slow = run(source="s", backend="tokenizers", output_prefix=tmp_path / "slow")
    assert slow.backend == "tokenizers"
    assert dataset_bytes(tmp_path / "slow") == dataset_bytes(tmp_path / "out")


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while range `count` is written."""

    def stopping(job: ShardJob[Any], source: InputRange, *rest: Any) -> None:
        write_shard(job, source, *rest)
        if source.index == count:
            raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.workers.write_shard", stopping)


def test_a_stopped_run_goes_on_where_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"partitions": 6, "source_key": "kind"}
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run(**options)
    assert outputs(tmp_path) == [".out.work"]
    for change in ({"train_on": "last"}, {"system": "S"}, {"max_length": 50}):
        with pytest.raises(UserError, match=f"different: {next(iter(change))}"):
            run(**options, **change)
    summary = run(workers=2, **options)
    assert (summary.ranges, summary.ranges_reused) == (6, 4)
    stopped = dataset_bytes(tmp_path / "out")
    run(source_key="kind", overwrite=True)
    assert dataset_bytes(tmp_path / "out") == stopped


def test_work_with_another_template_is_not_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "model", CHATML)
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            run(partitions=3, tokenizer_model=model)
    (model / "chat_template.jinja").write_text(FORGETFUL)
    with pytest.raises(UserError, match="different: template"):
        run(partitions=3, tokenizer_model=model)


def test_an_existing_dataset_is_replaced_only_when_asked(run: Run, tmp_path: Path) -> None:
    run()
    with pytest.raises(UserError, match=r"out\.bin: found an existing file"):
        run()
    run(overwrite=True)
    assert outputs(tmp_path) == OUTPUTS


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"workers": 0}, "--workers"),
        ({"max_length": 1}, "--max-length"),
        ({"too_long": "drop"}, "--too-long drop"),
        ({"source": "a", "source_key": "b"}, "--source"),
        ({"source": " "}, "--source"),
        ({"system": ""}, "--system"),
    ],
)
def test_bad_options_are_named(run: Run, options: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as error:
        run(**options)
    assert error.value.where == where


LONG = [chat("Q", "long " * 40), chat("long " * 40, "A")]


def test_command_line(tmp_path: Path, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *("--input", str(write_jsonl(tmp_path / "chats.jsonl", [*RECORDS, *LONG]))),
        *("--tokenizer-model", str(chat_model), "--output-prefix", str(tmp_path / "out")),
        *("--source", "all", "--max-length", "210", "--too-long", "drop"),
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for text in ("60 conversations", "source all: 60", "2 conversations left out: too_long",
                 "each up to <|im_end|>", "out.json"):  # fmt: skip
        assert text in shown
    assert main(arguments) == 2
    assert "error: " in capsys.readouterr().err


def test_flags_reach_the_options(tmp_path: Path) -> None:
    flags = {
        **{"--format": "alpaca", "--train-on": "last", "--system": "S", "--weight-key": "w"},
        **{"--source-key": "k", "--max-length": "9", "--too-long": "truncate"},
        **{"--date": "2025-03-09", "--workers": "3", "--partitions": "4", "--log-interval": "5"},
        **{"--backend": "tokenizers", "--skip-bad-lines": "bad.jsonl"},
    }
    required = ["--input", "a", "b", "--tokenizer-model", "m", "--output-prefix", "p"]
    options = parse_options([*required, *(x for pair in flags.items() for x in pair)])
    assert options == SFTOptions(
        *(("a", "b"), Path("p"), Path("m"), "alpaca", "last", "S", "w", "k", None, 9, "truncate"),
        *(date(2025, 3, 9), 3, 4, 5, "tokenizers", Path("bad.jsonl")),
    )


def test_runs_without_heavy_imports(tmp_path: Path, chat_model: Path) -> None:
    script = (
        "import sys; from data_prep.preprocess_sft import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'megatron', 'transformers', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    path = write_jsonl(tmp_path / "chats.jsonl", RECORDS)
    flags = ["--input", str(path), "--tokenizer-model", str(chat_model), "--output-prefix"]
    ran = subprocess.run(
        [sys.executable, "-c", script, *flags, str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr.count("imported")) == (0, 0)
