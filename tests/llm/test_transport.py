"""Faults that a real server does not show on demand: which are waited for, and which are failed attempts."""

import threading
import time
from contextlib import suppress

import pytest

from neuroexplain.errors import EngineLost, LlmReplyError
from neuroexplain.llm.engine import Message
from neuroexplain.llm.transport import TRIES
from tests.llm.scripted import completion, connect, generate

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_busy_or_restarting_server_costs_time_and_nothing_else(scripted):
    scripted.replies = [(429, {}), (503, b"starting"), (500, {}), completion("works"), completion("geese")]
    engine = connect(scripted)
    reply = generate(engine)
    assert (reply.text, reply.completion_tokens, len(scripted.requests)) == ("geese", 3, 5)
    assert scripted.requests[0] == scripted.requests[4]
    assert len(scripted.requests[3]["prompt"]) == 1  # whether the server works, after the 500
    assert all(isinstance(i, int) for i in scripted.requests[0]["prompt"])
    assert engine.usage.prompt_tokens == reply.prompt_tokens


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

    def send():
        with pytest.raises(EngineLost) as raised:
            generate(engine)
        lost.append(raised.value)
        engine.close()  # as the pipeline does

    assert engine.tokenizer
    threads = [threading.Thread(target=send) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(lost) == 32
    assert len(scripted.requests) < 24  # 8 at first, then one at a time


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_request_that_is_always_turned_away_is_given_up_where_the_server_works(scripted, status):
    """Not for others that are answered meanwhile, nor at once: a server may be on its way back."""
    scripted.choose = lambda body: (status, {}) if body["max_tokens"] == 6 else completion("other")
    engine = connect(scripted, max_wait=600.0)
    with pytest.raises(LlmReplyError, match=f"status {status}, {TRIES} times"):
        engine.generate([Message("user", "the old mill")], max_tokens=6, temperature=0.0, seed=1)
    assert sum(body["max_tokens"] == 6 for body in scripted.requests) == 2 * TRIES - 1
    assert generate(engine).text == "other"


@pytest.mark.parametrize(
    "retry_after",
    ["999999", "9" * 30, "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 99999999999 00:00:00 GMT"],
)
def test_a_server_cannot_ask_for_a_wait_without_end(scripted, retry_after, monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.transport.LONGEST_WAIT", 0.2)
    scripted.replies = [(429, {}, {"Retry-After": retry_after}), completion("geese")]
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


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refused_request_is_not_repeated(scripted, status):
    scripted.replies = [(status, {"error": {"message": "no such thing"}})]
    with pytest.raises(LlmReplyError, match=f"{status}: no such thing") as failed:
        generate(connect(scripted))
    assert (failed.value.status, len(scripted.requests)) == ("llm_error", 1)
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

    scripted.choose = lambda body: (
        (500, {"error": "boom"}) if body["max_tokens"] == 6 else completion("other")
    )
    thread = threading.Thread(target=others, daemon=True)
    thread.start()
    with pytest.raises(LlmReplyError, match=f"status 500, {TRIES} times"):
        engine.generate([Message("user", "the old mill")], max_tokens=6, temperature=0.0, seed=1)
    done.set()
    engine.close()


def test_a_request_that_fails_with_nobody_beside_it_is_given_up_where_the_server_works(scripted):
    """Not waited for until --max-wait: a request of one token is answered, so this one is at fault."""
    scripted.choose = lambda body: (
        (500, {"error": "boom"}) if body["max_tokens"] == 6 else completion("other")
    )
    engine = connect(scripted, max_wait=600.0)
    with pytest.raises(LlmReplyError, match=f"status 500, {TRIES} times"):
        engine.generate([Message("user", "the old mill")], max_tokens=6, temperature=0.0, seed=1)
    assert generate(engine).text == "other"
