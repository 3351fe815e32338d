from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.rehearsal.general import find_sources, gather

SUBJECTS = ("parser", "writer", "reader", "server", "client", "buffer", "stream", "logger")


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """Sixty small packages whose modules have docstrings, and files that must not matter."""
    root = tmp_path / "site"
    for i in range(60):
        package = root / f"package{i}"
        package.mkdir(parents=True)
        first, second = SUBJECTS[i % 8], SUBJECTS[i // 8]
        sentences = "\n\n".join(
            f"The {first} is {verb} by the {second} if the {'very ' * (i // 2)}first of them fails."
            for verb in ("opened", "closed", "flushed", "checked")
        )
        (package / "module.py").write_text(f'def f():\n    """{sentences}"""\n', encoding="utf-8")
    (root / "broken.py").write_text('"""Text."""\ndef (', encoding="utf-8")
    (root / "latin.py").write_bytes(b'"""caf\xe9"""')
    tests = root / "package0" / "tests"
    tests.mkdir()
    (tests / "test_x.py").write_text('"""Never read."""', encoding="utf-8")
    metadata = root / "thing-1.0.dist-info"
    metadata.mkdir()
    body = "The thing is a tool for the work that is done with it by many people. " * 4
    (metadata / "METADATA").write_text(f"Name: thing\n\n{body}", encoding="utf-8")
    return {"packages": root}


def test_sources_skip_tests_and_name_their_package(roots: dict[str, Path]) -> None:
    sources = find_sources(roots)
    assert {s.package for s in sources} >= {"package0", "package59", "thing", "broken"}
    assert not any("test_x" in s.name for s in sources)


def test_documents_come_from_docstrings_and_metadata(roots: dict[str, Path]) -> None:
    text = gather(1, roots)
    names = {row["source"] for row in text.train + text.valid}
    assert "packages/thing-1.0.dist-info/METADATA" in names
    assert "packages/package3/module.py" in names
    assert text.characters_by_package["package3"] > 0


def test_training_and_validation_share_no_source_and_no_paragraph(roots: dict[str, Path]) -> None:
    text = gather(1, roots)
    assert text.train
    assert text.valid
    assert not {r["source"] for r in text.train} & {r["source"] for r in text.valid}
    train = {p for row in text.train for p in row["text"].split("\n")}
    valid = {p for row in text.valid for p in row["text"].split("\n")}
    assert not train & valid


def test_a_copied_file_is_dropped_as_duplicate(roots: dict[str, Path]) -> None:
    original = roots["packages"] / "package1" / "module.py"
    before = gather(1, roots)
    (original.parent / "copy.py").write_bytes(original.read_bytes())
    after = gather(1, roots)
    assert after.dropped["duplicate"] == before.dropped["duplicate"] + 4
    assert len(after.train + after.valid) == len(before.train + before.valid)


def test_the_size_is_bounded(roots: dict[str, Path]) -> None:
    text = gather(0.002, roots)
    longest = max(len(row["text"].encode()) for row in text.train + text.valid)
    size = sum(len(row["text"].encode()) for row in text.train + text.valid)
    assert 2000 <= size < 2000 + longest


def test_worker_processes_change_nothing(roots: dict[str, Path]) -> None:
    assert gather(1, roots, workers=2) == gather(1, roots, workers=1)
