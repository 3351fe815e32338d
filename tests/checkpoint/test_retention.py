"""Which checkpoints stay, and that nothing half-deleted or half-written looks like one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.retention import delete_surplus, surplus

ITERATIONS = st.sets(st.integers(1, 60), min_size=1)


@given(ITERATIONS, st.data(), st.integers(1, 5), st.none() | st.integers(1, 20))
def test_what_is_deleted_is_neither_new_nor_marked(
    iterations: set[int], data: st.DataObject, keep_last: int, keep_every: int | None
) -> None:
    newest = data.draw(st.sampled_from(sorted(iterations)))
    deleted = surplus(iterations, newest, keep_last, keep_every)
    complete = sorted(i for i in iterations if i <= newest)
    assert newest not in deleted
    assert not set(deleted) & set(complete[-keep_last:])
    assert all(i <= newest and (keep_every is None or i % keep_every) for i in deleted)
    kept = [i for i in complete if i not in deleted]
    assert len([i for i in kept if keep_every is None or i % keep_every]) <= keep_last


def test_by_default_everything_is_kept() -> None:
    assert surplus(range(1, 100), 99, None, None) == []


def make(root: Path, *iterations: int) -> Path:
    """A root with an empty checkpoint for each iteration; the pointer is on the last."""
    for iteration in iterations:
        folder = directory.iteration_directory(root, iteration)
        folder.mkdir(parents=True)
        (folder / "metadata.json").touch()
    directory.move_pointer(root, iterations[-1])
    return root


def test_the_last_ones_and_every_nth_stay(tmp_path: Path) -> None:
    root = make(tmp_path, 5, 10, 15, 20, 25, 30)
    assert delete_surplus(root, keep_last=2, keep_every=10) == [5, 15]
    assert directory.iterations(root) == [10, 20, 25, 30]
    assert directory.latest_iteration(root) == 30


def test_a_checkpoint_beyond_the_pointer_neither_counts_nor_goes(tmp_path: Path) -> None:
    root = make(tmp_path, 1, 2, 3)
    directory.move_pointer(root, 2)
    assert delete_surplus(root, keep_last=1, keep_every=None) == [1]
    assert directory.iterations(root) == [2, 3]


def test_a_deletion_that_is_cut_short_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path, 1, 2)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            delete_surplus(root, keep_last=1, keep_every=None)
    assert directory.iterations(root) == [2]
    assert len(directory.remove_leftovers(root)) == 1
    assert not list(root.glob(".*"))


def test_what_dead_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    root = make(tmp_path, 1)
    (root / "hf").mkdir()
    token = directory.new_token()
    unfinished = directory.temporary_directory(root, 2, token)
    unfinished.mkdir()
    (unfinished / "__0_0.distcp").touch()
    (root / ".latest_checkpointed_iteration.txt.tmp-123").touch()
    assert directory.temporary_directory(root, 2, directory.new_token()) != unfinished
    removed = {path.name for path in directory.remove_leftovers(root)}
    assert removed == {unfinished.name, ".latest_checkpointed_iteration.txt.tmp-123"}
    assert {path.name for path in root.iterdir()} == {"hf", "iter_0000001", directory.TRACKER}


def test_nothing_is_left_by_a_run_that_never_was(tmp_path: Path) -> None:
    assert directory.remove_leftovers(tmp_path / "none") == []
    assert delete_surplus(tmp_path / "none", keep_last=1, keep_every=None) == []
