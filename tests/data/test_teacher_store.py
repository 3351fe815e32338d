"""A teacher's answers on disk: what was captured is what is read, or the store is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_soaes.data.teacher_store import (
    Answers,
    Capture,
    Layout,
    Origin,
    TeacherStore,
    bytes_per_token,
)
from megatron_soaes.errors import UserError

ORIGIN = Origin(tokenizer_sha256="ab" * 32, teacher="target-step-600", data="cd", temperature=1.0)
LAYOUT = Layout(kind="top_k", entries=4, samples=7, positions=5, samples_per_shard=3)


def answers(samples: int, layout: Layout = LAYOUT, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, layout.positions, layout.entries)
    return Answers(
        torch.randint(152_064, shape, generator=generator),
        -10 * torch.rand(shape, generator=generator),
        -20 * torch.rand(shape[:2], generator=generator),
    )


def write_store(directory: Path, layout: Layout = LAYOUT, origin: Origin = ORIGIN) -> Answers:
    """A finished store; returns all it holds."""
    everything = answers(layout.samples, layout)
    capture = Capture(directory, origin, layout)
    for shard in capture.missing():
        write_shard(capture, shard, everything, layout)
    capture.finish()
    return everything


def write_shard(capture: Capture, shard: int, everything: Answers, layout: Layout = LAYOUT) -> None:
    first = shard * layout.samples_per_shard
    rows = slice(first, first + layout.samples_of(shard))
    parts = everything.ids[rows], everything.log_probs[rows], everything.rest[rows]
    capture.write(shard, Answers(*parts))


def description(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_any_sample_is_read_as_it_was_captured(tmp_path: Path, dtype: str) -> None:
    layout = replace(LAYOUT, dtype=dtype)
    everything = write_store(tmp_path, layout)
    store = TeacherStore(tmp_path, ORIGIN)
    store.verify()
    assert len(store) == 7
    rounded = everything.log_probs.to({"fp16": torch.float16, "bf16": torch.bfloat16}[dtype])
    for sample in (6, 0, 3, 2, 6):
        found = store[sample]
        assert torch.equal(found.ids, everything.ids[sample])
        assert torch.equal(found.log_probs, rounded[sample].float())
        assert torch.equal(found.rest, everything.rest[sample])


@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(1, 9),
    per_shard=st.integers(1, 10),
    positions=st.integers(1, 4),
    entries=st.integers(1, 5),
)
def test_any_layout(
    tmp_path_factory: pytest.TempPathFactory,
    samples: int,
    per_shard: int,
    positions: int,
    entries: int,
) -> None:
    folder = tmp_path_factory.mktemp("store")
    layout = Layout("sampled", entries, samples, positions, per_shard, exponent=0.8)
    everything = write_store(folder, layout)
    store = TeacherStore(folder, ORIGIN)
    assert store.layout == layout
    found = torch.stack([store[sample].ids for sample in range(samples)])
    assert torch.equal(found, everything.ids)
    held = sum(file.stat().st_size for file in folder.glob("*.bin"))
    assert held == samples * positions * bytes_per_token(entries)
    with pytest.raises(IndexError):
        store[samples]


def test_sizes_that_are_printed_before_a_run() -> None:
    assert bytes_per_token(64) == 388
    assert bytes_per_token(12) == 76


def test_the_manifest_says_what_the_store_is(tmp_path: Path) -> None:
    write_store(tmp_path)
    found = description(tmp_path / "manifest.json")
    assert found["origin"]["tokenizer_sha256"] == "ab" * 32
    assert found["origin"]["teacher"] == "target-step-600"
    assert found["layout"]["kind"] == "top_k"
    assert found["layout"]["dtype"] == "fp16"
    assert list(found["shards"]) == [f"shard-0000{shard}.bin" for shard in range(3)]


def test_an_interrupted_capture_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = answers(7)
    capture = Capture(tmp_path, ORIGIN, LAYOUT)
    write_shard(capture, 1, everything)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_shard(capture, 0, everything)
    monkeypatch.undo()
    assert not (tmp_path / "shard-00000.bin").exists()
    written = (tmp_path / "shard-00001.bin").stat().st_mtime_ns

    resumed = Capture(tmp_path, ORIGIN, LAYOUT)
    assert resumed.missing() == [0, 2]
    with pytest.raises(UserError, match=r"no shard-00000\.bin"):
        resumed.finish()
    with pytest.raises(UserError, match="whose capture has ended"):
        TeacherStore(tmp_path, ORIGIN)
    for shard in resumed.missing():
        write_shard(resumed, shard, everything)
    resumed.finish()
    assert (tmp_path / "shard-00001.bin").stat().st_mtime_ns == written
    store = TeacherStore(tmp_path, ORIGIN)
    store.verify()
    assert torch.equal(store[2].ids, everything.ids[2])


def test_what_was_deleted_or_cut_short_is_captured_again(tmp_path: Path) -> None:
    everything = write_store(tmp_path)
    (tmp_path / "shard-00002.json").unlink()
    (tmp_path / "shard-00001.bin").unlink()
    (tmp_path / "shard-00000.bin").write_bytes(b"short")
    capture = Capture(tmp_path, ORIGIN, LAYOUT)
    assert capture.missing() == [0, 1, 2]
    for shard in capture.missing():
        write_shard(capture, shard, everything)
    capture.finish()
    TeacherStore(tmp_path, ORIGIN).verify()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(ORIGIN, tokenizer_sha256="00" * 32), "tokenizer_sha256"),
        (replace(ORIGIN, teacher="target-step-500"), "teacher target-step-600"),
        (replace(ORIGIN, data="ef"), "data"),
        (replace(ORIGIN, temperature=2.0), r"temperature 1\.0.*temperature 2\.0"),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path: Path, other: Origin, named: str) -> None:
    write_store(tmp_path)
    with pytest.raises(UserError, match=named):
        TeacherStore(tmp_path, other)
    with pytest.raises(UserError, match=named):
        Capture(tmp_path, other, LAYOUT)


def test_shards_of_another_layout_are_not_gone_on_with(tmp_path: Path) -> None:
    write_store(tmp_path)
    with pytest.raises(UserError, match=r"layout\.entries 4.*layout\.entries 8"):
        Capture(tmp_path, ORIGIN, replace(LAYOUT, entries=8))


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path)
    file = tmp_path / "shard-00001.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.bin: found 419 bytes; expected 420"):
        TeacherStore(tmp_path, ORIGIN)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path)
    (tmp_path / "shard-00000.bin").unlink()
    with pytest.raises(UserError, match=r"shard-00000\.bin: found no such shard"):
        TeacherStore(tmp_path, ORIGIN)


def test_an_altered_shard_is_found(tmp_path: Path) -> None:
    write_store(tmp_path)
    file = tmp_path / "shard-00001.bin"
    content = bytearray(file.read_bytes())
    content[17] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001\.bin: found SHA-256"):
        TeacherStore(tmp_path, ORIGIN).verify()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other", "version": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    write_store(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="damaged or foreign"):
        TeacherStore(tmp_path, ORIGIN)


def test_a_manifest_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path)
    file = tmp_path / "manifest.json"
    content = description(file)
    content["layout"]["compression"] = "zip"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="compression"):
        TeacherStore(tmp_path, ORIGIN)


def test_answers_of_another_shape_are_refused(tmp_path: Path) -> None:
    capture = Capture(tmp_path, ORIGIN, LAYOUT)
    with pytest.raises(ValueError, match=r"not \(1, 5, 4\)"):
        capture.write(2, answers(3))
    with pytest.raises(ValueError, match="not"):
        capture.write(2, replace(answers(1), rest=torch.zeros(1, 1)))
