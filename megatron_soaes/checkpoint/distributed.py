"""Save and load sharded checkpoints of a live, parallel model through Megatron-Core."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from megatron_soaes.accelerator.arrival import DEADLINE_S, Arrivals
from megatron_soaes.accelerator.safe_pickle import read_common, read_metadata
from megatron_soaes.accelerator.watchdog import Watchdog
from megatron_soaes.checkpoint import directory
from megatron_soaes.checkpoint.trainer_state import TrainerState
from megatron_soaes.errors import UserError

CHECKPOINT_VERSION = 3.0
"""What Megatron-LM writes into `common.pt` for the QKV order that we share."""


def _sharding_metadata() -> dict[str, Any]:
    """How the distributed optimizer lays out its state: loadable in any layout."""
    return {
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _content_metadata() -> dict[str, Any]:
    return {name: value for name, value in _sharding_metadata().items() if name != "dp_cp_group"}


def _model_states(chunks: Sequence[GPTModel], metadata: dict[str, Any]) -> dict[str, Any]:
    """Sharded state by the names Megatron-LM gives the chunks of a (virtual) pipeline stage."""
    if len(chunks) == 1:
        return {"model": chunks[0].sharded_state_dict(metadata=metadata)}
    return {
        f"model{i}": chunk.sharded_state_dict(metadata=metadata) for i, chunk in enumerate(chunks)
    }


def plan_save(
    temporary: Path,
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer,
    state: TrainerState,
    arguments: argparse.Namespace,
) -> AsyncRequest:
    """Agree which rank writes what into `temporary`, and write `common.pt` (collective).

    The request holds the writing of this rank's shards, to be done anywhere, and what must then be
    called on all ranks to complete the checkpoint.
    """
    metadata = _sharding_metadata()
    content = _model_states(chunks, metadata)
    content["optimizer"] = optimizer.sharded_state_dict(content, metadata=metadata)
    content |= {
        "args": arguments,
        "checkpoint_version": CHECKPOINT_VERSION,
        "iteration": state.iteration,
        "opt_param_scheduler": state.schedule,
    }
    return dist_checkpointing.save(
        content, str(temporary), content_metadata=_content_metadata(), async_sharded_save=True
    )


def load_weights(
    root: Path, iteration: int, chunks: Sequence[GPTModel], deadline_s: float = DEADLINE_S
) -> None:
    """Fill the model with the weights of a checkpoint saved in any layout (collective).

    Raises UserError for a checkpoint that is damaged, unsafe or of another model, and
    MissingRanksError or RankFailedError when other ranks do not come along.
    """
    where = directory.iteration_directory(root, iteration)
    arrivals = _meet_before_load(where, deadline_s)
    with Watchdog(deadline_s, f"loading of {where}"):
        content = _load(where, _model_states(chunks, _sharding_metadata()), arrivals)
    _fill(chunks, content)


def load(
    root: Path,
    iteration: int,
    chunks: Sequence[GPTModel],
    optimizer: MegatronOptimizer,
    deadline_s: float = DEADLINE_S,
) -> TrainerState:
    """Fill model and optimizer with a training checkpoint saved in any layout (collective).

    Raises what `load_weights` raises.
    """
    where = directory.iteration_directory(root, iteration)
    arrivals = _meet_before_load(where, deadline_s)
    state = TrainerState.read(where)
    metadata = _sharding_metadata()
    wanted = _model_states(chunks, metadata)
    wanted["optimizer"] = optimizer.sharded_state_dict(wanted, is_loading=True, metadata=metadata)
    with Watchdog(deadline_s, f"loading of {where}"):
        content = _load(where, wanted, arrivals)
    _fill(chunks, content)
    # Moments and step count come from the checkpoint, hyper-parameters from the recipe: whether
    # they may differ was for the caller to decide, and must not be undone by the file.
    wanted_groups = [_hyper_parameters(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(content["optimizer"])
    for group, hyper_parameters in zip(optimizer.param_groups, wanted_groups, strict=True):
        group.update(hyper_parameters)
    return state


def _hyper_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in ("params", "step")}


def _meet_before_load(where: Path, deadline_s: float) -> Arrivals:
    """Meet once every rank has opened the pickles, which Megatron-Core would open unasked."""
    arrivals = Arrivals(deadline_s)
    with arrivals.together(f"loading {where}"):
        read_common(where / "common.pt")
        read_metadata(where / ".metadata")
    return arrivals


def _load(where: Path, wanted: dict[str, Any], arrivals: Arrivals) -> dict[str, Any]:
    with arrivals.together(f"end of loading {where}"):
        try:
            # The core calls a tensor "unexpected" when we ask for it and the checkpoint has none.
            content, _, missing = dist_checkpointing.load(
                wanted, str(where), strict=StrictHandling.RETURN_UNEXPECTED
            )
        # A failed read raises CheckpointException, which derives from BaseException.
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            refused = next((cause for cause in causes if isinstance(cause, UserError)), None)
            raise refused or UserError(
                where, f"a checkpoint that cannot be read ({causes[0]})",
                "complete, undamaged shards",
                f"`soaes checkpoint verify` names the damage. Point {directory.TRACKER} at an "
                "older iteration.",
            ) from error  # fmt: skip
        # Extra states are empty without FP8, and absent from checkpoints written without it.
        missing = {key for key in missing if "_extra_state" not in key}
        if missing:
            raise UserError(
                where, f"no tensor {sorted(missing)[0]} (and {len(missing) - 1} more)",
                "every tensor of the model", "Is this the checkpoint of another model?",
            )  # fmt: skip
    return dict(content)


def _fill(chunks: Sequence[GPTModel], content: Mapping[str, Any]) -> None:
    names = ["model"] if len(chunks) == 1 else [f"model{i}" for i in range(len(chunks))]
    for name, chunk in zip(names, chunks, strict=True):
        # A run with local layers, say on a CPU, writes no extra states of norms; None stands for no
        # state to Transformer Engine.
        absent = {key: None for key in chunk.state_dict() if key.endswith("_extra_state")}
        chunk.load_state_dict(absent | dict(content[name]), strict=True)
