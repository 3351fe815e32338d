"""A tiny pair with a tokenizer, texts to calibrate on, and the FP8 model in `transformers`."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from data_prep.rehearsal.tokenizer import save_tokenizer, train_tokenizer
from tests.checkpoint.tiny import Case, make_model, tensors_of

SENTENCES = [
    f"Question {number}: what does the {noun} of the {place} say about {noun}s, and why?"
    for number, (noun, place) in enumerate(
        (noun, place)
        for noun in ("bishop", "letter", "bridge", "garden")
        for place in ("north", "old town", "river", "island")
    )
]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LARGEST = 448.0


def make(directory: Path, case: Case, seed: int = 7) -> Path:
    """A model in bf16 with a tokenizer of 300 tokens."""
    make_model(directory, case, dtype=torch.bfloat16, seed=seed)
    tokenizer = directory.with_name(directory.name + "-tokenizer")
    save_tokenizer(train_tokenizer(SENTENCES, 300), tokenizer)
    shutil.copytree(tokenizer, directory, dirs_exist_ok=True)
    return directory


def make_texts(file: Path) -> Path:
    """Texts as prompts, texts and conversations; numbers 0 and 8 are held out."""
    lines = []
    for number, text in enumerate(SENTENCES):
        turns = [{"role": "user", "content": text}]
        lines.append(
            json.dumps([{"prompt": text}, {"text": text}, {"messages": turns}][number % 3])
        )
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def fp8(numbers: Tensor, scale: Tensor) -> Tensor:
    """Numbers after a time in FP8."""
    limited = (numbers / scale).clamp(-LARGEST, LARGEST)
    return limited.to(torch.float8_e4m3fn).float() * scale


def load_quantised(directory: Path) -> nn.Module:
    """`transformers`' model with the matrices of an FP8 directory and rounded inputs, fp32.

    The cache is not rounded.
    """
    tensors = tensors_of(directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    own = {}
    for name in model.state_dict():
        stored = tensors.get(name, tensors["model.embed_tokens.weight"])
        own[name] = stored.float() * tensors.get(name + "_scale", torch.ones(()))
    model.load_state_dict(own)
    for name, module in model.named_modules():
        scale = tensors.get(name + ".input_scale")
        if scale is not None:
            module.register_forward_pre_hook(partial(_round_input, scale))
    quantised: nn.Module = model.eval()
    return quantised


def _round_input(scale: Tensor, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return fp8(inputs[0], scale)
