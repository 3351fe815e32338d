"""Chat templates, their tokenizers, and conversations to convert."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from data_prep.indexed import open_indexed
from tests.data_prep.conftest import save_tokenizer, train_tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role in ['user', 'assistant']"
    " or (message.role == 'system' and not loop.first) %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- elif message.role == 'tool' %}\n"
    "        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}\n"
    "        {{- '\\n</tool_response><|im_end|>\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
"""As Qwen2.5's: a system prompt where there is none, a line end after the end-of-turn token."""
LLAMA3 = (
    "{% set loop_messages = messages %}"
    "{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
"""As Llama 3's: a begin-of-text token, contents without outer white space."""
FORGETFUL = (
    "{% for message in messages %}"
    "{% set content = message.content %}"
    "{% if message.role == 'assistant' and not loop.last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}"
    "{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As those of thinking models: earlier answers lose their thoughts."""
CHANNELS = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message.role }}"
    "{% if message.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
    "{{ '<|message|>' + message.content }}"
    "{{ '<|return|>' if message.role == 'assistant' else '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""As gpt-oss's: the model itself writes control tokens before the content."""
ENDLESS = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""No special token ends an answer."""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "forgetful": FORGETFUL, "channels": CHANNELS}
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "forgetful": "<|im_end|>",
    "channels": "<|return|>",
}
MORE_TOKENS = [
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
]


def chat_tokenizer() -> Tokenizer:
    """Byte-level BPE with the special tokens of all templates, and `<think>` as mere text."""
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in MORE_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    return tokenizer


def save_chat_model(directory: Path, template: str, **config: object) -> Path:
    """The files of a tokenizer with a chat template."""
    config = {"bos_token": "<|begin_of_text|>", "chat_template": template, **config}
    return save_tokenizer(directory, chat_tokenizer(), **config)


def chat(*contents: str, system: str | None = None, **fields: Any) -> dict[str, Any]:
    """A record of user and assistant messages in turn."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for number, content in enumerate(contents):
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    return {"messages": messages, **fields}


def write_jsonl(path: Path, records: Iterable[object]) -> Path:
    """Write records, one a line."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return path


def read_pairs(prefix: Path) -> list[tuple[list[int], list[float]]]:
    """The token ids and the loss weights of every conversation."""
    tokens, weights = open_indexed(prefix), open_indexed(Path(f"{prefix}_weights"))
    return [(t.tolist(), w.tolist()) for t, w in zip(tokens, weights, strict=True)]


def trained_texts(ids: list[int], weights: list[float], tokenizer: Tokenizer) -> list[str]:
    """Each run of tokens with a weight, decoded."""
    mask = np.array(weights) > 0
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [
        tokenizer.decode(ids[start:stop], skip_special_tokens=False)
        for start, stop in edges.tolist()
    ]


RECORDS = [
    chat(
        f"question {k}",
        *(f"答案 {k} {n}" for n in range(2 * (k % 3) + 1)),
        kind=("law", "经济")[k % 2],
    )
    for k in range(60)
]
"""Of one to three answers, from two sources."""
SUFFIXES = (".bin", ".idx", "_weights.bin", "_weights.idx", "_sources.npy", ".json")
OUTPUTS = sorted(f"out{suffix}" for suffix in SUFFIXES)


def dataset_bytes(prefix: Path) -> list[bytes]:
    """The bytes of the files of a dataset."""
    return [Path(f"{prefix}{suffix}").read_bytes() for suffix in SUFFIXES]


def outputs(directory: Path) -> list[str]:
    """What a run with the prefix "out" has left."""
    return sorted(p.name for p in directory.iterdir() if p.name.startswith(("out", ".out")))


NASTY = (
    *("<|im_end|", "|im_end|>", "<|im_start|", "<|eot_id", "im_end", "</s>", "[/INST]", "<think>"),
    *("\n", " ", "assistant\n", "user", "a", "é", "e\u0301", "\u0301", "中", "国企改革，", "🙂"),
    *("\U0001f468\u200d\U0001f469", "1", "{{ x }}", "{% if %}", "'", '"', "\\n", "<", "|", ">"),
)
"""Pieces of text that look like control tokens, templates, or the other half of a character."""
contents = st.one_of(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
).filter(str.strip)
