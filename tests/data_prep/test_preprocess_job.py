"""A conversion as a job: workers, stops, resumes, refusals, and what it leaves on the disk."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import work_directory
from data_prep.convert import ConvertOptions, convert
from data_prep.indexed import open_indexed
from data_prep.preprocess_data import main
from data_prep.ranges import InputRange
from data_prep.shards import ShardJob, write_shard
from megatron_soaes.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"document {n} 中央企业深化改革 {n * n} " * (n % 9) for n in range(300)]


@pytest.fixture
def options(corpus: Callable[..., Path], tmp_path: Path, model: Path) -> ConvertOptions:
    inputs = (str(corpus(TEXTS)),)
    return ConvertOptions(inputs, tmp_path / "out", model, append_eod=True, partitions=6)


def replace(options: ConvertOptions, **changes: Any) -> ConvertOptions:
    return ConvertOptions(**{**vars(options), **changes})


def dataset_bytes(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def reference_bytes(options: ConvertOptions) -> tuple[bytes, bytes]:
    prefix = options.output_prefix.with_name("reference")
    changes = {"output_prefix": prefix, "workers": 1, "partitions": 1, "skip_bad_lines": None}
    return dataset_bytes(convert(replace(options, **changes)).datasets["text"])


def outputs(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name.startswith(("out", ".out")))


OUTPUTS = ["out.manifest.json", "out_text_document.bin", "out_text_document.idx"]


@pytest.mark.parametrize("count", [2, 3])
def test_workers_do_not_change_the_bytes(
    options: ConvertOptions, tmp_path: Path, count: int
) -> None:
    summary = convert(replace(options, workers=count))
    assert dataset_bytes(summary.datasets["text"]) == reference_bytes(options)
    assert (summary.documents, summary.empty_documents) == (300, {"text": 34})
    assert outputs(tmp_path) == OUTPUTS


def command(options: ConvertOptions) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "data_prep" / "preprocess_data.py")),
        *("--input", *options.inputs),
        *("--tokenizer-model", str(options.tokenizer_model)),
        *("--output-prefix", str(options.output_prefix)),
        *("--partitions", str(options.partitions), "--workers", str(options.workers)),
        *("--backend", options.backend, "--append-eod"),
    ]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("victim", "number", "code", "message"),
    [
        ("run", signal.SIGKILL, -9, ""),
        ("run", signal.SIGTERM, 75, "ranges are finished and kept in"),
        ("worker", signal.SIGKILL, 1, "a worker process ended with code -9"),
    ],
)
def test_a_killed_run_goes_on_where_it_was(
    *,
    corpus: Callable[..., Path],
    tmp_path: Path,
    model: Path,
    victim: str,
    number: signal.Signals,
    code: int,
    message: str,
) -> None:
    inputs = (str(corpus(TEXTS * 8)),)
    options = ConvertOptions(
        *(inputs, tmp_path / "out", model),
        append_eod=True,
        partitions=30,
        workers=2,
        backend="tokenizers",
    )
    process = subprocess.Popen(command(options), stderr=subprocess.PIPE, text=True)
    work = tmp_path / ".out.work"
    wait_for(lambda: len(list(work.glob("range-*"))) >= 3)
    children = workers_of(process.pid)
    assert len(children) == 2
    os.kill(process.pid if victim == "run" else children[0], number)
    _, errors = process.communicate(timeout=60)
    wait_for(lambda: not any(map(is_alive, children)))

    assert process.returncode == code
    assert message in errors
    assert outputs(tmp_path) == [".out.work"]
    summary = convert(options)
    assert 3 <= summary.ranges_reused < summary.ranges == 30
    assert outputs(tmp_path) == OUTPUTS
    assert dataset_bytes(summary.datasets["text"]) == reference_bytes(options)


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while range `count` is written."""

    def stopping(job: ShardJob, source: InputRange, *rest: Any) -> None:
        write_shard(job, source, *rest)
        if source.index == count:
            raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.workers.write_shard", stopping)


def test_finished_ranges_are_not_read_again(
    options: ConvertOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            convert(options)
    assert "stopped: 4 of 6 ranges are finished" in capsys.readouterr().err
    (options.output_prefix.parent / ".out.work" / ".range-000004.tmp-1").mkdir()
    summary = convert(replace(options, workers=2))
    assert (summary.ranges, summary.ranges_reused) == (6, 4)
    assert dataset_bytes(summary.datasets["text"]) == reference_bytes(options)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"append_eod": False}, "append_eod"),
        ({"partitions": 7}, "partitions"),
        ({"backend": "tokenizers"}, "backend"),
        ({"skip_bad_lines": Path("bad.jsonl")}, "skip_bad_lines"),
        ({"include_special_tokens": False}, "tokenizer"),
    ],
)
def test_the_work_of_another_command_is_not_used(
    options: ConvertOptions,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: dict[str, Any],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            convert(options)
    other = replace(options, **change)
    with pytest.raises(UserError, match=rf"unfinished run of another command \(different: {named}"):
        convert(other)
    assert len(list(tmp_path.glob(".out.work/range-*"))) == 4

    summary = convert(replace(other, overwrite=True))
    assert summary.ranges_reused == 0
    assert dataset_bytes(summary.datasets["text"]) == reference_bytes(other)


def test_work_on_a_changed_corpus_is_not_used(
    options: ConvertOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            convert(options)
    os.utime(options.inputs[0], ns=(1, 1))
    with pytest.raises(UserError, match=r"different: inputs"):
        convert(options)


def test_a_corpus_that_changes_during_the_run_is_noticed(
    options: ConvertOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def touching(job: ShardJob, source: InputRange, *rest: Any) -> None:
        write_shard(job, source, *rest)
        os.utime(source.path, ns=(1, 1))

    monkeypatch.setattr("data_prep.workers.write_shard", touching)
    with pytest.raises(UserError, match="changed while it was converted"):
        convert(options)
    assert outputs(tmp_path) == []


def test_a_second_run_at_the_same_time_is_refused(options: ConvertOptions, tmp_path: Path) -> None:
    (tmp_path / ".out.work").mkdir()
    with (tmp_path / ".out.work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run that is writing there"):
            convert(options)
    assert convert(options).documents == 300


def test_an_existing_output_is_replaced_only_when_asked(
    options: ConvertOptions, tmp_path: Path
) -> None:
    convert(options)
    before = dataset_bytes(options.dataset("text"))
    other = replace(options, append_eod=False)
    with pytest.raises(UserError, match=r"out_text_document\.bin: found an existing file"):
        convert(other)
    assert dataset_bytes(options.dataset("text")) == before
    summary = convert(replace(other, overwrite=True))
    assert dataset_bytes(summary.datasets["text"]) == reference_bytes(other) != before
    assert outputs(tmp_path) == OUTPUTS


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_run_killed_while_outputs_appear_leaves_no_mixture(
    options: ConvertOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    convert(replace(options, append_eod=False))
    left = [moves]
    move = work_directory._move

    def stopping(source: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(work_directory, "_move", stopping)
        stopped = replace(options, overwrite=True, skip_bad_lines=tmp_path / "bad.jsonl")
        with pytest.raises(KeyboardInterrupt):
            convert(stopped)
    order = ["out_text_document.bin", "out_text_document.idx"][:moves]
    assert outputs(tmp_path) == [".out.work", *order]

    summary = convert(stopped)
    assert outputs(tmp_path) == OUTPUTS
    assert dataset_bytes(summary.datasets["text"]) == reference_bytes(options)
    assert (tmp_path / "bad.jsonl").read_bytes() == b""


def test_bad_lines_never_land_on_a_corpus(options: ConvertOptions) -> None:
    with pytest.raises(UserError, match="an input of this run"):
        convert(replace(options, skip_bad_lines=Path(options.inputs[0]), overwrite=True))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"workers": 0}, "--workers"),
        ({"partitions": 0}, "--partitions"),
        ({"log_interval": 0}, "--log-interval"),
        ({"json_keys": ("text", "text")}, "--json-keys"),
        ({"json_keys": ("a/b",)}, "--json-keys"),
    ],
)
def test_bad_options_are_named(options: ConvertOptions, change: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as error:
        convert(replace(options, **change))
    assert error.value.where == where


def test_manifest_says_what_was_read_and_written(
    corpus: Callable[..., Path], tmp_path: Path, model: Path
) -> None:
    path = corpus(["one", "", "three", None])
    with path.open("a") as stream:
        stream.write("\n")
    options = ConvertOptions(
        (str(path),), tmp_path / "out", model, skip_bad_lines=tmp_path / "bad.jsonl"
    )
    summary = convert(options)
    manifest = json.loads(summary.manifest.read_text())
    status = path.stat()
    assert summary.manifest == tmp_path / "out.manifest.json"
    assert manifest["run"]["inputs"] == [
        {"path": str(path), "size": status.st_size, "modified_ns": status.st_mtime_ns}
    ]
    assert len(manifest["run"]["tokenizer"]["sha256"]) == 64
    assert manifest["documents"] == 3
    assert manifest["empty_documents"] == {"text": 1}
    assert manifest["blank_lines"] == 1
    assert manifest["bad_lines"] == {"null_value": 1}
    assert manifest["tokens"] == {"text": len(open_indexed(summary.datasets["text"]).tokens)}
    assert manifest["backend"] == "fastokens"
    assert manifest["seconds"] == summary.seconds > 0


def test_progress_is_counted_in_documents(
    options: ConvertOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    convert(replace(options, log_interval=120), log=lines.append)
    progress = [line for line in lines if "MB/s" in line]
    assert len(progress) == 2
    assert all(" s left" in line and " MB, " in line for line in progress)


def test_errors_of_a_worker_carry_its_trace(options: ConvertOptions, tmp_path: Path) -> None:
    """The tokenizer file goes away between the check and the start of the workers."""
    model = tmp_path / "model"
    model.mkdir()
    for path in options.tokenizer_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())

    def remove_tokenizer(line: str) -> None:
        if line.startswith("encoder:"):
            (model / "tokenizer.json").unlink()

    with pytest.raises(RuntimeError, match=r"a worker failed on range \d of .*corpus\.jsonl"):
        convert(replace(options, tokenizer_model=model, workers=2), log=remove_tokenizer)


def test_command_line(
    options: ConvertOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(options)[2:]
    assert main(arguments) == 0
    assert "300 documents" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "error: " in capsys.readouterr().err
    assert dataset_bytes(options.dataset("text")) == reference_bytes(options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split-sentences"], "--split-sentences: found"),
        (["--tokenizer-type", "SentencePieceTokenizer"], "expected HuggingFaceTokenizer"),
    ],
)
def test_what_only_megatrons_tool_does_is_refused(
    options: ConvertOptions, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([*command(options)[2:], *flags]) == 2
    assert message in capsys.readouterr().err


def test_runs_as_a_module_without_heavy_imports(options: ConvertOptions, tmp_path: Path) -> None:
    script = (
        "import sys; from data_prep.preprocess_data import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'megatron', 'transformers', 'datatrove', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    quiet = subprocess.run(
        [sys.executable, "-c", script, *command(options)[2:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (quiet.returncode, quiet.stderr.count("imported")) == (0, 0)
    module = [sys.executable, "-m", "data_prep.preprocess_data", "--help"]
    shown = subprocess.run(module, cwd=ROOT, capture_output=True, text=True, check=True)
    for flag in ("--input", "--json-keys", "--append-eod", "--skip-bad-lines", "--partitions"):
        assert flag in shown.stdout
