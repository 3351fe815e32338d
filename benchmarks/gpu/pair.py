"""Plain against speculative decoding on this device, with a draft that is good by construction.

`python -m benchmarks.gpu.pair [--tiny]` prints the figures as JSON. The target is a random model
whose upper layers write little; the draft is its lower layers. So the costs are those of the real
shapes, and the acceptance is high without training: it says what a good draft is worth here, not
how good a draft gets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.subject import SMALL, TINY, Subject
from megatron_soaes.accelerator.device import this_device
from megatron_soaes.decoding.comparison import compare
from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.lean import LeanModel

DRAFT_SHARE = 7
"""The draft has a seventh of the target's layers, at least one."""
UPPER = 0.05
"""What the layers above write, as a share of what they would."""
LENGTHS = (2, 4, 7)
PROMPTS = 4
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class PairFigures:
    """The fastest draft length in one mode."""

    mode: str
    draft_length: int
    speedup: float
    low: float
    high: float
    acceptance: float
    identical: bool
    """Whether every text was what the mode promises."""


def measure_pair(subject: Subject, new_tokens: int) -> list[PairFigures]:
    """In fast and in exact mode, bf16, one sequence at a time."""
    device = this_device().torch_device
    with tempfile.TemporaryDirectory() as folder:
        target_dir, draft_dir = write_pair(Path(folder), subject)
        target = LeanModel(target_dir, torch.bfloat16, device)
        draft = LeanModel(draft_dir, torch.bfloat16, device)
    generator = torch.Generator().manual_seed(1)
    size = (PROMPTS, PROMPT_TOKENS)
    prompts = torch.randint(subject.shape.vocab_size, size, generator=generator).tolist()
    found = []
    for mode in ("fast", "exact"):
        result = compare(
            target, draft, prompts, Sampling(new_tokens),
            draft_lengths=LENGTHS, exact=mode == "exact", repeats=2, note=lambda _: None,
        )  # fmt: skip
        best = result.fastest
        found.append(
            PairFigures(
                mode=mode,
                draft_length=best.draft_length,
                speedup=best.speedup.value,
                low=best.speedup.low,
                high=best.speedup.high,
                acceptance=best.acceptance.acceptance_of_judged,
                identical=result.identity_holds,
            )
        )
    return found


def write_pair(folder: Path, subject: Subject) -> tuple[Path, Path]:
    """HF directories of the target and of the draft, in bf16."""
    shape = subject.shape
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_position,
        tie_word_embeddings=shape.tied_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
    )
    torch.manual_seed(1)
    with torch.device(this_device().torch_device):
        model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    kept = max(1, shape.layers // DRAFT_SHARE)
    with torch.no_grad():
        for layer in model.model.layers[kept:]:
            layer.self_attn.o_proj.weight.mul_(UPPER)
            layer.mlp.down_proj.weight.mul_(UPPER)
    model.save_pretrained(folder / "target")
    model.model.layers = model.model.layers[:kept]
    model.config.num_hidden_layers = kept
    model.config.layer_types = model.config.layer_types[:kept]
    model.save_pretrained(folder / "draft")
    return folder / "target", folder / "draft"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure a pair and print it as JSON.")
    parser.add_argument("--tiny", action="store_true", help="tiny models: checks the code only")
    tiny = parser.parse_args().tiny
    found = measure_pair(TINY if tiny else SMALL, 8 if tiny else 64)
    print(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
