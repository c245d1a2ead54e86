"""Simulations a second of the client alone:  python scripts/bench_client.py [--seconds 10] [--in-flight 8]

A server in another process answers at once with recorded bytes of real size: probabilities of chosen ids, and the 20 most
likely tokens at 460 prompt tokens (765 kB). Prompts are really built, answers really read; only the LLM is missing.
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
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec
import numpy as np

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.server import ServerEngine
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.scorers.digits import TOGETHER, DigitsSimulator, find_level_words
from neuroexplain.subject.load import embedded_model, load_causal_lm
from neuroexplain.units import CROP_LENGTH

CROPS = TOGETHER // CROP_LENGTH  # records in two prompts: with the explanation, and with the neutral one
WORDS = "the river ran past old mill while seven grey geese slept under a low red moon and nobody spoke of money".split()


class Asked(msgspec.Struct):
    """As much of a request as decides the shape of its answer."""

    prompt: list[msgspec.Raw] = []
    token_ids: list[int] = []
    sampling_params: dict[str, Any] = {}
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None


def serve(folder: str, way: str, mark: int, port: Any) -> None:
    """Answer in this one way, refuse the others. Bytes are made once for each shape of answer."""

    @cache
    def next_answer(n: int, ids: tuple[int, ...]) -> bytes:
        entry = {f"token_id:{i}": -3.0 - 0.001 * i for i in (mark, *ids)}
        logprobs = {"tokens": ["x"], "token_logprobs": [-3.0], "text_offset": [0], "top_logprobs": [entry]}
        return msgspec.json.encode(
            {"choices": [{"index": i, "text": "x", "logprobs": logprobs} for i in range(n)]}
        )

    @cache
    def rows_answer(n: int, n_ids: int) -> bytes:
        file = io.BytesIO()
        np.save(file, np.full((n, n_ids), -5.0, np.float32), allow_pickle=False)
        return msgspec.json.encode(
            {"choices": [], "prompt_token_id_logprobs": base64.b64encode(file.getvalue()).decode()}
        )

    @cache
    def top_answer(n: int) -> bytes:
        draw = random.Random(0)

        def entry() -> dict[str, Any]:
            ids = [mark, *(draw.randrange(49152) for _ in range(20))]
            shown = {"rank": 12, "decoded_token": " another"}
            return {str(i): {"logprob": -4.123456789012345 - draw.random(), **shown} for i in ids}

        entries = [None, *(entry() for _ in range(n - 1))]
        return msgspec.json.encode({"choices": [{"index": 0, "text": "x", "prompt_logprobs": entries}]})

    def answer(body: bytes) -> bytes | None:
        asked = msgspec.json.decode(body, type=Asked)
        if asked.token_ids and way == "prompt_logprob_token_ids":
            rows = asked.sampling_params["prompt_logprob_token_ids"]
            return rows_answer(len(rows), max(map(len, rows)))
        if asked.logprob_token_ids and way == "logprob_token_ids":
            return next_answer(len(asked.prompt), tuple(asked.logprob_token_ids))
        return (
            top_answer(len(asked.prompt))
            if asked.prompt_logprobs == 20 and way == "prompt_logprobs=20"
            else None
        )

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                sent = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(sent[0].split(b":")[1])) if sent else b""
                card = {"id": "bench", "root": folder, "max_model_len": 4096}
                said = answer(body) if body else msgspec.json.encode({"data": [card]})
                status, said = (200, said) if said is not None else (400, b"{}")
                writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(said)) + said)
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
    parser.add_argument("--profile", action="store_true", help="print where one thread spends its time")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_causal_lm(embedded_model(), "float32", "cpu")[1]
        tokenizer.save_pretrained(folder)
        mark = find_level_words(tokenizer)[1][0][0]
        for way in ("prompt_logprob_token_ids", "logprob_token_ids", "prompt_logprobs=20"):
            port = multiprocessing.Value("i", 0)
            server = multiprocessing.Process(target=serve, args=(folder, way, mark, port), daemon=True)
            server.start()
            while not port.value:
                time.sleep(0.01)
            measure(
                ServerEngine(f"http://127.0.0.1:{port.value}", in_flight=typed.in_flight),
                typed.seconds,
                typed.profile,
            )
            server.terminate()


def measure(engine: ServerEngine, seconds: float, profile: bool) -> None:
    scorer = DigitsSimulator(engine)
    vocabulary = {i: VocabularyEntry(i, f" {word}", False) for i, word in enumerate(WORDS)}
    draw = random.Random(0)

    def simulate(number: int) -> int:
        crops = [[draw.randrange(len(WORDS)) for _ in range(CROP_LENGTH)] for _ in range(CROPS)]
        return scorer.simulate(f"words about {WORDS[number % len(WORDS)]}", crops, vocabulary).prompt_tokens

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
    began, spent = time.monotonic(), time.process_time()
    n = sum(1 for _ in map_in_flight(simulate, until(began + seconds), engine.in_flight))
    took, spent = time.monotonic() - began, time.process_time() - spent
    each = f"{n_tokens / CROPS:.0f} prompt tokens and {1000 * spent / n / CROPS:.1f} ms of processor each"
    print(
        f"{engine.version}: {CROPS * n / took:.0f} simulated records/s ({2 * n / took:.0f} requests/s), {each}"
    )
    engine.close()


if __name__ == "__main__":
    main()
