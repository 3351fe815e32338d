"""A Hugging Face tokenizer, read without transformers but as transformers would read it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from megatron_soaes.errors import UserError
from megatron_soaes.files import sha256_file

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
RESAVE = "Write the directory again with AutoTokenizer.from_pretrained(...).save_pretrained(...)."


@dataclass(frozen=True)
class TokenizerInfo:
    """What the converter needs to know of a tokenizer.

    `vocab_size` is `len(tokenizer)` in transformers: added tokens included, no padding. `eod_token`
    is `eos_token` of `tokenizer_config.json`. With `add_special_tokens` the post-processor of
    `tokenizer.json` runs, as in `tokenizer(text)` (Llama: a begin-of-text token; Qwen: nothing).
    """

    path: Path
    """The `tokenizer.json`."""
    sha256: str
    vocab_size: int
    largest_id: int
    eod_token: str | None
    eod_id: int | None
    add_special_tokens: bool
    plain_special_tokens: bool = False
    """Whether the text of a special token inside a text is encoded as any other text."""


def load_tokenizer(model: Path, add_special_tokens: bool) -> tuple[TokenizerInfo, Tokenizer]:
    """Read a tokenizer directory, or a `tokenizer.json` with the configuration beside it.

    Raises `UserError` when a file is missing or broken, and when `tokenizer_config.json` asks for
    something that `tokenizer.json` does not hold, so that transformers would make other ids of it.
    """
    path = model / "tokenizer.json" if model.is_dir() else model
    if not path.is_file():
        fix = f"Name the directory of the model. {RESAVE}"
        raise UserError(model, "no tokenizer.json", "one", fix)
    tokenizer = read_tokenizer(path)
    config = read_config(path)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    named = {name: token_content(config.get(name)) for name in NAMED_TOKENS}
    _check_added_tokens(path, config, named, vocabulary)
    if add_special_tokens:
        _check_wrapping(path, config, named, vocabulary, tokenizer)
    eod_token = named["eos_token"]
    info = TokenizerInfo(
        path=path,
        sha256=sha256_file(path),
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
        largest_id=max(vocabulary.values()),
        eod_token=eod_token,
        eod_id=None if eod_token is None else vocabulary[eod_token],
        add_special_tokens=add_special_tokens,
    )
    return info, tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json` without its truncation and padding, as `tokenizer(text)` runs it."""
    if not path.is_file():
        raise UserError(path, "no such file", "the tokenizer of a model", "Check the path.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the bare class
        raise UserError(
            path, str(error), "a tokenizer the tokenizers library reads", RESAVE
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_config(tokenizer: Path) -> dict[str, Any]:
    """The `tokenizer_config.json` beside a `tokenizer.json`; empty where there is none."""
    path = tokenizer.with_name("tokenizer_config.json")
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(path, f"invalid JSON ({error})", "a JSON object", RESAVE) from error
    if not isinstance(config, dict):
        raise UserError(path, f"a {type(config).__name__}", "a JSON object", RESAVE)
    return config


def token_content(token: str | dict[str, Any] | None) -> str | None:
    """The text of a token as `tokenizer_config.json` names it."""
    return token["content"] if isinstance(token, dict) else token


def _check_added_tokens(
    path: Path,
    config: dict[str, Any],
    named: dict[str, str | None],
    vocabulary: dict[str, int],
) -> None:
    added = config.get("added_tokens_decoder", {}).items()
    wanted: list[tuple[str, int | None]] = [(token_content(t) or "", int(i)) for i, t in added]
    wanted += [(token, None) for token in named.values() if token is not None]
    for token, token_id in wanted:
        found = vocabulary.get(token)
        if found is None or (token_id is not None and found != token_id):
            raise UserError(
                path,
                f"{'no token' if found is None else f'id {found} for'} {token!r}",
                f"it {'' if token_id is None else f'with id {token_id} '}"
                "as in tokenizer_config.json beside it",
                RESAVE,
            )


def _check_wrapping(
    path: Path,
    config: dict[str, Any],
    named: dict[str, str | None],
    vocabulary: dict[str, int],
    tokenizer: Tokenizer,
) -> None:
    """transformers rebuilds the post-processor where add_bos_token or add_eos_token is set."""
    switches = {"add_bos_token": "bos_token", "add_eos_token": "eos_token"}
    if not switches.keys() & config.keys():
        return
    asked = [named[token] for switch, token in switches.items() if config.get(switch)]
    expected = [vocabulary[token] for token in asked if token is not None]
    found = tokenizer.encode("", add_special_tokens=True).ids
    if found != expected:
        raise UserError(
            path,
            f"a post-processor that adds the ids {found} to a text",
            f"{expected}, by add_bos_token and add_eos_token of tokenizer_config.json",
            f"{RESAVE} Or pass --tokenizer-hf-no-include-special-tokens to add none.",
        )
