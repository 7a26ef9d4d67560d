"""A small server that speaks as vLLM, SGLang or OpenAI's first models do, over a tiny model; and its troubles."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

# Status, headers, and JSON or text; or what writes the body itself, and then breaks off.
Reply = tuple[int, Any, dict[str, str]]


@dataclass
class Served:
    """A running server.

    Attributes:
        model: Answers.
        tokenizer: Reads texts.
        ways: What it can: ``prompt_logprobs``, ``generate``, ``echo`` (with ids), ``echo texts``, ``text``.
        key: Wanted of every request; empty: none.
        limit: Tokens of the longest text, one that is written included.
        most: The most of the likeliest tokens that it tells.
        trouble: Called with the number of a request, its path and body before it is answered; what it gives, if
            anything, is answered instead.
        asked: Every request that was answered as it should be: path and body.
    """

    model: Any
    tokenizer: Any
    ways: tuple[str, ...] = ("prompt_logprobs",)
    key: str = ""
    limit: int = 1024
    most: int = 20
    name: str = "tiny"
    trouble: Callable[[int, str, Any], Reply | None] = lambda number, path, body: None
    change: Callable[[Any], Any] = lambda answer: answer
    asked: list[tuple[str, Any]] = field(default_factory=list)
    requests: int = 0
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def texts(self) -> list[tuple[int, ...]]:
        """The token ids that were asked about."""
        bodies = [body for _, body in self.asked if body]
        found = [body.get("prompt", body.get("input_ids")) for body in bodies]
        return [tuple(ids) for ids in found if isinstance(ids, list)]

    # -------------------------------------------------------------------------------------------------------- answers

    def answer(self, path: str, body: Any, key: str) -> Reply:
        """What a request gets."""
        with self.lock:  # one thread computes, as the tests' processes have one core
            self.requests += 1
            found = self.trouble(self.requests, path, body)
            if found is not None:
                return found
            if self.key and key != f"Bearer {self.key}":
                return 401, {"error": {"message": f"wrong key {key}"}}, {}
            found = self._right(path, body)
            if found[0] == 200:
                self.asked.append((path, body))
                return 200, self.change(found[1]), {}
            return found

    def _right(self, path: str, body: Any) -> Reply:
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name, "max_model_len": self.limit}]}, {}
        given = body.get("prompt", body.get("input_ids", body.get("text"))) if body else None
        if given is None or path not in ("/v1/completions", "/generate"):
            return 404, {"detail": "Not Found"}, {}
        ids = self.tokenizer.encode(given, add_special_tokens=False) if isinstance(given, str) else given
        if len(ids) == self.limit:  # as vLLM says it, which writes as much as there is room for
            return 400, {"error": {"message": "max_tokens must be at least 1, got 0."}}, {}
        if len(ids) > self.limit:
            return 400, {"error": {"message": f"This model's maximum context length is {self.limit} tokens."}}, {}
        if max(ids) >= self.model.config.vocab_size:
            return 400, {"error": {"message": f"Token id {max(ids)} is out of vocabulary"}}, {}
        if path == "/generate":
            found = self._generate(body, ids) if "generate" in self.ways else None
            return (404, {"detail": "Not Found"}, {}) if found is None else (200, found, {})
        if body["model"] != self.name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}, {}
        if (asked := max(body.get("prompt_logprobs") or 0, body.get("logprobs") or 0)) > self.most:
            said = f"Requested prompt logprobs of {asked}, which is greater than max allowed: {self.most}"
            return 400, {"error": {"message": said, "code": 400}}, {}
        return 200, self._completion(body, ids), {}

    @torch.no_grad()
    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        """``[L, V]``, of which row i predicts token i + 1."""
        return torch.log_softmax(self.model(torch.tensor([ids])).logits[0].float(), -1)

    def _told(self, ids: list[int], top: int) -> list[dict[int, float] | None]:
        rows, found = self.log_probabilities(ids), [None]
        for place, token in enumerate(ids[1:]):
            likely = rows[place].topk(top).indices.tolist() if top else []
            found.append({i: float(rows[place, i]) for i in dict.fromkeys([token, *likely])})
        return found

    def _completion(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": "", "finish_reason": "length"}
        if "prompt_logprobs" in self.ways and body.get("prompt_logprobs") is not None:
            told = self._told(ids, body["prompt_logprobs"])
            choice["prompt_logprobs"] = [entry and {str(i): {"logprob": v} for i, v in entry.items()} for entry in told]
        echo = next((way for way in self.ways if way.startswith("echo")), None)
        if echo and body.get("echo"):
            told = self._told([*ids, 0], body["logprobs"])
            name = (lambda i: f"token_id:{i}") if echo == "echo" else (lambda i: self.tokenizer.decode([i]))
            choice["logprobs"] = {
                "tokens": [name(i) for i in [*ids, 0]],
                "token_logprobs": [entry and entry[i] for i, entry in zip([*ids, 0], told, strict=True)],
                "top_logprobs": [entry and {name(i): v for i, v in entry.items()} for entry in told],
            }
        if body["max_tokens"] > 1:
            choice |= self._written(body, ids)
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def _written(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        written: list[int] = []
        stops = body.get("stop_token_ids") or [self.tokenizer.eos_token_id]
        while len(written) < body["max_tokens"] and not (written and written[-1] in stops):
            written.append(int(self.log_probabilities([*ids, *written])[-1].argmax()))
        ended = written[-1] in stops
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        ids_told = {"token_ids": written} if body.get("return_token_ids") else {}
        return {"text": text, "finish_reason": "stop" if ended else "length", **ids_told}

    def _generate(self, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        start, top = body["logprob_start_len"], body["top_logprobs_num"]
        told = self._told(ids, top)[start:]
        first = [None, *told[1:]]  # the first of them has no log-probability
        own = [[entry and entry[i], i, None] for i, entry in zip(ids[start:], first, strict=True)]
        likely = [entry and [[v, i, None] for i, v in list(entry.items())[-top:]] for entry in first]
        return {"text": "", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": likely}}


@contextmanager
def serving(model: Any, tokenizer: Any, **settings: Any) -> Iterator[Served]:
    """Serve a model on a free port of this machine."""
    served = Served(model, tokenizer, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _reply(self, body: Any) -> None:
            status, content, headers = served.answer(self.path, body, self.headers.get("authorization", ""))
            self.send_response(status)
            if callable(content):
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(OSError):  # nobody reads it any more
                    content(self.wfile)
                return
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
