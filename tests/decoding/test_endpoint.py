"""A server gives what the model behind it writes, in spite of trouble on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.accelerator.launch import free_port
from megatron_soaes.decoding.endpoint import EndpointGenerator
from megatron_soaes.decoding.interface import LogLikelihood
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from megatron_soaes.errors import UserError
from tests.decoding.material import GREEDY, PROMPTS, REQUESTS, SAMPLED, text_of
from tests.decoding.server import SERVED, Server, running


@pytest.fixture(scope="module")
def lean(models: Path) -> LeanModel:
    return LeanModel(models / "llama" / "hf")


@pytest.fixture
def server(lean: LeanModel) -> Iterator[Server]:
    with running(lean) as started:
        yield started


def tokens_of(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def client(server: Server, **options: Any) -> EndpointGenerator:
    return EndpointGenerator(server.url, SERVED, tokens_of, backoff_s=0.001, **options)


@pytest.mark.parametrize("ask_token_ids", [True, False])
def test_it_gives_what_the_model_writes(
    server: Server, greedy: dict[str, list[list[int]]], ask_token_ids: bool
) -> None:
    found = client(server, ask_token_ids=ask_token_ids).generate(PROMPTS, GREEDY)
    assert [list(one.tokens) for one in found] == greedy["llama"]
    assert [one.text for one in found] == [text_of(tokens) for tokens in greedy["llama"]]
    assert sorted(body["prompt"] for body in server.bodies) == sorted(PROMPTS)
    assert all(("return_token_ids" in body) == ask_token_ids for body in server.bodies)


def test_sampling_reaches_the_server(server: Server, lean: LeanModel) -> None:
    found = client(server).generate(PROMPTS, SAMPLED)
    assert found == LeanGenerator(lean, text_of).generate(PROMPTS, SAMPLED)


@pytest.mark.parametrize("ask_token_ids", [True, False])
def test_a_stop_token_is_left_out(
    server: Server, lean: LeanModel, greedy: dict[str, list[list[int]]], ask_token_ids: bool
) -> None:
    sampling = replace(GREEDY, stop_ids=(greedy["llama"][0][5],))
    found = client(server, ask_token_ids=ask_token_ids).generate(PROMPTS, sampling)
    assert found == LeanGenerator(lean, text_of).generate(PROMPTS, sampling)
    assert found[0].finish == "stop"


def test_likelihoods_come_from_the_echoed_prompt(
    server: Server, likelihoods: dict[str, list[LogLikelihood]]
) -> None:
    for one, wanted in zip(
        client(server).log_likelihoods(REQUESTS), likelihoods["llama"], strict=True
    ):
        assert one.total == pytest.approx(wanted.total, abs=1e-4)
        assert one.greedy == wanted.greedy


def test_a_server_without_prompt_log_probabilities_is_refused(server: Server) -> None:
    server.returns_prompt_logprobs = False
    with pytest.raises(UserError, match="without log-probabilities of the prompt"):
        client(server).log_likelihoods(REQUESTS)


def test_requests_run_beside_each_other_up_to_the_limit(server: Server) -> None:
    server.gate = threading.Barrier(3)
    client(server, concurrency=3).generate(PROMPTS, GREEDY)
    assert server.open["most"] == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_waited_out(
    server: Server, greedy: dict[str, list[list[int]]], status: int
) -> None:
    server.trouble = lambda number: status if number % 3 else None
    found = client(server, concurrency=1).generate(PROMPTS, GREEDY)
    assert [list(one.tokens) for one in found] == greedy["llama"]
    assert len(server.bodies) == 3 * len(PROMPTS)


def test_lasting_trouble_is_reported(server: Server) -> None:
    server.trouble = lambda number: 503
    with pytest.raises(UserError, match=r"status 503 .*trouble.* after 3 attempts"):
        client(server, retries=2).generate(PROMPTS[:1], GREEDY)


def test_a_refused_request_is_not_repeated(server: Server) -> None:
    server.trouble = lambda number: 400
    with pytest.raises(UserError, match=r"status 400 .*trouble"):
        client(server, concurrency=1).generate(PROMPTS, GREEDY)
    assert len(server.bodies) < len(PROMPTS)


def test_an_unknown_model_is_named(server: Server) -> None:
    generator = EndpointGenerator(server.url, "other", tokens_of)
    with pytest.raises(UserError, match=r"model other does not exist.*serves 'other'"):
        generator.generate(PROMPTS[:1], GREEDY)


def test_no_server_is_reported_with_the_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    generator = EndpointGenerator(url, SERVED, tokens_of, retries=1, backoff_s=0.001)
    with pytest.raises(UserError, match=rf"{url}/v1/completions: found no answer \(ConnectError"):
        generator.generate(PROMPTS[:1], GREEDY)


def test_a_server_that_takes_too_long_is_reported(server: Server) -> None:
    generator = client(server, timeout_s=1e-4, retries=1)
    with pytest.raises(UserError, match=r"no answer \(\w+Timeout"):
        generator.generate(PROMPTS[:1], replace(GREEDY, max_new_tokens=200))


def test_an_empty_prompt_is_refused(server: Server) -> None:
    with pytest.raises(UserError, match="prompt 1: found no tokens"):
        client(server).generate([[1], []], GREEDY)
