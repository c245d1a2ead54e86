"""Measure the client's simulations a second:  python scripts/bench_client.py [--seconds 10] [--in-flight 8]

With --servers 1,2,4,8 as many servers answer together, each in a process of its own; with --delay 0.05 each
takes its time for a request, as a GPU would, and the client waits for it.

A server in another process plays vLLM and answers at once, for each log-probability method with bytes of real
size: 765 kB for the 20 most likely tokens at 460 prompt tokens. Prompts are built and answers are read as in
a run; only the LLM is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import cProfile
import io
import multiprocessing
import pstats
import random
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import msgspec
import numpy as np

from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.server_list import ServerList
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.scorers.digits import DigitsSimulator, find_level_words
from neuroexplain.subject.load import load_causal_lm
from neuroexplain.units import CROP_LENGTH

METHODS = ("prompt_logprob_token_ids", "logprob_token_ids", "prompt_logprobs=20")
WORDS = (
    "the river ran past old mill while seven grey geese slept under a low red moon and nobody spoke of money"
).split()


class Body(msgspec.Struct):
    """The parts of a request's body that decide the shape of its answer."""

    prompt: list[msgspec.Raw] = []
    token_ids: list[int] = []
    sampling_params: dict[str, Any] = {}
    prompt_logprobs: int | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None


class Answers:
    """A server's answers to one log-probability method, made once for each shape; others are refused."""

    def __init__(self, method: str, mark: int) -> None:
        self.method, self.mark = method, mark  # mark: the id of the prompt's own token at each row
        self.by_shape = cache(self.encode)

    def answer(self, content: bytes) -> bytes | None:
        body = msgspec.json.decode(content, type=Body)
        if body.token_ids and self.method == "prompt_logprob_token_ids":
            rows = body.sampling_params["prompt_logprob_token_ids"]
            return self.by_shape(prompt_rows, len(rows), max(map(len, rows)))
        if body.logprob_token_ids and self.method == "logprob_token_ids":
            return self.by_shape(next_tokens, len(body.prompt), (self.mark, *body.logprob_token_ids))
        if body.logprobs is None and body.prompt_logprobs is None and len(body.prompt) > 1:
            return self.by_shape(text, zlib.crc32(content) % 1000)
        if body.prompt_logprobs == 20 and self.method == "prompt_logprobs=20":
            return self.by_shape(most_likely, len(body.prompt), self.mark)
        return None

    def encode(self, make: Callable[..., dict[str, Any]], *shape: Any) -> bytes:
        return msgspec.json.encode(make(*shape))


def text(number: int) -> dict[str, Any]:
    """An explanation; there are as many as numbers."""
    words = random.Random(number).sample(WORDS, 4)
    return {"choices": [{"text": f"words about {' and '.join(words)}", "finish_reason": "stop"}]}


def prompt_rows(n_rows: int, n_ids: int) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, np.full((n_rows, n_ids), -5.0, np.float32), allow_pickle=False)
    return {"choices": [], "prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode()}


def next_tokens(n_prompts: int, ids: tuple[int, ...]) -> dict[str, Any]:
    entry = {f"token_id:{i}": -5.0 - 0.00001 * i for i in ids}  # up to 128 ids: together below 1
    logprobs = {"tokens": ["x"], "token_logprobs": [-3.0], "text_offset": [0], "top_logprobs": [entry]}
    return {"choices": [{"index": i, "text": "x", "logprobs": logprobs} for i in range(n_prompts)]}


def most_likely(n_tokens: int, mark: int) -> dict[str, Any]:
    draw = random.Random(0)
    entries: list[dict[str, Any] | None] = [None]
    for _ in range(n_tokens - 1):
        ids = [mark, *(draw.randrange(49152) for _ in range(20))]
        rest = {"rank": 12, "decoded_token": " another"}
        entries.append({str(i): {"logprob": -4.123456789012345 - draw.random(), **rest} for i in ids})
    return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": entries}]}


def serve(folder: str, method: str, mark: int, delay: float, port: Any) -> None:
    """Serve a model whose tokenizer is in the folder. The port is put into `port`."""
    answers = Answers(method, mark)
    card = {"id": "bench", "root": folder, "max_model_len": 4096}
    models = msgspec.json.encode({"data": [card]})

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
                content = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
                answer = answers.answer(content) if content else models
                if content and delay:
                    await asyncio.sleep(delay)
                status, answer = (400, b"{}") if answer is None else (200, answer)
                writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(answer)) + answer)
                await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**20)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--method", choices=METHODS, help="measure this log-probability method alone")
    parser.add_argument("--servers", default="1", help="how many servers answer together, like 1,2,4,8")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a server takes for a request")
    parser.add_argument("--profile", action="store_true", help="print where one thread spends its time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_causal_lm(embedded_model(), "float32", "cpu")[1]
        tokenizer.save_pretrained(folder)
        lowest_word = find_level_words(tokenizer)[0][0]
        mark = tokenizer(lowest_word, add_special_tokens=False).input_ids[0]
        for method in METHODS if options.method is None else (options.method,):
            for n in map(int, options.servers.split(",")):
                with serving(n, folder, method, mark, options.delay) as urls:
                    engine = ServerEngine(ServerList.parse(urls), in_flight=options.in_flight)
                    measure(engine, n, options.seconds, options.profile)


@contextmanager
def serving(n: int, *arguments: Any) -> Iterator[str]:
    """Yields the URLs of n servers, with commas between them."""
    ports = [multiprocessing.Value("i", 0) for _ in range(n)]
    servers = [multiprocessing.Process(target=serve, args=(*arguments, port), daemon=True) for port in ports]
    for server in servers:
        server.start()
    while not all(port.value for port in ports):
        time.sleep(0.01)
    yield ",".join(f"http://127.0.0.1:{port.value}" for port in ports)
    for server in servers:
        server.terminate()


def measure(engine: ServerEngine, n_servers: int, seconds: float, profile: bool) -> None:
    scorer = DigitsSimulator(engine)
    vocabulary = {i: VocabularyEntry(i, f" {word}", False) for i, word in enumerate(WORDS)}
    draw = random.Random(0)

    def simulate(number: int) -> int:
        crop = [draw.randrange(len(WORDS)) for _ in range(CROP_LENGTH)]  # two prompts: one is neutral
        return scorer.simulate(f"words about {WORDS[number % len(WORDS)]}", [crop], vocabulary).prompt_tokens

    def until(end: float) -> Iterator[int]:
        number = 0
        while time.monotonic() < end:
            yield number
            number += 1

    n_tokens = simulate(0)
    if profile:
        profiler = cProfile.Profile()
        profiler.runcall(lambda: [simulate(number) for number in range(100)])
        pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
    began, began_process = time.monotonic(), time.process_time()
    n = sum(1 for _ in map_in_flight(simulate, until(began + seconds), engine.in_flight))
    elapsed, process = time.monotonic() - began, time.process_time() - began_process
    print(
        f"{engine.version}, {n_servers} servers: {n / elapsed:.0f} simulated records/s "
        f"({2 * n / elapsed:.0f} requests/s), "
        f"{n_tokens} prompt tokens and {1000 * process / n:.1f} ms of processor each, "
        f"{process / elapsed:.2f} cores"
    )
    engine.close()


if __name__ == "__main__":
    main()
