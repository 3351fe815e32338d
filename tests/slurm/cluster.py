"""A real Slurm for tests: a controller and four virtual nodes with fake GPUs, on this machine."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = tuple(f"127.0.0.{number}" for number in range(1, 5))
"""Names that resolve without an entry anywhere."""
GPUS = 8
"""Of each node; links to /dev/null, which Slurm takes for devices."""
SBIN = "/usr/sbin:/sbin"


class Cluster:
    """Daemons and their files below `folder`; every port is its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SBIN}",
        }

    def start(self) -> None:
        """Start the daemons, wait until every node is idle."""
        _require_slurm(self.environment["PATH"])
        for name in ("munge", "state", "run", "log", "devices", *(f"spool/{n}" for n in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged wants its socket's folders searchable by all
        key = self.folder / "munge/munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        for number in range(GPUS):
            (self.folder / f"devices/gpu{number}").symlink_to("/dev/null")
        self._configure()
        munge = self.folder / "munge"
        self._run(
            "munged", f"--socket={munge}/socket", f"--key-file={key}", "--num-threads=2",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._run("slurmctld", "-f", self.environment["SLURM_CONF"])
        wait_until(lambda: "UP" in self.answer("scontrol", "ping"), 20)
        for node in NODES:
            self.start_node(node)
        wait_until(self._all_idle, 30)

    def start_node(self, node: str) -> None:
        """Start a node's daemon; one that was down is taken back."""
        self._run("slurmd", "-N", node, "-f", self.environment["SLURM_CONF"])

    def fail_node(self, node: str) -> None:
        """What a crash of the machine looks like to Slurm: daemon and job steps are gone."""
        for process in self._processes():
            command = " ".join(_command(process))
            if f"slurmd -N {node}" in command or f"[{node}]" in command:
                process.kill()
        self.answer("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def resume_node(self, node: str) -> None:
        """Take a failed node back."""
        self.start_node(node)
        wait_until(self._all_idle, 30)

    def stop(self) -> None:
        """End every job, then the daemons and what their jobs left behind."""
        if (self.folder / "slurm.conf").exists():
            self.answer("scancel", "--user", str(os.getuid()))
            with suppress(TimeoutError):
                wait_until(lambda: not self.answer("squeue", "--noheader").strip(), 12)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            with suppress(TimeoutError):
                wait_until(lambda: not self._processes(), 5)

    def submit(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """`sbatch` with these arguments; the job's number."""
        answer = subprocess.run(
            ["sbatch", "--parsable", *arguments], env=self.environment | (environment or {}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job."""
        words = self.answer("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(
        self, number: str, states: str | Collection[str], seconds: float = 60
    ) -> dict[str, str]:
        """The job, once it is in one of the states."""
        wanted = {states} if isinstance(states, str) else set(states)
        with suppress(TimeoutError):
            wait_until(lambda: self.job(number).get("JobState") in wanted, seconds)
        job = self.job(number)
        assert job["JobState"] in wanted, f"{job}\n{self.log(job)}"
        return job

    def log(self, job: dict[str, str]) -> str:
        """The output of a job, whose path may hold blanks."""
        path = re.search(
            r"StdOut=(.*)$", self.answer("scontrol", "show", "job", job["JobId"]), re.M
        )
        file = Path(path[1]) if path else Path()
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    def answer(self, *command: str) -> str:
        """What a command of Slurm prints; empty where it fails."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=30
        ).stdout

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def _all_idle(self) -> bool:
        # One that an earlier test left down or drained is not taken back by itself.
        states = self.answer("sinfo", "--noheader", "-N", "-o", "%N %t").splitlines()
        for name, state in (line.split() for line in states):
            if state.startswith(("drain", "drng", "down", "fail")):
                self.answer("scontrol", "update", f"nodename={name}", "state=resume")
        return len(states) == len(NODES) and all(line.endswith("idle") for line in states)

    def _processes(self) -> list[psutil.Process]:
        """The daemons, and the processes of jobs that outlived them; no zombies."""
        mine = f"SLURM_CONF={self.environment['SLURM_CONF']}"
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environ = process.environ()
                of_job = environ.get("SLURM_CONF") == self.environment["SLURM_CONF"] and (
                    "SLURM_JOB_ID" in environ
                )
                named = str(self.folder) in " ".join(_command(process))
                daemon = process.name() in {"munged", "slurmctld", "slurmd", "slurmstepd"}
                if (of_job or (daemon and (named or mine in str(environ)))) and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
        return found

    def _configure(self) -> None:
        names = f"127.0.0.[1-{len(NODES)}]"
        ports = f"[{self.port + 21}-{self.port + 20 + len(NODES)}]"
        user = psutil.Process().username()
        (self.folder / "slurm.conf").write_text(
            f"""\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={self.port}
SlurmdPort={self.port + 20}
SrunPortRange={self.port + 100}-{self.port + 999}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# Also how long a requeued job is held back.
AuthInfo=socket={self.folder}/munge/socket,cred_expire=5
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/run/slurmctld.pid
SlurmdPidFile={self.folder}/run/slurmd.%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=5,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=86400
SlurmdTimeout=0
GresTypes=gpu
NodeName={names} NodeHostName=localhost NodeAddr=127.0.0.1 Port={ports} CPUs=64 \
RealMemory=1000000 Gres=gpu:fake:{GPUS} State=UNKNOWN
PartitionName=batch Nodes={names} Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
""",
            encoding="utf-8",
        )
        devices = f"{self.folder}/devices/gpu[0-{GPUS - 1}]"
        gres = f"NodeName={names} Name=gpu Type=fake File={devices}\n"
        (self.folder / "gres.conf").write_text(gres, encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="utf-8")


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds. Raises TimeoutError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.2)


def _command(process: psutil.Process) -> Sequence[str]:
    with suppress(psutil.Error):
        command: list[str] = process.cmdline()
        return command
    return []


def _require_slurm(path: str) -> None:
    missing = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    assert not missing, f"no {', '.join(missing)} on this machine: sudo make test-packages"
