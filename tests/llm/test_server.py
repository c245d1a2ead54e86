"""The server engine against faults that a real server does not show on demand: a small HTTP server answers what a test says."""

import itertools
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import numpy as np
import pytest

from neuroexplain.config import EngineConfig
from neuroexplain.errors import EngineError, EngineLost, LlmReplyError, NeuroexplainError
from neuroexplain.explaining.explainers import parse_reply
from neuroexplain.llm.engine import Message, chat_token_ids
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.transport import TRIES
from tests.fakes import tiny_subject
from tests.llm.test_distributions import next_answer, npy, top_answer


@pytest.fixture
def scripted(tmp_path):
    """A server that lists the tiny model, gives the answers of `replies` in order and then those of `choose`.

    `asked` holds what was sent.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(*{"/v1/models": server.models, "/metrics": server.metrics}.get(self.path, (404, {})))

        def do_POST(self):
            server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(*(server.replies.pop(0) if server.replies else server.choose(server.asked[-1])))

        def answer(self, status, body, headers=MappingProxyType({})):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = "Content-Length" in headers

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    card = {"id": "tiny", "root": str(tiny_subject(tmp_path / "model")), "max_model_len": 4096}
    server.models, server.replies, server.asked = (200, {"data": [card]}), [], []
    server.metrics, server.choose = (
        (404, {}),
        lambda asked: (400, {"error": {"message": "the script has ended"}}),
    )
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def completion(text, **usage):
    return 200, {"choices": [{"text": text}], "usage": {"completion_tokens": 3, **usage}}


def connect(scripted, **options):
    return ServerEngine(scripted.url, **{"max_wait": 3.0, **options})


def generate(engine):
    return engine.generate([Message("user", "the old mill")], max_tokens=5, temperature=0.0, seed=1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.gate.FIRST_PAUSE", 0.01)


def test_a_busy_or_restarting_server_costs_time_and_nothing_else(scripted):
    scripted.replies = [(429, {}), (503, b"starting"), (500, {}), completion("works"), completion("geese")]
    engine = connect(scripted)
    reply = generate(engine)
    assert (reply.text, reply.completion_tokens, len(scripted.asked)) == ("geese", 3, 5)
    assert scripted.asked[0] == scripted.asked[4]
    assert len(scripted.asked[3]["prompt"]) == 1  # whether the server works, after the 500
    assert all(isinstance(i, int) for i in scripted.asked[0]["prompt"])
    assert engine.usage.prompt_tokens == reply.prompt_tokens


def test_no_option_is_left_to_the_model_s_own_generation_config(scripted):
    scripted.replies = [completion("geese")]
    generate(connect(scripted))
    sent = scripted.asked[0]
    assert (sent["temperature"], sent["seed"], sent["max_tokens"]) == (0.0, 1, 5)
    assert (sent["top_p"], sent["top_k"], sent["repetition_penalty"]) == (1.0, 0, 1.0)


def test_the_server_says_when_to_come_back(scripted):
    scripted.replies = [(429, {}, {"Retry-After": "1"}), completion("geese")]
    began = time.monotonic()
    generate(connect(scripted))
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("reply", [(503, {}), (500, {}), (429, {}, {"Retry-After": "3600"})])
def test_a_server_that_answers_nobody_is_lost(scripted, reply):
    scripted.replies = [reply] * 50
    with pytest.raises(EngineLost, match=r"did not answer for 0\.2 seconds"):
        generate(connect(scripted, max_wait=0.2))


def test_threads_that_wait_for_a_dead_server_do_not_hammer_it(scripted):
    scripted.replies = [(503, {})] * 500
    engine = connect(scripted, max_wait=0.5, in_flight=32)
    lost = []

    def ask():
        with pytest.raises(EngineLost) as raised:
            generate(engine)
        lost.append(raised.value)
        engine.close()  # as the pipeline does

    assert engine.tokenizer
    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(lost) == 32
    assert len(scripted.asked) < 24  # 8 at first, then one at a time


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_request_that_is_always_turned_away_is_given_up_where_the_server_works(scripted, status):
    """Not for others that are answered meanwhile, nor at once: a server may be on its way back."""
    scripted.choose = lambda asked: (status, {}) if asked["max_tokens"] == 6 else completion("other")
    engine = connect(scripted, max_wait=600.0)
    with pytest.raises(LlmReplyError, match=f"status {status}, {TRIES} times"):
        engine.generate([Message("user", "the old mill")], max_tokens=6, temperature=0.0, seed=1)
    assert sum(asked["max_tokens"] == 6 for asked in scripted.asked) == 2 * TRIES - 1
    assert generate(engine).text == "other"


@pytest.mark.parametrize(
    "asked", ["999999", "9" * 30, "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 99999999999 00:00:00 GMT"]
)
def test_a_server_cannot_ask_for_a_wait_without_end(scripted, asked, monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.transport.LONGEST_WAIT", 0.2)
    scripted.replies = [(429, {}, {"Retry-After": asked}), completion("geese")]
    began = time.monotonic()
    assert generate(connect(scripted)).text == "geese"
    assert time.monotonic() - began < 2


def test_an_answer_without_end_is_cut_and_not_asked_for_ever(scripted, monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.transport.LARGEST_ANSWER", 1000)
    scripted.replies = [completion("geese " * 400)] * TRIES
    with pytest.raises(LlmReplyError, match="does not end: more than 1,000 bytes"):
        generate(connect(scripted))
    monkeypatch.setattr("neuroexplain.llm.transport.LARGEST_ANSWER", 10**6)
    scripted.replies = [completion("geese")] * 2 * TRIES  # to each and to the smallest after it
    engine = connect(scripted)
    engine._transport._timeout = 0.0
    with pytest.raises(LlmReplyError, match="does not end: more than 0 seconds"):
        generate(engine)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "caf\xe9"}}',
        b"[" * 200_000,
        b'{"error": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
)
def test_a_refusal_that_cannot_be_read_is_a_refusal(scripted, body):
    scripted.replies = [(400, body)]
    with pytest.raises(LlmReplyError, match=r"^400: ") as failed:
        generate(connect(scripted))
    assert failed.value.reply


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "half a", "finish_reason": "abort"},
        {"text": "x", "finish_reason": "error"},
        {"text": "x" * 30_000},
    ],
)
def test_a_text_that_did_not_end_by_itself_is_a_failed_attempt(scripted, choice):
    scripted.replies = [(200, {"choices": [choice]})]
    with pytest.raises(LlmReplyError) as failed:
        generate(connect(scripted))
    assert (failed.value.status, len(failed.value.reply) <= 20_000) == ("llm_error", True)


@pytest.mark.parametrize("tokens", [10**30, 2**63 - 1, -1])
def test_impossible_counts_of_tokens_are_a_failed_attempt(scripted, tokens):
    scripted.replies = [
        (200, {"choices": [{"text": "x"}], "usage": {"prompt_tokens_details": {"cached_tokens": tokens}}})
    ]
    with pytest.raises(LlmReplyError, match="another shape"):
        generate(connect(scripted))


@pytest.mark.parametrize("longest", ["4096", [], -1, 0, 1.5])
def test_a_context_length_that_is_none_is_not_believed(scripted, longest):
    scripted.models[1]["data"][0]["max_model_len"] = longest
    assert connect(scripted).context_length is None


@pytest.mark.parametrize(
    "models", [b"[" * 200_000, b'{"data": [{"id": "\\ud800"}]}', b'{"data": [{"id": 3}]}']
)
def test_a_list_of_models_that_is_none_is_said(scripted, models):
    scripted.models = 200, models
    with pytest.raises(EngineError, match="lists no models"):
        connect(scripted)


def test_what_the_environment_sets_wrong_is_said_and_no_key_is_shown(monkeypatch):
    with pytest.raises(EngineError, match="no server at"):
        ServerEngine("http://a..b")
    monkeypatch.setenv("ALL_PROXY", "nonsense://x")
    with pytest.raises(EngineError, match="ALL_PROXY"):
        ServerEngine("http://127.0.0.1:1")
    for wrong in (
        {"api_key": "sk-secret\nx"},
        {"api_key": "sk-s\u00e9cret"},
        {"server": "http://user:sk-secret@host"},
        {"default_server": "http://sk-secret@host"},
    ):
        with pytest.raises(NeuroexplainError) as refused:
            EngineConfig(**wrong)
        assert "cret" not in str(refused.value)
    for wrong in (
        {"server": " "},
        {"max_wait": float("nan")},
        {"max_wait": float("inf")},
        {"max_wait": 1e300},
    ):
        with pytest.raises(NeuroexplainError):
            EngineConfig(**wrong)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_request_is_not_repeated(scripted, status):
    scripted.replies = [(status, {"error": {"message": "no such thing"}})]
    with pytest.raises(LlmReplyError, match=f"{status}: no such thing") as failed:
        generate(connect(scripted))
    assert (failed.value.status, len(scripted.asked)) == ("llm_error", 1)
    assert "no such thing" in failed.value.reply


BROKEN = [b'{"choices": [{"te', b"<html>", b"", b'{"choices": [{"text": "x"}], "a": NaN}']


@pytest.mark.parametrize("body", BROKEN)
def test_a_broken_answer_is_asked_for_again_but_not_for_ever(scripted, body):
    scripted.replies = [(200, body), completion("geese")]
    assert generate(connect(scripted)).text == "geese"
    scripted.replies = [(200, body)] * TRIES
    with pytest.raises(LlmReplyError, match=f"no JSON.*{TRIES} times") as failed:
        generate(connect(scripted))
    assert (failed.value.status, failed.value.reply) == ("llm_error", body.decode())


def test_an_answer_that_breaks_off_is_asked_for_again_but_not_for_ever(scripted):
    scripted.replies = [(200, b"{}", {"Content-Length": "100"})] * 2 + [completion("geese")]
    assert generate(connect(scripted)).text == "geese"
    scripted.replies = [(200, b"{}", {"Content-Length": "100"})] * TRIES
    with pytest.raises(LlmReplyError, match="broke off"):
        generate(connect(scripted))


def test_a_request_that_alone_fails_among_others_is_given_up(scripted):
    engine = connect(scripted, in_flight=1)
    done = threading.Event()

    def others():
        while not done.is_set():
            with suppress(EngineLost):
                generate(engine)

    scripted.choose = lambda asked: (
        (500, {"error": "boom"}) if asked["max_tokens"] == 6 else completion("other")
    )
    thread = threading.Thread(target=others, daemon=True)
    thread.start()
    with pytest.raises(LlmReplyError, match=f"status 500, {TRIES} times"):
        engine.generate([Message("user", "the old mill")], max_tokens=6, temperature=0.0, seed=1)
    done.set()
    engine.close()


def test_a_request_that_fails_with_nobody_beside_it_is_given_up_where_the_server_works(scripted):
    """Not waited for until --max-wait: a request of one token is answered, so this one is at fault."""
    scripted.choose = lambda asked: (
        (500, {"error": "boom"}) if asked["max_tokens"] == 6 else completion("other")
    )
    engine = connect(scripted, max_wait=600.0)
    with pytest.raises(LlmReplyError, match=f"status 500, {TRIES} times"):
        engine.generate([Message("user", "the old mill")], max_tokens=6, temperature=0.0, seed=1)
    assert generate(engine).text == "other"


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"choices": []},
        {"choices": [{"text": None}]},
        {"choices": [{"text": "a"}, {"text": "b"}]},
        {"choices": [3]},
    ],
)
def test_an_answer_without_an_answer_is_a_failed_attempt(scripted, body):
    scripted.replies = [(200, body)]
    with pytest.raises(LlmReplyError) as failed:
        generate(connect(scripted))
    assert failed.value.status == "llm_error"
    assert json.loads(failed.value.reply) == body


def test_a_server_that_counts_other_tokens_than_were_sent_is_not_believed(scripted):
    n = len(chat_token_ids(connect(scripted).tokenizer, [Message("user", "the old mill")]))
    scripted.replies = [completion("geese", prompt_tokens=n), completion("geese", prompt_tokens=n + 1)]
    generate(connect(scripted))
    with pytest.raises(LlmReplyError, match=f"read {n + 1} prompt tokens of {n}"):
        generate(connect(scripted))
    scripted.replies = [completion("geese", completion_tokens=6)]
    with pytest.raises(LlmReplyError, match="6 tokens were generated, and at most 5"):
        generate(connect(scripted))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"text": ""}, "is empty"),
        ({"text": "\n \n", "finish_reason": "length"}, "is empty after 5 tokens"),
        ({"text": "", "reasoning_content": "Let me think"}, "only reasoning"),
    ],
)
def test_an_answer_that_says_nothing_is_a_failed_attempt(scripted, choice, said):
    scripted.replies = [(200, {"choices": [choice]})]
    with pytest.raises(LlmReplyError, match=said) as failed:
        generate(connect(scripted))
    assert failed.value.status == "parse_error"
    assert json.loads(failed.value.reply) == {"choices": [choice]}


def test_a_thought_that_the_template_opened_shows_in_the_answer(scripted):
    engine = connect(scripted)
    engine.tokenizer.chat_template = "{{ messages[0].content }}<think>\n"
    scripted.replies = [completion("it may be geese"), completion("hm</think>geese")]
    with pytest.raises(LlmReplyError, match="reasoning that was cut off"):
        parse_reply(generate(engine).text)
    assert parse_reply(generate(engine).text) == "geese"


def test_what_does_not_fit_the_context_is_not_sent(scripted):
    scripted.models[1]["data"][0]["max_model_len"] = 4
    with pytest.raises(LlmReplyError) as failed:
        generate(connect(scripted))
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


class Server032:
    """Answers of vLLM 0.32's shapes from one made-up distribution: that after a token depends on the token alone."""

    def __init__(self, offered, block=16):
        self.offered, self.block = offered, block
        self.logits = np.random.default_rng(0).normal(size=(330, 330)) * 2
        self.logprobs = self.logits - np.log(np.exp(self.logits).sum(axis=1, keepdims=True))
        self.cached = False

    def __call__(self, asked):
        if "token_ids" in asked:
            return self.at_rows(asked) if "rows" in self.offered else (404, {"detail": "Not Found"})
        if "logprob_token_ids" in asked:
            return (
                self.at_next(asked)
                if "next" in self.offered
                else (400, {"error": {"message": "unknown field"}})
            )
        if asked["prompt_logprobs"] > max((0, *(k for k in self.offered if isinstance(k, int)))):
            return 400, {"error": {"message": "greater than max allowed"}}
        return self.top(asked)

    def at_rows(self, asked):
        ids, options = asked["token_ids"], asked["sampling_params"]
        start, rows = options["prompt_logprob_start"], options["prompt_logprob_token_ids"]
        assert len(rows) == len(ids) - 1 - start
        usage = {"prompt_tokens": len(ids)}
        if self.cached and not options["skip_reading_prefix_cache"]:
            return 200, {"choices": [], "prompt_token_id_logprobs": None, "usage": usage}
        scores = np.full((len(rows), max(map(len, rows))), -np.inf)
        for n, row in enumerate(rows):
            scores[n, : len(row)] = self.logprobs[ids[start + n], row]
        return 200, {"choices": [], "prompt_token_id_logprobs": npy(scores), "usage": usage}

    def at_next(self, asked):
        rows = [
            [self.logprobs[prompt[-1], i] for i in asked["logprob_token_ids"]] for prompt in asked["prompt"]
        ]
        answer = next_answer(rows, asked["logprob_token_ids"])
        return 200, {**answer, "usage": {"prompt_tokens": sum(map(len, asked["prompt"]))}}

    def top(self, asked):
        entries = [None]
        for before, own in itertools.pairwise(asked["prompt"]):
            best = {*np.argsort(-self.logprobs[before])[: asked["prompt_logprobs"]].tolist(), own}
            entries.append({i: self.logprobs[before, i] for i in best})
        return 200, {**top_answer(*entries), "usage": {"prompt_tokens": len(asked["prompt"])}}

    def metrics(self):
        return (
            200,
            f'vllm:cache_config_info{{block_size="{self.block}",enable_prefix_caching="True"}} 1.0\n'.encode(),
        )


PROMPT, ROWS, LEVELS = list(range(3, 203)), list(range(8, 195, 6)), [[5], [6, 7], [8]]


@pytest.mark.parametrize(
    ("offered", "block", "way"),
    [
        ({"rows", "next", 20}, 16, "prompt_logprob_token_ids"),
        ({"next", 20}, 8, "logprob_token_ids"),
        (
            {"next", 20},
            128,
            "prompt_logprobs=20",
        ),  # 32 cuts would compute 64 tokens each, more than the whole prompt
        ({"next"}, 128, "logprob_token_ids"),
        ({100}, 16, "prompt_logprobs=100"),
        ({20}, 16, "prompt_logprobs=20"),
        ({5}, 16, "prompt_logprobs=5"),
    ],
)
def test_the_best_way_that_the_server_offers_is_found_once(scripted, offered, block, way):
    scripted.choose = server = Server032(offered, block)
    scripted.metrics = server.metrics()
    engine = connect(scripted)
    found = engine.level_distributions(PROMPT, ROWS, LEVELS)
    p = np.exp(server.logprobs[np.array(PROMPT)[ROWS]])
    true = np.stack([p[:, ids].sum(axis=1) for ids in LEVELS], axis=1)
    if "=" not in way:
        np.testing.assert_allclose(found, true, rtol=1e-5)
    else:
        assert ((found < true + 1e-9) & ((found > 0) | (true < 0.1))).all()
    assert engine.version == f"unknown, {way}"
    n = len(scripted.asked)
    engine.level_distributions(PROMPT, ROWS, LEVELS)
    assert len(scripted.asked) == n + 1


def test_a_way_that_lies_is_not_taken(scripted):
    scripted.choose = server = Server032({"rows", "next", 20})
    server.at_rows = lambda asked: (200, {"prompt_token_id_logprobs": npy(np.full((1, 1), -1.0))})
    right = server.at_next

    def shifted(asked):
        return right({**asked, "prompt": [[*prompt[:-1], prompt[0]] for prompt in asked["prompt"]]})

    server.at_next = shifted
    engine = connect(scripted)
    engine.level_distributions(PROMPT, ROWS, LEVELS)
    assert engine.version.endswith("prompt_logprobs=20")


def test_a_server_without_any_way_says_what_to_start(scripted):
    scripted.choose = Server032(set())
    with pytest.raises(
        EngineError, match=r"(?s)prompt_logprob_token_ids: 404.*logprob_token_ids: 400.*Start vLLM 0.32"
    ):
        connect(scripted).level_distributions(PROMPT, ROWS, LEVELS)


def test_faults_while_the_ways_are_tried_do_not_change_the_choice(scripted):
    scripted.choose = Server032({"rows", "next", 20})
    for reply in (
        (503, {}),
        (429, {}),
        (200, b"{"),
        (200, {"choices": [], "prompt_token_id_logprobs": None}),
    ):
        scripted.replies = [reply] * 2
        engine = connect(scripted)
        engine.level_distributions(PROMPT, ROWS, LEVELS)
        assert engine.version.endswith("prompt_logprob_token_ids")


def test_rows_that_the_prefix_cache_holds_are_asked_for_without_it(scripted):
    scripted.choose = server = Server032({"rows"})
    engine = connect(scripted)
    found = engine.level_distributions(PROMPT, ROWS, LEVELS)
    server.cached = True
    np.testing.assert_array_equal(engine.level_distributions(PROMPT, ROWS, LEVELS), found)
    assert [asked["sampling_params"]["skip_reading_prefix_cache"] for asked in scripted.asked[-2:]] == [
        False,
        True,
    ]


def test_log_probabilities_that_cannot_be_are_a_failed_attempt_with_the_reply(scripted):
    scripted.choose = Server032({"next", 20}, 8)
    engine = connect(scripted)
    engine.level_distributions(PROMPT, ROWS, LEVELS)
    scripted.replies = [(200, next_answer([[0.7] * 4] * len(ROWS), (5, 6, 7, 8)))]
    with pytest.raises(LlmReplyError, match="no log-probability") as failed:
        engine.level_distributions(PROMPT, ROWS, LEVELS)
    assert "top_logprobs" in failed.value.reply
