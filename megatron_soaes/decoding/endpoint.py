"""Generation by a server that speaks OpenAI's completions protocol (vLLM, SGLang, trtllm-serve)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from megatron_soaes.decoding.interface import (
    Completion,
    LogLikelihood,
    Prompt,
    Request,
    Sampling,
)
from megatron_soaes.errors import UserError

CONNECT_TIMEOUT_S = 10.0
TOO_MANY_REQUESTS = 429
EXCERPT = 300
"""Characters of a server's answer that an error message shows."""


class EndpointGenerator:
    """A `Generator` behind HTTP. Prompts are sent as token ids, so no template is applied twice.

    Sampling is the server's: with a seed it repeats as far as the server keeps its promise. The
    tokens of a completion are those the server returns; where it returns text alone (all but vLLM
    with `ask_token_ids`), they are the tokenizer's for that text, which may be cut otherwise.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokens_of: Callable[[str], Sequence[int]],
        *,
        concurrency: int = 16,
        timeout_s: float = 600.0,
        retries: int = 5,
        backoff_s: float = 1.0,
        api_key: str | None = None,
        ask_token_ids: bool = False,
    ) -> None:
        """`base_url` ends before `/v1`; `model` is the name under which the server serves it.

        At most `concurrency` requests are open at a time, each for at most `timeout_s`. Too many
        requests, errors of the server and lost connections are tried again `retries` times, after
        `backoff_s`, twice that, and so on. `ask_token_ids` sends vLLM's `return_token_ids`, which
        other servers may refuse.
        """
        self._url = base_url.rstrip("/") + "/v1/completions"
        self._model = model
        self._tokens_of = tokens_of
        self._concurrency = concurrency
        self._timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        self._retries = retries
        self._backoff_s = backoff_s
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._ask_token_ids = ask_token_ids

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """See `Generator`; UserError, too, for what the server refuses or does not answer."""
        settings: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "stop_token_ids": list(sampling.stop_ids),
        }
        if not sampling.greedy:
            settings |= {"top_p": sampling.top_p, "seed": sampling.seed}
            if sampling.top_k:
                settings["top_k"] = sampling.top_k
        if self._ask_token_ids:
            settings["return_token_ids"] = True
        choices = self._ask([{"prompt": list(prompt), **settings} for prompt in prompts])
        return [self._completion(choice, sampling) for choice in choices]

    def log_likelihoods(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """See `Generator`; UserError when the server returns no log-probabilities of a prompt.

        The prompt is echoed with the log-probability of each of its tokens and of the likeliest
        token at its place, as vLLM does.
        """
        settings = {"max_tokens": 1, "temperature": 0.0, "logprobs": 1, "echo": True}
        bodies = [
            {"prompt": [*context, *continuation], **settings} for context, continuation in requests
        ]
        choices = self._ask(bodies)
        return [
            self._likelihood(choice, len(context), len(context) + len(continuation))
            for choice, (context, continuation) in zip(choices, requests, strict=True)
        ]

    def _completion(self, choice: dict[str, Any], sampling: Sampling) -> Completion:
        text, finish = choice.get("text"), choice.get("finish_reason")
        if not isinstance(text, str) or finish not in ("stop", "length"):
            raise self._unusable(choice, "a text that ended by `stop` or `length`")
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = self._tokens_of(text)
        elif tokens and tokens[-1] in sampling.stop_ids:
            tokens = tokens[:-1]
        return Completion(tuple(tokens), text, finish)

    def _likelihood(self, choice: dict[str, Any], start: int, end: int) -> LogLikelihood:
        returned = choice.get("logprobs") or {}
        values = (returned.get("token_logprobs") or [])[start:end]
        best = [max(top.values()) for top in (returned.get("top_logprobs") or [])[start:end] if top]
        if len(values) != end - start or len(best) != end - start or None in values:
            raise UserError(
                self._url, "an answer without log-probabilities of the prompt",
                "them, because `echo` and `logprobs` were asked for",
                "Score with a local checkpoint, or with a server that supports both (vLLM).",
            )  # fmt: skip
        greedy = all(value >= top for value, top in zip(values, best, strict=True))
        return LogLikelihood(float(sum(values)), greedy)

    def _ask(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The one choice that answers each body; an error cancels what has not been sent."""
        for number, body in enumerate(bodies):
            if not body["prompt"]:
                raise UserError(
                    f"prompt {number}", "no tokens", "at least one", "Leave the prompt out."
                )
        limits = httpx.Limits(max_connections=self._concurrency)
        with (
            httpx.Client(timeout=self._timeout, limits=limits, headers=self._headers) as client,
            ThreadPoolExecutor(self._concurrency) as pool,
        ):
            return list(pool.map(lambda body: self._choice(client, body), bodies))

    def _choice(self, client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
        response = self._post(client, {"model": self._model, **body})
        try:
            choice = response.json()["choices"][0]
        except (ValueError, LookupError, TypeError):
            raise self._unusable(response.text, "a completion") from None
        if not isinstance(choice, dict):
            raise self._unusable(choice, "a completion")
        return choice

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        """One request, repeated while that may help."""
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._backoff_s * 2 ** (attempt - 1))
            try:
                response = client.post(self._url, json=body)
            except httpx.TransportError as error:
                problem = f"no answer ({type(error).__name__}: {error})"
                continue
            if response.is_success:
                return response
            problem = f"status {response.status_code} ({response.text[:EXCERPT]})"
            if response.status_code != TOO_MANY_REQUESTS and not response.is_server_error:
                raise UserError(
                    self._url, problem, f"a server that serves {self._model!r} and this request",
                    "Compare the address and the model's name with how the server was started.",
                )  # fmt: skip
        raise UserError(
            self._url, f"{problem} after {self._retries + 1} attempts", "an answer",
            "See whether the server runs and what its log says; then start the command again.",
        )  # fmt: skip

    def _unusable(self, found: object, expected: str) -> UserError:
        return UserError(
            self._url, str(found)[:EXCERPT], expected, "Does the server speak this protocol?"
        )
