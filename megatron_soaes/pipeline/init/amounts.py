"""How much is trained at a time, and for how long: sizes that suit the corpus and the machine."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_soaes.pipeline.init.corpus import Corpus
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import Layout

HOLDOUTS = (0.01, 0.02, 0.05, 0.1, 0.2)
HELD_OUT_WINDOWS = 8
SHORTEST = 32
FEWEST_STEPS = 10
ENOUGH_STEPS = 100
"""Below so many a smaller batch is better than fewer steps."""
EPOCHS = 2
"""Passes over conversations; documents are read once."""


@dataclass(frozen=True)
class Amounts:
    """The numbers of a training stage."""

    sequence_length: int
    global_batch_size: int
    holdout: float
    steps: int
    """As far as the size of the files tells."""
    warmup_steps: int
    validate_every: int
    save_every: int


def amounts_for(corpus: Corpus, shape: ModelShape, layout: Layout, *, on_gpus: bool) -> Amounts:
    """One pass over documents, or `EPOCHS` over conversations, in steps of a usual size."""
    length = _sequence_length(corpus, shape, layout, on_gpus)
    holdout = next(
        (one for one in HOLDOUTS if corpus.tokens * one >= HELD_OUT_WINDOWS * length), HOLDOUTS[-1]
    )
    tokens = corpus.tokens * (1 - holdout) * (EPOCHS if corpus.is_chat else 1)
    replicas = layout.data_parallel
    each = -(-(128 if on_gpus else 8) // replicas)
    while each > 1 and tokens / (length * each * replicas) < ENOUGH_STEPS:
        each //= 2
    batch = each * replicas
    steps = max(FEWEST_STEPS, round(tokens / (length * batch)))
    return Amounts(
        sequence_length=length,
        global_batch_size=batch,
        holdout=holdout,
        steps=steps,
        warmup_steps=min(100, max(1, steps // 20)),
        validate_every=min(250, max(5, steps // 10)),
        save_every=min(500, max(5, steps // 5)),
    )


def _sequence_length(corpus: Corpus, shape: ModelShape, layout: Layout, on_gpus: bool) -> int:
    """Short enough for the held-out share of a small corpus; a conversation is never cut."""
    length = min(4096 if on_gpus else 512, shape.max_position)
    if corpus.is_chat:
        length = min(max(length, 2048), shape.max_position)
    else:
        while length > SHORTEST and corpus.tokens * HOLDOUTS[-1] < 2 * length:
            length //= 2
    return length - length % layout.tensor_parallel
