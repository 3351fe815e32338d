"""Local processes: what they are told, and how they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.accelerator import copied
from megatron_soaes.accelerator import launch as launching
from megatron_soaes.accelerator.copied import copied_to
from megatron_soaes.accelerator.forked import ForkedProcess
from megatron_soaes.accelerator.launch import Worker, free_port, launch
from megatron_soaes.errors import ExitCode

RANK = "tests.accelerator.rank"


def run(folder: Path, *behaviours: str) -> int:
    code = launch(RANK, [str(folder), *behaviours], len(behaviours), folder / "logs")
    assert not list(folder.glob("forgotten*")), "a rank was left to itself"
    return code


def environment(folder: Path, rank: int) -> dict[str, str]:
    lines = (folder / f"environment{rank}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_all_ranks_succeed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "0", "0") == 0
    assert capfd.readouterr().out == "this is rank 0\n"
    assert [log.read_text() for log in sorted((tmp_path / "logs").iterdir())] == [
        "this is rank 0\n",
        "this is rank 1\n",
    ]


def test_ranks_know_who_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    run(tmp_path, "0", "0")
    first, second = environment(tmp_path, 0), environment(tmp_path, 1)
    assert (first["RANK"], second["RANK"]) == ("0", "1")
    assert (first["LOCAL_RANK"], second["LOCAL_RANK"]) == ("0", "1")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"):
        assert first[name] == second[name]
    assert first["WORLD_SIZE"] == "2"
    assert first["OMP_NUM_THREADS"] == "3"


def test_a_wanted_number_of_threads_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run(tmp_path, "0")
    assert environment(tmp_path, 0)["OMP_NUM_THREADS"] == "7"


def test_an_empty_number_of_threads_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    run(tmp_path, "0")
    assert int(environment(tmp_path, 0)["OMP_NUM_THREADS"]) > 0


@pytest.mark.parametrize("behaviours", [("75", "0"), ("0", "75"), ("75", "75")])
def test_an_exit_code_is_passed_on(tmp_path: Path, behaviours: tuple[str, ...]) -> None:
    assert run(tmp_path, *behaviours) == 75


@pytest.mark.parametrize("behaviours", [("3", "sleep"), ("sleep", "3"), ("3", "listen")])
def test_the_first_failure_ends_the_others(tmp_path: Path, behaviours: tuple[str, ...]) -> None:
    """A rank that dies of the SIGTERM, or ends well on it, does not hide the cause."""
    assert run(tmp_path, *behaviours) == 3


def test_a_rank_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "GRACE_S", 0.2)
    assert run(tmp_path, "2", "deaf") == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_death_by_signal_is_128_more(tmp_path: Path, number: signal.Signals) -> None:
    assert run(tmp_path, "sleep", f"signal{number.value}") == 128 + number


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_every_rank(tmp_path: Path, number: signal.Signals) -> None:
    def send_when_ready() -> None:
        while not all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send_when_ready)
    sender.start()
    assert run(tmp_path, "listen", "listen") == 0
    sender.join()
    assert [(tmp_path / f"signal{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("forks", [True, False])
def test_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path, forks: bool) -> None:
    code = (
        "from pathlib import Path\n"
        "from megatron_soaes.accelerator import launch\n"
        f"launch.can_fork = lambda: {forks}\n"
        f"folder = {str(tmp_path)!r}\n"
        f"launch.launch({RANK!r}, [folder, 'deaf', 'deaf'], 2, Path(folder))\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code])
    ready = [tmp_path / f"ready{rank}" for rank in (0, 1)]
    while not all(file.exists() and file.read_text() for file in ready):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    for file in ready:
        with pytest.raises(ProcessLookupError):
            while True:
                os.kill(int(file.read_text()), 0)
                time.sleep(0.05)
    assert not list(tmp_path.glob("forgotten*"))


def test_a_rank_that_cannot_be_started_ends_those_that_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Worker] = []
    original = launching._process

    def only_one(*arguments: Any, **streams: int) -> Worker:
        if started:
            raise OSError("no more processes")
        started.append(original(*arguments, **streams))
        return started[0]

    monkeypatch.setattr(launching, "_process", only_one)
    with pytest.raises(OSError, match="no more processes"):
        run(tmp_path, "sleep", "sleep")
    assert started[0].poll() == -signal.SIGKILL


def test_a_signal_to_a_rank_that_has_ended_is_no_error(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        out = log.fileno()
        rank = ForkedProcess("this", [], {"OMP_NUM_THREADS": "1"}, out=out, err=out)
        rank.wait()
    rank.send_signal(signal.SIGTERM)


def test_a_terminal_that_goes_away_takes_nothing_from_the_log(tmp_path: Path) -> None:
    reader, terminal = os.pipe()
    with copied_to(tmp_path / "log", terminal) as (out,):
        os.close(reader)
        for word in ("one ", "two"):
            os.write(out, word.encode())
            time.sleep(0.1)
    os.close(terminal)
    assert (tmp_path / "log").read_text() == "one two"


def test_what_still_writes_does_not_keep_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied, "LAST_WORDS_S", 0.1)
    with copied_to(tmp_path / "log", 1) as (out,):
        process = subprocess.Popen(["sleep", "60"], stdout=out)
    assert process.poll() is None
    process.kill()
    process.wait()


def test_a_free_port_is_free() -> None:
    assert free_port() != free_port()
    assert free_port() > 1023


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_with_nothing_to_save_ends_at_once(number: signal.Signals) -> None:
    code = (
        "import os, sys, time\n"
        "from megatron_soaes.accelerator.launch import end_at_once_on_stop_signals\n"
        "end_at_once_on_stop_signals()\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == ExitCode.STOPPED
