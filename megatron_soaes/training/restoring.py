"""Where a training stage begins: at its own newest checkpoint, or at the start weights."""

from __future__ import annotations

import torch

from megatron_soaes.checkpoint import directory, distributed
from megatron_soaes.checkpoint.trainer_state import (
    Identity,
    TrainerState,
    refuse_undeclared_changes,
)
from megatron_soaes.data.blend import consumed_by_source
from megatron_soaes.models.build import BuildOptions
from megatron_soaes.training.engine import Engine, build_chunks, build_engine, load_model
from megatron_soaes.training.job import TrainingJob


def restore(job: TrainingJob) -> tuple[Engine, TrainerState]:
    """The engine and state to go on from: the newest own checkpoint, else the start weights.

    Collective over the world. Raises UserError when the saved state does not fit the recipe.
    """
    stage, options = job.stage, job.build_options
    identity = _identity(job)
    iteration = directory.latest_iteration(job.checkpoints)
    if iteration is None:
        return _start(job, options), _fresh_state(job, identity)
    engine = build_engine(job.shape, build_chunks(job.shape, options), stage, job.steps)
    state = distributed.load(
        job.checkpoints,
        iteration,
        engine.chunks,
        engine.optimizer,
        stage.checkpoints.deadline_s,
    )
    refuse_undeclared_changes(
        state.identity,
        identity,
        list(stage.allow_changes),
        directory.iteration_directory(job.checkpoints, iteration),
    )
    engine.schedule.load_state_dict(state.schedule)
    torch.distributed.barrier()
    return engine, state


def _start(job: TrainingJob, options: BuildOptions) -> Engine:
    """The start weights; with the moments of their optimizer if the stage says so."""
    iteration = directory.best_iteration(job.start) if job.start_at_best else None
    if not job.stage.continue_optimizer:
        chunks = load_model(job.shape, options, job.start, iteration)
        return build_engine(job.shape, chunks, job.stage, job.steps)
    engine = build_engine(job.shape, build_chunks(job.shape, options), job.stage, job.steps)
    iteration = directory.require_iteration(job.start, iteration)
    deadline = job.stage.checkpoints.deadline_s
    distributed.load(job.start, iteration, engine.chunks, engine.optimizer, deadline)
    return engine


def _identity(job: TrainingJob) -> Identity:
    stage = job.stage
    return Identity(
        blend=job.mixture.hash,
        tokenizer=job.tokenizer,
        global_batch_size=stage.global_batch_size,
        sequence_length=stage.sequence_length,
        steps=job.steps,
        seed=job.seed,
        optimizer=stage.optimizer.model_dump(mode="json"),
        schedule=stage.schedule.model_dump(mode="json"),
        objective=job.teaching.identity() if job.teaching else {},
    )


def _fresh_state(job: TrainingJob, identity: Identity) -> TrainerState:
    return TrainerState(
        iteration=0,
        consumed_samples=0,
        consumed_samples_by_source=consumed_by_source(job.mixture, 0),
        trained_tokens=0,
        skipped_steps=[],
        identity=identity,
        random={"seed": job.seed, "rule": "every stream is set anew each step from (seed, step)"},
        schedule={},
        validation=[],
        best=None,
        written_by=dict(job.written_by),
    )
