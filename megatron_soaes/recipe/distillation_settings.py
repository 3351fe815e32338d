"""How a draft learns from its target: what is written, what is stored, what is minimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from megatron_soaes.recipe.section import Checkpoint, Section, Share

Temperature = Annotated[float, Field(ge=0)]


class Sampling(Section):
    """How answers to prompts are written."""

    max_new_tokens: PositiveInt = Field(256, description="Most tokens of an answer.")
    temperatures: list[Temperature] = Field(
        [0.0],
        min_length=1,
        description="Each prompt is answered once at each; 0 takes the most likely token.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the likely tokens that reach this together."
    )


class Store(Section):
    """What a capture keeps of each position."""

    kind: Literal["top_k", "sampled"] = Field(
        "top_k",
        description="top_k: the most likely tokens and the mass of all others, exact and a little "
        "biased; sampled: draws with their weights, an unbiased forward KL (arXiv 2503.16870).",
    )
    entries: PositiveInt = Field(32, description="Tokens kept: the k, or the number of draws.")
    dtype: Literal["fp16", "bf16"] = Field("fp16", description="Of the log-probabilities.")
    temperature: float = Field(
        1.0, gt=0, description="Logits are divided by it; the objective's must be the same."
    )
    exponent: float = Field(
        1.0, gt=0, description="sampled: tokens are drawn in proportion to p ** exponent."
    )
    samples_per_shard: PositiveInt = Field(256, description="Samples of each file.")


class Selection(Section):
    """Train only where a draft of this size can still learn (AdaSPEC, arXiv 2510.19779)."""

    reference: Checkpoint = Field(
        description="A draft distilled before; the loss where it exceeds this one's counts."
    )
    share: float = Field(0.4, gt=0, le=1, description="Share of each micro-batch that is kept.")


class DistillationObjective(Section):
    """cross_entropy * CE + (1 - cross_entropy) * temperature^2 * divergence, at each position."""

    divergence: Literal[
        "forward_kl",
        "reverse_kl",
        "jensen_shannon",
        "total_variation",
        "negative_log_acceptance",
        "acceptance_hybrid",
    ] = Field(
        "forward_kl",
        description="Of the student from the teacher; the last two are the acceptance losses of "
        "arXiv 2602.23881.",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jensen_shannon: the teacher's share.")
    decay: float = Field(
        3.0, gt=0, description="acceptance_hybrid: how fast it leaves the KL as acceptance rises."
    )
    temperature: float = Field(1.0, gt=0, description="Of teacher and student.")
    cross_entropy: Share = Field(
        0.0, description="Weight of the cross entropy with the text; 1 is no distillation."
    )
    selection: Selection | None = Field(None, description="Which positions count; all by default.")


class DraftWindow(Section):
    """The draft lengths that validation speaks about."""

    longest: PositiveInt = Field(7, description="Most tokens drafted for a pass of the target.")
    cost_ratio: float | None = Field(
        None,
        gt=0,
        description="Time of a draft's pass over a target's, as `soaes speculate` measures it; by "
        "default the ratio of their parameters.",
    )
