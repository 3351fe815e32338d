"""Run a target and its draft on TensorRT-LLM engines: the draft proposes, the target judges.

    python3 run_speculative.py "First prompt" "Second prompt" --max-new-tokens 128

Settings are in run_speculative.json beside this file; paths in it count from its folder. Run it in
the environment of TensorRT-LLM that built the engines. Greedy decoding: the text is the target's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tokens = list[int]
Generate = Callable[[Sequence[Tokens], int, "list[Tokens] | None"], list[Tokens]]
"""From prefixes, a number of new tokens and drafts (None for none) to what follows each prefix."""


@dataclass
class Counts:
    """What became of the drafts."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    def line(self) -> str:
        """For the user."""
        rate = self.accepted / max(self.drafted, 1)
        return f"{self.rounds} target passes, {self.drafted} drafted, {rate:.1%} accepted"


def decode(
    draft: Generate,
    target: Generate,
    prompts: Sequence[Tokens],
    *,
    draft_length: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
) -> tuple[list[Tokens], Counts]:
    """Continue each prompt to an end token or `max_new_tokens` tokens; prompts are not returned.

    Every round gives both engines the whole prefix anew: cached blocks of keys and values make
    that cheap. Finished prompts leave the batch.
    """
    written: list[Tokens] = [[] for _ in prompts]
    counts = Counts()
    active = list(range(len(prompts)))
    while active:
        prefixes = [[*prompts[one], *written[one]] for one in active]
        # The target cannot judge an empty draft, so one that ends at once proposes the end.
        drafts = [new or [end_ids[0]] for new in draft(prefixes, draft_length, None)]
        answers = target(prefixes, draft_length + 1, drafts)
        unfinished = []
        for one, drafted, answer in zip(active, drafts, answers, strict=True):
            new = _until_end(answer, end_ids)[: max_new_tokens - len(written[one])]
            counts.rounds += 1
            counts.drafted += len(drafted)
            counts.accepted += _common_prefix(drafted, new)
            written[one] += new
            ended = not new or new[-1] in end_ids
            if not ended and len(written[one]) < max_new_tokens:
                unfinished.append(one)
        active = unfinished
    return written, counts


def _until_end(tokens: Tokens, end_ids: Sequence[int]) -> Tokens:
    """The tokens up to the first end token, which is kept."""
    for place, token in enumerate(tokens):
        if token in end_ids:
            return tokens[: place + 1]
    return tokens


def _common_prefix(left: Tokens, right: Tokens) -> int:
    same = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        same += 1
    return same


def engine(settings: dict[str, Any], folder: Path, role: str) -> Generate:
    """Load the engine of "target" or "draft"."""
    import tensorrt_llm  # type: ignore[import-not-found]
    import torch
    from tensorrt_llm.runtime import ModelRunnerCpp  # type: ignore[import-not-found]

    own = settings[role]
    runner = ModelRunnerCpp.from_dir(
        engine_dir=str(folder / own["engine"]),
        rank=tensorrt_llm.mpi_rank(),
        device_ids=own["devices"],
        is_orchestrator_mode=True,
        max_batch_size=settings["max_batch_size"],
        max_input_len=settings["max_input_len"],
        max_output_len=settings["draft_length"] + 1,
        max_beam_width=1,
        kv_cache_enable_block_reuse=True,
        kv_cache_free_gpu_memory_fraction=own["kv_cache_free_gpu_memory_fraction"],
    )

    def generate(
        prefixes: Sequence[Tokens], new_tokens: int, drafts: list[Tokens] | None
    ) -> list[Tokens]:
        drafted = {} if drafts is None else {"draft_tokens_list": drafts}
        found = runner.generate(
            batch_input_ids=[torch.tensor(one, dtype=torch.int32) for one in prefixes],
            max_new_tokens=new_tokens,
            end_id=settings["end_ids"][0],
            pad_id=settings["pad_id"],
            temperature=1.0,
            top_k=1,
            top_p=0.0,
            num_beams=1,
            streaming=False,
            output_sequence_lengths=True,
            return_dict=True,
            **drafted,
        )
        torch.cuda.synchronize()
        ends = found["sequence_lengths"][:, 0].tolist()
        ids = found["output_ids"]
        return [
            ids[row, 0, len(prefix) : end].tolist()
            for row, (prefix, end) in enumerate(zip(prefixes, ends, strict=True))
        ]

    return generate


def main(arguments: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--chat", action="store_true", help="ask through the chat template")
    asked = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent
    settings = json.loads((folder / "run_speculative.json").read_text(encoding="utf-8"))

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / settings["tokenizer"])
    prompts = [_tokens(tokenizer, text, asked.chat) for text in asked.prompts]
    _check(prompts, asked.max_new_tokens, settings)
    # The target first: its weights must find room before caches of the draft take what is free.
    target = engine(settings, folder, "target")
    draft = engine(settings, folder, "draft")
    written, counts = decode(
        draft,
        target,
        prompts,
        draft_length=settings["draft_length"],
        max_new_tokens=asked.max_new_tokens,
        end_ids=settings["end_ids"],
    )
    for text, tokens in zip(asked.prompts, written, strict=True):
        print(f"{text}\n{tokenizer.decode(tokens, skip_special_tokens=True)}\n")
    print(counts.line(), file=sys.stderr)


def _tokens(tokenizer: Any, text: str, chat: bool) -> Tokens:
    if not chat:
        return list(tokenizer(text).input_ids)
    turns = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(rendered, add_special_tokens=False).input_ids)


def _check(prompts: Sequence[Tokens], max_new_tokens: int, settings: dict[str, Any]) -> None:
    """End with a message when the engines were not built for so much."""
    longest = max(map(len, prompts)) + max_new_tokens
    if len(prompts) > settings["max_batch_size"]:
        sys.exit(f"{len(prompts)} prompts; the engines take {settings['max_batch_size']} at a time")
    if longest > settings["max_input_len"]:
        sys.exit(
            f"the longest prompt and its answer are {longest} tokens; the engines take "
            f"{settings['max_input_len']}. Ask for fewer with --max-new-tokens"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
