"""The server engine: how it connects, what it sends for a text, and which answers are failed attempts."""

import json

import pytest

from neuroexplain.config import EngineConfig
from neuroexplain.errors import EngineError, LlmReplyError, NeuroexplainError
from neuroexplain.explaining.replies import parse_single
from neuroexplain.llm.engine import Message, chat_token_ids
from neuroexplain.llm.server import ServerEngine
from tests.llm.scripted import completion, connect, generate

pytestmark = pytest.mark.usefixtures("impatient")


def test_no_option_is_left_to_the_model_s_own_generation_config(scripted):
    scripted.replies = [completion("geese")]
    generate(connect(scripted))
    sent = scripted.requests[0]
    assert (sent["temperature"], sent["seed"], sent["max_tokens"]) == (0.0, 1, 5)
    assert (sent["top_p"], sent["top_k"], sent["repetition_penalty"]) == (1.0, 0, 1.0)


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
        ServerEngine("http://gpu-box.example:1")
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
    ("choice", "message"),
    [
        ({"text": ""}, "is empty"),
        ({"text": "\n \n", "finish_reason": "length"}, "is empty after 5 tokens"),
        ({"text": "", "reasoning_content": "Let me think"}, "only reasoning"),
    ],
)
def test_an_answer_that_says_nothing_is_a_failed_attempt(scripted, choice, message):
    scripted.replies = [(200, {"choices": [choice]})]
    with pytest.raises(LlmReplyError, match=message) as failed:
        generate(connect(scripted))
    assert failed.value.status == "parse_error"
    assert json.loads(failed.value.reply) == {"choices": [choice]}


def test_a_thought_that_the_template_opened_shows_in_the_answer(scripted):
    engine = connect(scripted)
    engine.tokenizer.chat_template = "{{ messages[0].content }}<think>\n"
    scripted.replies = [completion("it may be geese"), completion("hm</think>geese")]
    with pytest.raises(LlmReplyError, match="reasoning that was cut off"):
        parse_single(generate(engine).text, [])
    assert parse_single(generate(engine).text, [])[0].text == "geese"


def test_what_does_not_fit_the_context_is_not_sent(scripted):
    scripted.models[1]["data"][0]["max_model_len"] = 4
    with pytest.raises(LlmReplyError) as failed:
        generate(connect(scripted))
    assert (failed.value.status, scripted.requests) == ("context_too_long", [])


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
