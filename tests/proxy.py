"""A proxy that records a server's answers, repeats them, and injects the faults that servers show by chance.

python -m tests.proxy UPSTREAM [--port N] [--faults broken,nan,429 | all] [--every 5]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

Reply = tuple[int, bytes, dict[str, str]]  # status, body, headers


def _edited(edit: Callable[[Any], None]) -> Callable[[Reply], Reply]:
    """A fault that changes the answer's JSON. An answer in which there is nothing to change stays."""

    def fault(reply: Reply) -> Reply:
        status, body, headers = reply
        before, answer = json.loads(body), json.loads(body)
        try:
            edit(answer)
        except (KeyError, TypeError, IndexError):
            return reply
        return reply if answer == before else (status, json.dumps(answer).encode(), headers)

    return fault


def _map_logprobs(answer: Any, change: Callable[[float], Any]) -> None:
    """Change every log-probability of an answer to a completion, whatever the method."""
    for choice in answer["choices"]:
        for entry in choice.get("prompt_logprobs") or ():
            for token in (entry or {}).values():
                token["logprob"] = change(token["logprob"])
        for entry in (choice.get("logprobs") or {}).get("top_logprobs") or ():
            entry.update({key: change(value) for key, value in entry.items()})


def _shift(answer: Any) -> None:
    choices = answer["choices"]
    if choices[0].get("prompt_logprobs"):
        entries = choices[0]["prompt_logprobs"]
        choices[0]["prompt_logprobs"] = [None, *entries[:1], *entries[1:-1]]
    elif len(choices) > 1:
        answer["choices"] = [*choices[1:], choices[0]]


def _drop_entries(answer: Any) -> None:
    choices = answer["choices"]
    if choices[0].get("prompt_logprobs"):
        choices[0]["prompt_logprobs"].pop()
    elif len(choices) > 1:
        choices.pop()


def _miscount(answer: Any) -> None:
    answer["usage"]["prompt_tokens"] += 1


def _say(text: str) -> Callable[[Any], None]:
    def say(answer: Any) -> None:
        if any(choice.get("logprobs") or choice.get("prompt_logprobs") for choice in answer["choices"]):
            raise KeyError("no text was requested")
        for choice in answer["choices"]:
            choice["text"] = text

    return say


# Faults that only cost time: the same request is answered afterwards.
PASSING: dict[str, Callable[[Reply], Reply]] = {
    "429": lambda reply: (429, b'{"error": {"message": "busy"}}', {"Retry-After": "1"}),
    "503": lambda reply: (503, b"starting", {}),
    "500": lambda reply: (500, b'{"error": {"message": "boom"}}', {}),
    "truncated": lambda reply: (reply[0], reply[1][: len(reply[1]) // 2], {}),
    "dropped": lambda reply: (
        reply[0],
        reply[1][: len(reply[1]) // 2],
        {"Content-Length": str(len(reply[1]))},
    ),
    "silent": lambda reply: (0, b"", {}),
    "nan": _edited(lambda answer: _map_logprobs(answer, lambda value: float("nan"))),  # is no JSON
}
# Faults in an answer that is not requested again: the request is a failed attempt.
LASTING: dict[str, Callable[[Reply], Reply]] = {
    "400": lambda reply: (400, b'{"error": {"message": "no"}}', {}),
    "too long": lambda reply: (400, b'{"error": {"message": "the maximum context length is 5 tokens"}}', {}),
    "shifted": _edited(_shift),
    "short": _edited(_drop_entries),
    "positive": _edited(lambda answer: _map_logprobs(answer, lambda value: 0.5)),
    "null": _edited(lambda answer: _map_logprobs(answer, lambda value: None)),
    "miscounted": _edited(_miscount),
    "no choice": _edited(lambda answer: answer["choices"].clear()),
    "empty": _edited(_say("")),
    "refusal": _edited(_say("I'm sorry, but I cannot help with that.")),
    "cut thought": _edited(_say("<think>It may be")),
    "endless": _edited(_say("and so " * 200)),
}
FAULTS = PASSING | LASTING


class Proxy(ThreadingHTTPServer):
    """Every `every`-th new request gets the next fault; one that would change nothing waits.

    An answer is recorded when it is first fetched, and the same request always gets the same answer, so two
    runs through one proxy differ by the faults alone. `injected` counts the faults.
    """

    daemon_threads = True

    def __init__(self, upstream: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.upstream = httpx.Client(base_url=upstream, timeout=600)
        self.recorded: dict[str, Reply] = {}
        self.injected: Counter[str] = Counter()
        self.slow = 0.0  # seconds before each answer
        self._faults: list[str] = []
        self._every = 1
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def inject(self, faults: Sequence[str], every: int = 1) -> None:
        """Inject each of these faults once, in this order."""
        with self._lock:
            self._faults, self._every, self._seen = list(faults), every, set()

    def answer(self, path: str, body: bytes) -> Reply:
        """The recorded answer, or a faulty one made of it."""
        key = hashlib.sha256(path.encode() + b"\0" + body).hexdigest()
        with self._lock:
            reply = self.recorded.get(key)
        if reply is None:
            reply = self.fetch("POST", path, body)
            with self._lock:
                reply = self.recorded.setdefault(key, reply)
        time.sleep(self.slow)
        with self._lock:
            new = key not in self._seen
            self._seen.add(key)
            if new and self._faults and reply[0] == 200 and len(self._seen) % self._every == 0:
                for name in tuple(self._faults):
                    if (changed := FAULTS[name](reply)) != reply:
                        self._faults.remove(name)
                        self.injected[name] += 1
                        return changed
        return reply

    def fetch(self, method: str, path: str, body: bytes | None = None) -> Reply:
        try:
            response = self.upstream.request(
                method, path, content=body, headers={"Content-Type": "application/json"}
            )
        except httpx.HTTPError as error:
            return 502, str(error).encode(), {}
        return response.status_code, response.content, {}


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send(self.server.fetch("GET", self.path))

    def do_POST(self) -> None:
        self.send(self.server.answer(self.path, self.rfile.read(int(self.headers["Content-Length"]))))

    def send(self, reply: Reply) -> None:
        status, body, headers = reply
        self.close_connection = not status or "Content-Length" in headers
        if not status:
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("upstream")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", default="all")
    parser.add_argument("--every", type=int, default=5)
    options = parser.parse_args()
    proxy = Proxy(options.upstream, options.port)
    proxy.inject(list(FAULTS) if options.faults == "all" else options.faults.split(","), options.every)
    print(proxy.url, flush=True)
    proxy.serve_forever()
