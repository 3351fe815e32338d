"""A model's chat template and its control tokens, rendered as transformers renders it.

The environment is that of `apply_chat_template` in `transformers/utils/chat_template_utils.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from data_prep.sft.problems import Problem, RecordError
from data_prep.tokenizer import NAMED_TOKENS, TokenizerInfo, read_config, token_content
from megatron_soaes.errors import UserError

TEMPLATE_FILE = "chat_template.jinja"

Message = dict[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and all that its text depends on besides the messages."""

    place: str
    """Where it stands, for messages."""
    source: str
    named_tokens: tuple[tuple[str, str], ...]
    """`bos_token`, `eos_token` and the others that the tokenizer has."""
    date: date | None
    """What `strftime_now` tells; a template that asks without it is refused."""

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the template's text."""
        return sha256(self.source.encode("utf-8")).hexdigest()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of a conversation; with the prompt for an answer at its end if so asked.

        Raises `RecordError` when the template refuses the messages, and `UserError` when it asks
        for today's date and none was given.
        """
        try:
            return _compile(self).render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **dict(self.named_tokens),
            )
        except (TemplateError, TypeError, LookupError, ValueError) as error:
            found = f"what the chat template refuses ({error})"
            raise RecordError(Problem.TEMPLATE_REFUSES, found) from error


def load_chat_template(info: TokenizerInfo, day: date | None) -> ChatTemplate:
    """The template of a tokenizer: `chat_template.jinja`, else that of `tokenizer_config.json`.

    Of several templates it is the one named "default". Raises `UserError` when there is none or
    when it is no Jinja template.
    """
    file = info.path.with_name(TEMPLATE_FILE)
    config = read_config(info.path)
    if file.is_file():
        source: Any = file.read_text(encoding="utf-8")
    else:
        file = info.path.with_name("tokenizer_config.json")
        source = config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if not isinstance(source, str):
        raise UserError(
            file,
            "no chat_template",
            "the template with which the model will be served",
            f"Copy it from the chat model of the family, or write {TEMPLATE_FILE} beside it.",
        )
    named = {name: token_content(config.get(name)) for name in (*NAMED_TOKENS, "mask_token")}
    tokens = tuple((name, token) for name, token in named.items() if token is not None)
    template = ChatTemplate(str(file), source, tokens, day)
    _compile(template)
    return template


@lru_cache(maxsize=8)
def _compile(template: ChatTemplate) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _clock(template)
    try:
        return environment.from_string(template.source)
    except TemplateSyntaxError as error:
        raise UserError(
            f"{template.place}: line {error.lineno} of the chat template",
            str(error.message),
            "a Jinja template",
            "Copy the template again.",
        ) from error


class _GenerationBlock(Extension):
    """`{% generation %}`, with which templates mark answers: here it is only what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _clock(template: ChatTemplate) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:
        if template.date is None:
            raise UserError(
                template.place,
                "a chat template that writes today's date",
                "a date that does not change from run to run",
                "Give the date to write with --date YYYY-MM-DD; in a recipe as chat.date.",
            )
        return datetime.combine(template.date, time()).strftime(form)

    return strftime_now


@dataclass(frozen=True)
class ControlTokens:
    """The special tokens of a tokenizer, which a chat template may write and a text may not."""

    ids: tuple[tuple[str, int], ...]

    def find(self, text: str) -> list[tuple[str, int]]:
        """The control tokens in a text, with the offset at which each ends."""
        return [(match[0], match.end()) for match in self._pattern.finditer(text)]

    def id_of(self, token: str) -> int:
        """The id of a control token."""
        return self._by_text[token]

    @cached_property
    def _by_text(self) -> dict[str, int]:
        return dict(self.ids)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # The longest first: as the tokenizers library matches them.
        tokens = sorted(self._by_text, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def load_control_tokens(info: TokenizerInfo, tokenizer: Tokenizer) -> ControlTokens:
    """The added tokens that `tokenizer.json` or `tokenizer_config.json` calls special.

    Other added tokens, such as Qwen's `<think>`, are text that a model may say.
    """
    config = read_config(info.path)
    extra = config.get("extra_special_tokens") or []
    listed = [*(config.get("additional_special_tokens") or [])]
    listed += [*(extra.values() if isinstance(extra, dict) else extra)]
    listed += [config.get(name) for name in (*NAMED_TOKENS, "mask_token")]
    added = config.get("added_tokens_decoder", {}).values()
    listed += [token for token in added if token.get("special")]
    special = {token_content(token) for token in listed}
    return ControlTokens(
        tuple(
            (token.content, token_id)
            for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
            if token.special or token.content in special
        )
    )
