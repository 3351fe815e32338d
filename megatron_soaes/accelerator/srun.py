"""Start the ranks of a stage as a step of a Slurm job."""

from __future__ import annotations

import os
import re
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
END_OF_RANK = re.compile(
    r"srun: error: \S+: tasks? [\d,-]+: (Exited with exit code (?P<code>\d+)|.*)"
)
"""What srun says of ranks that did not end with 0: with a code, or else by a signal."""


def launch_by_srun(module: str, arguments: Sequence[str], processes: int, logs: Path) -> int:
    """Run `python -m module arguments` as ranks 0..processes-1 of a job step; one exit code.

    For use inside of a job whose script exports MASTER_ADDR and MASTER_PORT. Every rank writes to
    `logs/rank{N}.log`. SIGINT, SIGTERM and SIGUSR1 ask the ranks to stop. The result is 0 when all
    ranks ended with 0; otherwise the code of the first that did not, and where that one died by a
    signal the highest of all (128 + N for signal N). Raises UserError outside of a job.
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
    step = subprocess.Popen(
        command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    # srun hands SIGUSR1 to the ranks; SIGINT and SIGTERM it takes for itself, and kills them.
    with stop_signals_go_to(lambda _: step.send_signal(signal.SIGUSR1)):
        first = _first_bad_end(step)
        code = step.wait()
    return first or (128 - code if code < 0 else code)


def _first_bad_end(step: subprocess.Popen[str]) -> int:
    """Pass on what srun says until it ends; the code of the rank that failed first, 0 for none.

    The highest code will not do: when one rank refuses its input, the others wait for it until
    they are killed, and a death is tried again. Also 0 when the first one died by a signal.
    """
    assert step.stderr is not None
    ends = []
    for line in step.stderr:
        sys.stderr.write(line)
        if found := END_OF_RANK.match(line):
            ends.append(found["code"])
    return int(ends[0] or 0) if ends else 0


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
