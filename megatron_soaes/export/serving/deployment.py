"""What every written file of a pair needs to know, and where the parts of a pair lie."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_soaes.export.engines.plan import EngineLimits, EngineModel, EnginePlan, plan_pair
from megatron_soaes.export.serving.draft_length import (
    MACHINES,
    DraftLength,
    break_even_batch,
    tokens_per_pass,
)
from megatron_soaes.export.serving.versions import Release, Topic, unverified

HF = {"target": "hf/target", "draft": "hf/draft"}
CHECKPOINTS = {"target": "trtllm/target", "draft": "trtllm/draft"}
ENGINES = {"target": "engines/target", "draft": "engines/draft"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Deployment:
    """A target and its draft for one TensorRT-LLM version; paths count from the pair's folder."""

    version: str
    release: Release
    dtype: str
    """bf16 or fp16."""
    vocab_size: int
    """Rows that both have."""
    tensor: int
    draft_tensor: int
    pipeline: int
    """Stages of the target's engine; the draft has one."""
    draft_fits_ranks: bool
    """Whether the draft can be cut into as many ranks as the target, as HF servers do."""
    draft_length: DraftLength
    max_batch_size: int
    max_input_len: int
    """Tokens of a prompt and its answer."""
    max_seq_len: int
    """`max_input_len` and the last round's draft with the target's own token."""
    parameters: dict[str, int]
    """By role."""
    end_ids: tuple[int, ...]
    pad_id: int

    @property
    def speculates_in_pytorch(self) -> bool:
        """Whether trtllm-serve of this version takes the pair's HF directories."""
        return self.release.decoding_type is not None and self.draft_fits_ranks

    def unverified(self, *topics: Topic) -> list[str]:
        """What was written about `topics` without having been read in this version's source."""
        return unverified(self.release, self.version, *topics)

    def engine_plan(self) -> EnginePlan:
        """What `trtllm-build` is to make, for a version that has it."""
        limits = EngineLimits(
            DTYPES[self.dtype], self.max_batch_size, self.max_input_len, self.max_seq_len
        )
        ranks = {"target": self.tensor * self.pipeline, "draft": self.draft_tensor}
        models = {
            role: EngineModel(CHECKPOINTS[role], ENGINES[role], ranks[role]) for role in ranks
        }
        return plan_pair(
            self.version, models["target"], models["draft"], limits, self.draft_length.tokens
        )

    def break_even(self) -> dict[str, int]:
        """By machine, see `break_even_batch`; empty without a measured acceptance."""
        measured = self.draft_length.measured
        if measured is None:
            return {}
        ratio = self.parameters["draft"] / self.parameters["target"]
        return {
            name: break_even_batch(
                measured.acceptance, self.draft_length.tokens, ratio, tokens_per_pass(name)
            )
            for name in MACHINES
        }
