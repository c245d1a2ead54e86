"""A server in the place of vLLM, for the commands of the pages: a small model answers in vLLM's words.

It gives greedy answers, and the exact probabilities of chosen tokens after prompts (`logprob_token_ids`), as
vLLM does on any machine. Text is SmolLM2-135M's. Probabilities, of which a score needs thousands, are a tiny
random model's, so they are numbers without a sense. `tests/vllm/` asks a real vLLM.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from neuroexplain.llm.local import LocalEngine

Answer = tuple[int, dict[str, Any]]  # status, JSON


class Writer(LocalEngine):
    """A model in this process that continues token ids."""

    def complete(self, body: dict[str, Any]) -> Answer:
        """The answer to a request for text."""
        prompt = torch.tensor([body["prompt"]], device=self._model.device)
        with self._forward_lock, torch.inference_mode():
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=body["max_tokens"],
                do_sample=False,
                pad_token_id=self.tokenizer.eos_token_id,
            )
        answer_ids = output[0, prompt.shape[1] :].tolist()
        text = self.tokenizer.decode(answer_ids, skip_special_tokens=True)
        usage = {"prompt_tokens": prompt.shape[1], "completion_tokens": len(answer_ids)}
        return 200, {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": usage}


def _next_tokens(model: LocalEngine, body: dict[str, Any]) -> Answer:
    """The probabilities of chosen tokens, else of the most likely ones, after each prompt."""
    prompts = body["prompt"]
    if "logprob_token_ids" in body:
        ids = body["logprob_token_ids"]
        shared = min(_count_shared(prompts), min(map(len, prompts)) - 1)
        rows = model.next_distributions(prompts, [[i] for i in ids], shared).tolist()
        entries = [{i: math.log(max(p, 1e-300)) for i, p in zip(ids, row, strict=True)} for row in rows]
    else:
        logprobs = [model.next_token_logprobs(prompt) for prompt in prompts]
        best = [row.argsort()[: -body["logprobs"] - 1 : -1].tolist() for row in logprobs]
        entries = [{i: float(row[i]) for i in ids} for row, ids in zip(logprobs, best, strict=True)]
    choices = [
        {"index": n, "logprobs": {"top_logprobs": [{f"token_id:{i}": p for i, p in entry.items()}]}}
        for n, entry in enumerate(entries)
    ]
    return 200, {"choices": choices, "usage": {"prompt_tokens": sum(map(len, prompts))}}


def _count_shared(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with."""
    return sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*prompts, strict=False)))


@contextmanager
def answering(folder: Path, random_model: Path, name: str) -> Iterator[str]:
    """Serve what one model writes and the probabilities of the other. Yields the URL."""
    writer = Writer(str(folder), "float32", "cpu")
    judge = LocalEngine(str(random_model), "float32", "cpu")
    card = {"id": name, "root": str(folder), "max_model_len": 4096}
    pages = {"/health": {}, "/version": {"version": "0.32.0"}, "/v1/models": {"data": [card]}}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200 if self.path in pages else 404, pages.get(self.path, {}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/completions" or "prompt_logprobs" in body:
                self.answer(400, {"error": {"message": "not offered"}})
            else:
                self.answer(*(_next_tokens(judge, body) if "logprobs" in body else writer.complete(body)))

        def answer(self, status: int, answer: dict[str, Any]) -> None:
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
