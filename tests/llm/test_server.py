"""The server engine against faults that a real server does not show on demand: a small HTTP server answers what a test says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from neuroexplain.errors import EngineError, EngineLost, LlmReplyError
from neuroexplain.llm.engine import Message
from neuroexplain.llm.server import ServerEngine, read_prompt_logprobs
from tests.fakes import tiny_subject


@pytest.fixture
def scripted(tmp_path):
    """A server that lists the tiny model, then gives the answers of `replies` in order; `asked` holds what was sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(*server.models if self.path == "/v1/models" else (404, {}))

        def do_POST(self):
            server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(*server.replies.pop(0))

        def answer(self, status, body):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    card = {"id": "tiny", "root": str(tiny_subject(tmp_path / "model")), "max_model_len": 4096}
    server.models, server.replies, server.asked = (200, {"data": [card]}), [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def completion(text):
    return 200, {"choices": [{"text": text}], "usage": {"completion_tokens": 3}}


def generate(engine):
    return engine.generate([Message("user", "the old mill")], max_tokens=5, temperature=0.0, seed=1)


def test_a_busy_or_restarting_server_costs_time_and_nothing_else(scripted, monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.server.FIRST_PAUSE", 0.01)
    scripted.replies = [(429, {}), (503, b"starting"), (500, {}), completion("geese")]
    reply = generate(ServerEngine(scripted.url))
    assert (reply.text, reply.completion_tokens, len(scripted.asked)) == ("geese", 3, 4)
    assert scripted.asked[0] == scripted.asked[3]
    assert all(isinstance(i, int) for i in scripted.asked[0]["prompt"])


def test_a_server_that_stays_away_ends_the_run(scripted, monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.server.FIRST_PAUSE", 0.01)
    scripted.replies = [(503, {})] * 50
    with pytest.raises(EngineLost, match="did not answer for 0 seconds"):
        generate(ServerEngine(scripted.url, max_wait=0.2))


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_request_is_not_repeated(scripted, status):
    scripted.replies = [(status, {"error": {"message": "no such thing"}})]
    with pytest.raises(LlmReplyError, match=f"{status}: no such thing") as failed:
        generate(ServerEngine(scripted.url))
    assert (failed.value.status, len(scripted.asked)) == ("llm_error", 1)


@pytest.mark.parametrize("body", [b'{"choices": [{"te', b"<html>", [], {}, {"choices": []}, {"choices": [{"text": None}]}])
def test_an_answer_without_an_answer_is_a_failed_attempt(scripted, body):
    scripted.replies = [(200, body)]
    with pytest.raises(LlmReplyError) as failed:
        generate(ServerEngine(scripted.url))
    assert failed.value.status == "llm_error"


def test_what_does_not_fit_the_context_is_not_sent(scripted):
    scripted.models[1]["data"][0]["max_model_len"] = 4
    with pytest.raises(LlmReplyError) as failed:
        generate(ServerEngine(scripted.url))
    assert (failed.value.status, scripted.asked) == ("context_too_long", [])


def test_connecting_says_what_is_wrong(scripted):
    with pytest.raises(EngineError, match=r"does not serve 'other': it serves tiny"):
        ServerEngine(scripted.url, "other")
    scripted.models = (200, {"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(EngineError, match=r"serves a, b\. Name one"):
        ServerEngine(scripted.url)
    scripted.models = (401, {})
    with pytest.raises(EngineError, match="NEUROEXPLAIN_API_KEY"):
        ServerEngine(scripted.url)
    for models in ((200, b"hello"), (404, {}), (200, {"data": []}), (200, {"data": [{}]})):
        scripted.models = models
        with pytest.raises(EngineError, match="lists no models"):
            ServerEngine(scripted.url)
    with pytest.raises(EngineError, match="There is no server"):
        ServerEngine("http://127.0.0.1:9")


def entry(**logprobs):
    return {token.removeprefix("t"): {"logprob": value} for token, value in logprobs.items()}


def test_spellings_of_a_level_are_summed_and_the_cut_is_seen():
    found = [None, entry(t7=-1.0, t1=np.log(0.2), t2=np.log(0.3), t3=np.log(0.1)), entry(t8=-0.1)]
    probabilities = read_prompt_logprobs(found, [5, 7, 8], [0, 1], [[1, 2], [3]])
    np.testing.assert_allclose(probabilities, [[0.5, 0.1], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "NoneType for 3 tokens"),
        ([None, entry(t7=-1.0)], "2 entries for 3 tokens"),
        ([None, None, entry(t8=-1.0)], "entry 1 does not hold"),
        ([None, entry(t8=-1.0), entry(t7=-1.0)], "shifted"),
        ([None, entry(t7=-1.0, t1=float("nan")), entry(t8=-1.0)], "no log-probability"),
        ([None, entry(t7=-1.0, t1=0.7), entry(t8=-1.0)], "no log-probability"),
        ([None, {"7": -1.0, "1": -2.0}, entry(t8=-1.0)], "no log-probability"),
    ],
)
def test_log_probabilities_that_do_not_fit_the_prompt_are_refused(found, said):
    with pytest.raises(LlmReplyError, match=said):
        read_prompt_logprobs(found, [5, 7, 8], [0], [[1, 2], [3]])
