"""The training loop: from start weights, or from where the stage was left, to its last step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from megatron.core import parallel_state
from torch.profiler import profile, schedule, tensorboard_trace_handler

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import seed_step, world_rank
from megatron_soaes.accelerator.user_buffers import user_buffers
from megatron_soaes.accelerator.watchdog import Watchdog
from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.megatron_arguments import megatron_arguments
from megatron_soaes.checkpoint.saver import CheckpointSaver, SaveReport
from megatron_soaes.checkpoint.trainer_state import (
    TrainerState,
)
from megatron_soaes.data.blend import consumed_by_source, positions_of_rank
from megatron_soaes.data.sample import MicroBatch, collate
from megatron_soaes.errors import NonFiniteError
from megatron_soaes.models.build import dtype_named
from megatron_soaes.training.forecast import compared, peak_memory, told
from megatron_soaes.training.graphs import mlp_graphs
from megatron_soaes.training.job import TrainingJob
from megatron_soaes.training.non_finite import write_report
from megatron_soaes.training.objective import CrossEntropy, Objective
from megatron_soaes.training.progress import BestCheckpoint, overfitting
from megatron_soaes.training.restoring import restore
from megatron_soaes.training.step import StepResult, train_step
from megatron_soaes.training.stopping import StopSignal
from megatron_soaes.training.teaching import Lessons
from megatron_soaes.training.telemetry import GIB, Telemetry, measured_matmul_rate
from megatron_soaes.training.validation import LOSS_FIGURES, validate


@dataclass(frozen=True)
class TrainingResult:
    """How a call to `train` ended."""

    completed: bool
    """False when a signal ended it before the last step; the state is saved."""
    metrics: dict[str, Any]


def train(job: TrainingJob) -> TrainingResult:
    """Train until the last step or a stop signal (collective over the world).

    Raises NonFiniteError, and UserError when the saved state does not fit the recipe.
    """
    with _shared_buffers(job):
        return Trainer(job).run()


def _shared_buffers(job: TrainingJob) -> AbstractContextManager[None]:
    """What `overlap.tensor_parallel` needs from before the layers are built to the end."""
    if not job.stage.overlap.tensor_parallel:
        return nullcontext()
    fp8 = job.stage.precision.fp8
    return user_buffers(
        job.stage.sequence_length * job.stage.micro_batch_size,
        job.shape.hidden,
        job.layout.tensor_parallel,
        fp8=fp8 is not None,
        bf16=fp8 is None or fp8.first_last_layers_bf16,
    )


class Trainer:
    """One rank's training loop."""

    def __init__(self, job: TrainingJob) -> None:
        self.job = job
        self.stop = StopSignal()
        self.saver = CheckpointSaver(job.checkpoints, job.stage.checkpoints)
        self.engine, self.state = restore(job)
        loss = CrossEntropy(job.shape.vocab_size, fused=job.stage.kernels.cross_entropy)
        self.lessons = Lessons(job.teaching, job.build_options, loss) if job.teaching else None
        self.objective: Objective = self.lessons.objective if self.lessons else loss
        self._non_finite_in_a_row = 0
        self._step_seconds: list[float] = []
        self._peak_flops = job.peak_flops or measured_matmul_rate(
            dtype_named(job.stage.precision.dtype)
        )
        self._flops_per_token = job.shape.flops_per_token(job.stage.sequence_length)
        self.telemetry = (
            Telemetry(job.out, self.state.iteration, job.steps, job.stage.log_every)
            if world_rank() == 0
            else None
        )

    def run(self) -> TrainingResult:
        """Do the remaining steps."""
        stage = self.job.stage
        validation: dict[str, dict[str, Any]] = {}
        self._say_start()
        with ExitStack() as stack:
            watchdog = stack.enter_context(Watchdog(stage.hang_timeout_s, "training"))
            stack.enter_context(mlp_graphs(self.engine, stage, self.job.layout))
            profiler = self._profiler(stack)
            if self.state.iteration == 0:
                validation = self._validate(0)
                if self.lessons:
                    self._remember(0, validation)
            for step in range(self.state.iteration + 1, self.job.steps + 1):
                result = self._step(step)
                if profiler is not None:
                    profiler.step()
                watchdog.beat()
                self._tell(self.saver.poll())
                last = step == self.job.steps
                stops = result.stop_requested and not last
                better = False
                if not stops and (last or step % stage.validation.every == 0):
                    validation = self._validate(step)
                    better = self._judge(step, validation)
                if last or stops or better or step % stage.checkpoints.every == 0:
                    self._save()
                if stops:
                    self._tell(self.saver.finish())
                    self._say(f"  stopped after step {step}; the state is saved")
                    return self._result(False, validation)
        self._tell(self.saver.finish())
        # A run that died after its last save has told of its last validation already.
        return self._result(True, validation or self._held_out())

    def _step(self, step: int) -> StepResult:
        stage = self.job.stage
        started = time.perf_counter()
        seed_step(self.job.seed, step)
        positions = positions_of_rank(
            self.state.consumed_samples,
            stage.global_batch_size,
            stage.micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        device = this_device()
        batches = [
            collate(
                [self.job.mixture[int(p)] for p in row],
                device.torch_device,
                self.job.filling,
                self.lessons.answers(row) if self.lessons else (),
            )
            for row in positions
        ]
        result = train_step(
            self.engine, self.objective, batches, stage.global_batch_size, self.stop.received
        )
        self.state = self._advanced(step, result)
        device.synchronize()
        seconds = time.perf_counter() - started
        self._step_seconds.append(seconds)
        self._report(step, result, seconds)
        self._check_finite(step, result, batches, positions.tolist())
        return result

    def _advanced(self, step: int, result: StepResult) -> TrainerState:
        consumed = self.state.consumed_samples + self.job.stage.global_batch_size
        skipped = self.state.skipped_steps if result.finite else [*self.state.skipped_steps, step]
        return replace(
            self.state,
            iteration=step,
            consumed_samples=consumed,
            consumed_samples_by_source=consumed_by_source(self.job.mixture, consumed),
            trained_tokens=self.state.trained_tokens + result.trained_tokens,
            skipped_steps=skipped,
            schedule=self.engine.schedule.state_dict(),
            written_by=dict(self.job.written_by),
        )

    def _check_finite(
        self, step: int, result: StepResult, batches: list[MicroBatch], positions: list[list[int]]
    ) -> None:
        if result.finite:
            self._non_finite_in_a_row = 0
            return
        self._non_finite_in_a_row += 1
        folder = self.job.out / "non_finite"
        write_report(
            folder,
            step,
            result,
            engine=self.engine,
            batches=batches,
            positions=positions,
            sources=self.job.mixture.sources,
        )
        limit = self.job.stage.non_finite.stop_after
        if self._non_finite_in_a_row >= limit:
            self._tell(self.saver.finish())
            raise NonFiniteError(
                f"loss or gradient was not finite in {limit} steps in a row, the last one {step}; "
                f"no weight was changed by them. What was in the batches: {folder}"
            )

    def _validate(self, step: int) -> dict[str, dict[str, Any]]:
        losses = self._held_out()
        if self.telemetry and losses:
            self.telemetry.validation(step, losses)
        return losses

    def _held_out(self) -> dict[str, dict[str, Any]]:
        stage = self.job.stage
        with self.engine.whole_weights():
            return validate(
                self.engine.chunks,
                self.objective,
                self.job.validation,
                stage.micro_batch_size,
                self.job.layout,
                fp8=stage.precision.fp8,
                most_windows=stage.validation.batches * stage.global_batch_size,
                lessons=self.lessons,
            )

    def _remember(self, step: int, validation: Mapping[str, Mapping[str, Any]]) -> None:
        losses = {name: figures["loss"] for name, figures in validation.items()}
        entry: dict[str, Any] = {"step": step, "losses": losses}
        if self.lessons:
            entry["acceptance"] = {
                name: {key: value for key, value in figures.items() if key not in LOSS_FIGURES}
                for name, figures in validation.items()
            }
        self.state = replace(self.state, validation=[*self.state.validation, entry])

    def _judge(self, step: int, validation: Mapping[str, Mapping[str, Any]]) -> bool:
        """Remember the figures and warn of a set that overfits; is this step the best so far?"""
        self._remember(step, validation)
        history = [entry["losses"] for entry in self.state.validation]
        decides = self.job.stage.validation.best
        before = BestCheckpoint(**self.state.best) if self.state.best else None
        best = BestCheckpoint.of(step, history[-1][decides], before) if decides else None
        self.state = replace(self.state, best=asdict(best) if best else None)
        if self.telemetry:
            self.telemetry.overfitting(step, overfitting(history))
        return best is not None and best.iteration == step

    def _save(self) -> None:
        if world_rank() == 0:
            directory.carry_hf_files(self.job.start, self.job.checkpoints)
        job = self.job
        arguments = megatron_arguments(job.shape, job.source, job.layout, job.stage, self.state)
        engine = self.engine
        with engine.whole_weights():
            saves = self.saver.save(engine.chunks, engine.optimizer, self.state, arguments)
        self._tell(saves)

    def _tell(self, saves: list[SaveReport]) -> None:
        if self.telemetry:
            for report in saves:
                self.telemetry.saved(report)

    def _report(self, step: int, result: StepResult, seconds: float) -> None:
        if self.telemetry is None:
            return
        stage = self.job.stage
        tokens_per_second = stage.global_batch_size * stage.sequence_length / seconds
        flops = tokens_per_second * self._flops_per_token / self.job.layout.processes
        self.telemetry.step(
            step,
            {
                "loss": result.loss,
                "lr": result.lr,
                "grad_norm": result.grad_norm,
                "finite": result.finite,
                "seconds": seconds,
                "tokens_per_second": tokens_per_second,
                "tflops_per_process": flops / 1e12,
                "mfu": flops / self._peak_flops,
                "peak_memory_gib": this_device().peak_memory_bytes() / GIB,
            },
        )

    def _resources(self) -> dict[str, Any] | None:
        """What the stage was planned to take and what it took, told (collective)."""
        forecast = self.job.forecast
        if forecast is None or not self._step_seconds:
            return None
        tokens = self.job.stage.global_batch_size * self.job.stage.sequence_length
        rate = tokens / statistics.median(self._step_seconds)
        figures = compared(forecast, peak_memory(), rate)
        for line in told(figures):
            self._say(line)
        return figures

    def _profiler(self, stack: ExitStack) -> profile | None:
        wanted = self.job.stage.profile
        if wanted is None or world_rank() not in wanted.ranks:
            return None
        first, last = (step - self.state.iteration for step in wanted.steps)
        if first < 1:
            return None
        return stack.enter_context(
            profile(
                schedule=schedule(wait=first - 1, warmup=0, active=last - first + 1, repeat=1),
                on_trace_ready=tensorboard_trace_handler(
                    str(self.job.out / "traces"), f"rank{world_rank()}"
                ),
            )
        )

    def _say_start(self) -> None:
        stage, layout = self.job.stage, self.job.layout
        at = f"goes on after step {self.state.iteration}" if self.state.iteration else "starts"
        self._say(
            f"{stage.name} {at}: {self.job.shape.parameters / 1e6:.1f}M parameters, "
            f"{stage.precision.dtype}, TP {layout.tensor_parallel} x PP {layout.pipeline_parallel} "
            f"x DP {layout.data_parallel}"
            + (", sequence parallel" if layout.sequence_parallel else "")
        )

    def _say(self, text: str) -> None:
        if self.telemetry:
            self.telemetry.say(text)

    def _result(self, completed: bool, validation: dict[str, dict[str, Any]]) -> TrainingResult:
        resources = self._resources()
        if self.telemetry:
            self.telemetry.close()
        metrics = {
            "iteration": self.state.iteration,
            "validation": validation,
            "consumed_samples": self.state.consumed_samples_by_source,
            "trained_tokens": self.state.trained_tokens,
            "skipped_steps": len(self.state.skipped_steps),
            "best": self.state.best,
            **({"resources": resources} if resources else {}),
        }
        if self.lessons and self.state.validation:
            first, last = self.state.validation[0], self.state.validation[-1]
            metrics["acceptance"] = {"before": first["acceptance"], "after": last["acceptance"]}
        return TrainingResult(completed, metrics)
