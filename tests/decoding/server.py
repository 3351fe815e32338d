"""A completions server on this machine: the protocol of vLLM, answered by a lean model."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from megatron_soaes.decoding.interface import Sampling
from megatron_soaes.decoding.lean import LeanGenerator, LeanModel
from tests.decoding.material import text_of

SERVED = "tiny"
Trouble = Callable[[int], int | None]
"""The status with which the n-th request (from 1) fails, None for one that succeeds."""


class Server:
    """What the handler of every request shares."""

    def __init__(self, model: LeanModel) -> None:
        self.model = model
        self.trouble: Trouble = lambda number: None
        self.returns_prompt_logprobs = True
        self.gate: threading.Barrier | None = None
        """Every request waits here until there are so many."""
        self.bodies: list[dict[str, Any]] = []
        self.open: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.url = ""

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The choice that answers a request."""
        if body.get("echo"):
            return {"text": "", "finish_reason": "length", "logprobs": self._logprobs(body)}
        stops = tuple(body["stop_token_ids"])
        sampling = Sampling(
            body["max_tokens"], body["temperature"], body.get("top_p", 1.0), body.get("seed", 0),
            stops,
        )  # fmt: skip
        (one,) = LeanGenerator(self.model, text_of).generate([body["prompt"]], sampling)
        choice = {"text": one.text, "finish_reason": one.finish}
        if body.get("return_token_ids"):
            ended = [stops[0]] if one.finish == "stop" else []
            choice |= {"token_ids": [*one.tokens, *ended]}
        return choice

    def _logprobs(self, body: dict[str, Any]) -> dict[str, Any] | None:
        if not self.returns_prompt_logprobs:
            return None
        prompt = body["prompt"]
        cache = self.model.new_cache(1, len(prompt))
        hidden = self.model.hidden(torch.tensor([prompt]), cache)
        values = self.model.logits(hidden)[0].log_softmax(-1)
        likely = [None, *({str(v.argmax().item()): v.max().item()} for v in values)]
        own = [None, *(values[i, token].item() for i, token in enumerate(prompt[1:]))]
        return {"token_logprobs": [*own, 0.0], "top_logprobs": likely}


class _HTTP(ThreadingHTTPServer):
    daemon_threads = False
    """Closing waits for requests whose client has gone away."""


@contextmanager
def running(model: LeanModel) -> Iterator[Server]:
    """Serve until the end of the block."""
    server = Server(model)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.bodies.append(body)
                status = server.trouble(len(server.bodies))
                server.open["now"] += 1
                server.open["most"] = max(server.open["most"], server.open["now"])
            if server.gate is not None:
                server.gate.wait(timeout=60)
            code, content = self._answer(body, status)
            with server.lock:
                server.open["now"] -= 1
            self._send(code, content)

        def _answer(self, body: dict[str, Any], status: int | None) -> tuple[int, dict[str, Any]]:
            if body["model"] != SERVED:
                return 404, {"message": f"The model {body['model']} does not exist."}
            if status is not None:
                return status, {"message": "trouble"}
            return 200, {"choices": [server.complete(body)]}

        def _send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            with suppress(ConnectionError):  # the client did not wait
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    with _HTTP(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
