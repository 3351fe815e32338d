"""Tiny models of all families, prompts of many lengths, and what transformers makes of them."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import transformers
from torch import Tensor

from megatron_soaes.checkpoint.distributed import load_weights
from megatron_soaes.checkpoint.import_hf import import_hf
from megatron_soaes.decoding.interface import LogLikelihood, Request, Sampling
from megatron_soaes.decoding.megatron import MegatronGenerator
from megatron_soaes.models.build import BuildOptions, build_model
from megatron_soaes.recipe.shapes import read_shape
from megatron_soaes.recipe.training_settings import Layout
from tests.checkpoint.tiny import LLAMA3_ROPE, Case, edit_weights, make_model

VOCABULARY = 250
"""Not a multiple of anything, so Megatron-Core pads it."""
MODELS = {
    "qwen2": Case("qwen2", tied=True, kv_heads=2, vocab_size=VOCABULARY),
    "qwen3": Case("qwen3", tied=False, kv_heads=1, vocab_size=VOCABULARY),
    "llama": Case("llama", tied=False, kv_heads=8, vocab_size=VOCABULARY, rope=LLAMA3_ROPE),
}
"""Between them: biases, a norm on each head, tied and untied, scaled rope; one KV head is fewer
than the two tensor-parallel ranks."""
NEW_TOKENS = 16
GREEDY = Sampling(NEW_TOKENS)
SAMPLED = Sampling(NEW_TOKENS, temperature=1.3, top_p=0.9, seed=3)


def make_prompts() -> list[list[int]]:
    """Nine prompts of 1 to 40 tokens; two have the same length."""
    generator = random.Random(1)
    lengths = (5, 17, 3, 40, 9, 1, 12, 9, 33)
    return [[generator.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


PROMPTS = make_prompts()
REQUESTS: list[Request] = [
    (prompt, PROMPTS[-1 - number][: number % 4]) for number, prompt in enumerate(PROMPTS)
]
"""Continuations of 0 to 3 tokens."""


def make_models(folder: Path) -> None:
    """Write `folder`/NAME/{hf,imported}; the models are made lively: they write no loops."""
    for name, case in MODELS.items():
        hf_dir = make_model(folder / name / "hf", case)
        edit_weights(hf_dir, _enliven)
        import_hf(hf_dir, folder / name / "imported", verify=False)


def _enliven(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "layers" in name:
            tensors[name] = tensor * 4


def transformers_model(hf_dir: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32)


@torch.no_grad()
def greedy_by_transformers(hf_dir: Path, cached: bool) -> list[list[int]]:
    """What `generate` writes after each prompt, alone."""
    model = transformers_model(hf_dir)
    written = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        out = model.generate(
            tokens,
            # Given, because `generate` would hide every token that is the padding token.
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=cached,
            eos_token_id=None,
            pad_token_id=0,
        )
        written.append(out[0, len(prompt) :].tolist())
    return written


@torch.no_grad()
def likelihoods_by_transformers(hf_dir: Path) -> list[LogLikelihood]:
    """From the log-softmax of the logits of each request, alone."""
    model = transformers_model(hf_dir)
    results = []
    for context, continuation in REQUESTS:
        logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
        wanted = torch.tensor(continuation, dtype=torch.int64)
        values = logits.log_softmax(-1).gather(1, wanted[:, None])
        results.append(
            LogLikelihood(values.double().sum().item(), bool((logits.argmax(-1) == wanted).all()))
        )
    return results


def text_of(tokens: list[int]) -> str:
    """A text in which every token can be seen."""
    return " ".join(map(str, tokens))


def megatron_generator(
    folder: Path, name: str, layout: Layout, batch_size: int = 4
) -> MegatronGenerator:
    """A generator of the model in the layout that is active."""
    shape = read_shape(folder / name / "hf" / "config.json")
    options = BuildOptions(torch.float32, shape.padded_vocab_size(128), layout)
    chunks = [build_model(shape, options)]
    load_weights(folder / name / "imported", 0, chunks)
    return MegatronGenerator(shape, chunks, text_of, batch_size)
