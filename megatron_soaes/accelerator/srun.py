"""Start the ranks of a stage as a step of a Slurm job."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_soaes.accelerator.launch import stop_signals_go_to
from megatron_soaes.errors import UserError

OPTIONS = "SOAES_SRUN_OPTIONS"
"""More options of srun, such as those of a container; written as for a shell."""
PYTHON = "SOAES_PYTHON"
"""The interpreter of the ranks, where it is another than this one, as within a container."""
GRACE_S = 120
"""How long the other ranks may take to end after the first one has ended."""


def launch_by_srun(module: str, arguments: Sequence[str], processes: int, logs: Path) -> int:
    """Run `python -m module arguments` as ranks 0..processes-1 of a job step; one exit code.

    For use inside of a job whose script exports MASTER_ADDR and MASTER_PORT. Every rank writes to
    `logs/rank{N}.log`. SIGINT, SIGTERM and SIGUSR1 are passed on to the ranks. The result is 0 when
    all ranks ended with 0, otherwise the highest of their codes (128 + N for a death by signal N).
    Raises UserError outside of a job.
    """
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "--launcher srun", "no SLURM_JOB_ID in the environment", "to run inside of a Slurm job",
            "Use soaes slurm submit, or leave the option out.",
        )  # fmt: skip
    logs.mkdir(parents=True, exist_ok=True)
    environment = {
        "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # as in `launch`
        **os.environ,
    }
    command = srun_command(module, arguments, processes, logs)
    # In a session of its own: a terminal's Ctrl-C must reach the ranks as a signal to stop, once.
    step = subprocess.Popen(command, env=environment, start_new_session=True)

    def pass_on(number: int) -> None:
        # srun takes SIGINT for itself.
        step.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    with stop_signals_go_to(pass_on):
        code = step.wait()
    return 128 - code if code < 0 else code


def srun_command(module: str, arguments: Sequence[str], processes: int, logs: Path) -> list[str]:
    """The command line of a stage's ranks."""
    log = f"{logs}/rank".replace("%", "%%") + "%t.log"
    return [
        "srun",
        f"--ntasks={processes}",
        f"--output={log}",
        f"--error={log}",
        "--open-mode=append",
        # Ranks that stop together end one after the other: none may be killed while it saves.
        "--kill-on-bad-exit=0",
        f"--wait={GRACE_S}",
        *shlex.split(os.environ.get(OPTIONS, "")),
        os.environ.get(PYTHON, sys.executable),
        "-m",
        module,
        *arguments,
    ]
