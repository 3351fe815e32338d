"""What a run tells while it goes: metrics.jsonl, TensorBoard and one line on the console."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.checkpoint.saver import SaveReport
from megatron_soaes.training.records import METRICS_FILE, keep_records_until

GIB = 2**30


class Telemetry:
    """Writes the figures of each step; made on the rank that reports (the first)."""

    def __init__(self, directory: Path, resumed_at: int, steps: int, log_every: int) -> None:
        """Open the files under `directory`; records after step `resumed_at` are dropped."""
        directory.mkdir(parents=True, exist_ok=True)
        self._steps = steps
        self._log_every = log_every
        self._console = Console(highlight=False)
        self._started = time.monotonic()
        self._first_step = resumed_at
        metrics = directory / METRICS_FILE
        keep_records_until(metrics, resumed_at)
        self._stream = metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resumed_at + 1)

    def step(self, step: int, record: Mapping[str, float | bool]) -> None:
        """One optimizer step."""
        self._write({"step": step, **record})
        for name, value in record.items():
            self._board.add_scalar(f"train/{name}", float(value), step)
        if step % self._log_every == 0 or step == self._steps or not record["finite"]:
            self._console.print(self._line(step, record), markup=False, soft_wrap=True)

    def validation(self, step: int, figures: Mapping[str, Mapping[str, Any]]) -> None:
        """Loss and, in a distillation, acceptance of every validation set after a step."""
        self._write({"step": step, "validation": figures})
        for name, found in figures.items():
            for figure, value in found.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"validation/{name}/{figure}", value, step)
        parts = [f"{name} {_held_out(found)}" for name, found in figures.items()]
        self._console.print(
            f"  validation after step {step}: " + "  ".join(parts), markup=False, soft_wrap=True
        )

    def overfitting(self, step: int, above_lowest: Mapping[str, float]) -> None:
        """Held-out sets that get worse while the others get better, if there are any."""
        if not above_lowest:
            return
        self._write({"step": step, "overfitting": dict(above_lowest)})
        for name, nats in above_lowest.items():
            self.say(
                f"  WARNING: {name} overfits: its held-out loss rises and is {nats:.3f} above its "
                "lowest. Give its source a lower weight or fewer passes, or set validation.best."
            )

    def saved(self, report: SaveReport) -> None:
        """A checkpoint that is complete."""
        figures = {
            "save_seconds": report.seconds,
            "save_blocked_seconds": report.blocked_seconds,
        }
        self._write({"step": report.iteration, **figures})
        for name, value in figures.items():
            self._board.add_scalar(f"checkpoints/{name}", value, report.iteration)
        deleted = ", ".join(map(str, report.deleted))
        self._console.print(
            f"  checkpoint {report.iteration} saved in {report.seconds:.1f} s, of which training "
            f"waited {report.blocked_seconds:.1f} s" + (f"; deleted: {deleted}" if deleted else ""),
            markup=False,
            soft_wrap=True,
        )

    def say(self, text: str) -> None:
        """A plain line on the console."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Flush and close the files."""
        self._stream.close()
        self._board.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()

    def _line(self, step: int, record: Mapping[str, float | bool]) -> str:
        rate = (step - self._first_step) / (time.monotonic() - self._started)
        left = timedelta(seconds=round((self._steps - step) / rate))
        text = (
            f"  step {step}/{self._steps}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
            f"grad {record['grad_norm']:.3f}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"{record['tflops_per_process']:.3g} TFLOP/s ({record['mfu']:.0%})  "
            f"{record['peak_memory_gib']:.1f} GiB  {left} left"
        )
        return text if record["finite"] else text + "  NOT FINITE: step skipped"


def _held_out(figures: Mapping[str, Any]) -> str:
    accepted = f" (acceptance {figures['alpha']:.1%})" if "alpha" in figures else ""
    return f"{figures['loss']:.4f}{accepted}"


def measured_matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product on this process's share of the machine.

    The ceiling behind "MFU" where no datasheet gives one (a CPU); a few milliseconds.
    """
    size = 1024
    device = this_device()
    left = torch.randn(size, size, device=device.torch_device).to(dtype)
    right = torch.randn(size, size, device=device.torch_device).to(dtype)
    best = float("inf")
    for _ in range(5):
        device.synchronize()
        start = time.perf_counter()
        left @ right
        device.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
