"""Speculative decoding: ours against our plain decoding and against `transformers`, in one run.

    python -m benchmarks.speculative [TARGET DRAFT --prompts FILE] [--matrix] [--threads 2]

Greedy, one prompt at a time; every prompt goes through every variant in turn, in another order each
time. All variants use the same weights in the same dtypes. Without directories a pair with random
weights is made: its times are those of its shapes, its acceptance says nothing about trained
models, and its speedup therefore neither. `--matrix` first proves exact mode on tiny models:
bitwise equal logits for each family, dtype, batch size and draft length.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from megatron_soaes.decoding.draft_length import acceptance_of
from megatron_soaes.decoding.interface import Prompt, Sampling
from megatron_soaes.decoding.lean import LeanModel
from megatron_soaes.decoding.measure import Timed, identity, in_turn, speedup
from megatron_soaes.decoding.pairing import (
    dtype_name,
    load_model,
    pass_costs,
    shared_tokenizer,
)
from megatron_soaes.decoding.prompt_file import read_prompts
from megatron_soaes.decoding.prompts import stop_ids
from megatron_soaes.decoding.speculative import Speculation, SpeculativeDecoder, Step, Written

LONGEST = 7
WINDOW = 9
VOCABULARY = 4096
FAMILIES = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
HEAD = (
    "| variant | ms a token | over our plain (95 %) | over transformers | length with bonus "
    "| same text |"
)


class Peer:
    """`transformers.generate`, alone or with an assistant that drafts a fixed number of tokens."""

    def __init__(self, hf_dir: Path, like: LeanModel) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(hf_dir, dtype=like.dtype)
        self._options: dict[str, Any] = {}

    def assisted_by(self, other: Peer, length: int) -> Peer:
        """This model with the other as its assistant."""
        assisted = object.__new__(Peer)
        assisted.model = self.model
        assisted._options = {"assistant_model": other.model}
        settings = other.model.generation_config
        settings.num_assistant_tokens = length
        settings.num_assistant_tokens_schedule = "constant"
        settings.assistant_confidence_threshold = 0.0
        return assisted

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, rows: int = 1
    ) -> list[Written]:
        """Greedy, one prompt at a time; what was accepted is not reported."""
        found = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=list(sampling.stop_ids) or None, **self._options,
            )  # fmt: skip
            tokens = out[0, len(prompt) :].tolist()
            stop = tokens.pop() if tokens and tokens[-1] in sampling.stop_ids else None
            found.append(Written(tuple(tokens), stop, ()))
        return found


def random_model(folder: Path, family: str, layers: int, hidden: int, vocab_size: int) -> Path:
    """Write a model with random weights large enough that it does not repeat itself."""
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(layers)
    config = config_class(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=hidden // 4, max_position_embeddings=1024, initializer_range=0.1,
        eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    return folder


def random_prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Prompts of random tokens."""
    source = random.Random(1)
    return [[source.randrange(vocab_size) for _ in range(length)] for _ in range(count)]


def matrix(folder: Path) -> None:
    """Exact mode: how many sequences have the logits of plain decoding, bit for bit."""
    prompts = [p[: 3 + 5 * i] for i, p in enumerate(random_prompts(8, 40, 256))]
    print("| family | dtype | batch | sequences with bitwise equal logits, draft lengths 1 to 8 |")
    print("|---|---|---|---|")
    for family, dtype in itertools.product(FAMILIES, (torch.float32, torch.bfloat16)):
        hf_dir = folder / family
        if not hf_dir.exists():
            random_model(hf_dir, family, 4, 64, 256)
        target, draft = LeanModel(hf_dir, dtype), LeanModel(hf_dir, torch.bfloat16)
        for rows in (1, 4):
            plain = _logits(target, None, prompts, rows, 0)
            equal = [
                sum(map(torch.equal, _logits(target, draft, prompts, rows, length), plain))
                for length in range(1, 9)
            ]
            name = dtype_name(target)
            print(f"| {family} | {name} | {rows} | {equal} of {len(prompts)} |", flush=True)


def _logits(
    target: LeanModel, draft: LeanModel | None, prompts: list[list[int]], rows: int, length: int
) -> list[Tensor]:
    parts: list[list[Tensor]] = [[] for _ in prompts]

    def watch(step: Step) -> None:
        parts[step.sequence].append(step.logits)

    decoder = SpeculativeDecoder(target, draft, Speculation(length, exact=True, window=WINDOW))
    decoder.generate(prompts, Sampling(24), rows, watch)
    return [torch.cat(part) for part in parts]


def contest(
    dirs: tuple[Path, Path], prompts: list[list[int]], sampling: Sampling, repeats: int
) -> None:
    """Print the table of all variants."""
    target, draft = (load_model(one, "auto") for one in dirs)
    peer, assistant = Peer(dirs[0], target), Peer(dirs[1], draft)
    costs = pass_costs(target, draft, LONGEST, 1, None)
    lengths = (2, 3, 5, LONGEST)
    ours = {f"draft {n}": Speculation(n, window=WINDOW) for n in lengths}
    ours |= {f"draft {n}, exact": replace(ours[f"draft {n}"], exact=True) for n in lengths}
    ours["adaptive"] = Speculation(LONGEST, window=WINDOW, adaptive=costs)
    ours = {"plain": Speculation(0), "plain, exact": Speculation(0, True, WINDOW)} | ours
    timed = in_turn(
        {name: SpeculativeDecoder(target, draft, one) for name, one in ours.items()}
        | {"transformers": peer, "transformers, assisted 5": peer.assisted_by(assistant, 5)},
        prompts, sampling, rows=1, repeats=repeats, note=print,
    )  # fmt: skip
    print(
        f"target {dtype_name(target)}, draft {dtype_name(draft)}, cost ratio "
        f"{costs.cost_ratio:.3f}, {len(prompts)} prompts, {sampling.max_new_tokens} new tokens, "
        f"{torch.get_num_threads()} threads\n\n{HEAD}\n|---|---|---|---|---|---|"
    )
    for name, found in timed.items():
        exact = name in ours and ours[name].exact
        same = identity(
            target, prompts, timed["plain, exact" if exact else "plain"].written, found.written,
            exact=exact,
        )  # fmt: skip
        ties = sum(one.is_near_tie for one in same.divergences)
        text = f"{same.equal} of {same.prompts}" + (f", {ties} near ties" if ties else "")
        print(_row(name, found, timed, text))


def _row(name: str, found: Timed, timed: dict[str, Timed], same: str) -> str:
    gain, peer = speedup(timed["plain"], found), speedup(timed["transformers"], found)
    length = (
        ""
        if not found.rounds
        else f"{acceptance_of(found.rounds).acceptance_length_with_bonus:.2f}"
    )
    return (
        f"| {name} | {1000 * found.seconds_per_token:.2f} | {gain.value:.2f} "
        f"({gain.low:.2f} - {gain.high:.2f}) | {peer.value:.2f} | {length} | {same} |"
    )


def main() -> None:
    """Read the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, metavar="TARGET DRAFT")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--max-new-tokens", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sampling = Sampling(given.max_new_tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.matrix:
            matrix(folder)
        if given.models:
            if len(given.models) != 2 or given.prompts is None:
                parser.error("give TARGET DRAFT and --prompts FILE, or none of them")
            tokenizer = shared_tokenizer(*given.models)
            prompts = read_prompts(given.prompts, tokenizer)
            sampling = replace(sampling, stop_ids=stop_ids(tokenizer, given.models[0]))
            contest(tuple(given.models), prompts, sampling, given.repeats)
            return
        print("\nRandom weights: acceptance, and so speedup, say nothing about trained models.")
        target = random_model(folder / "target", "qwen2", 8, 256, VOCABULARY)
        draft = random_model(folder / "draft", "qwen2", 1, 96, VOCABULARY)
        contest((target, draft), random_prompts(8, 64, VOCABULARY), sampling, given.repeats)


if __name__ == "__main__":
    main()
