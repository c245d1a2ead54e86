"""An answer that is a bare part of speech: the explainer asks which words of it are meant."""

import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Status
from neuroexplain.explaining.explainers import draw_worked, narrower_messages, worked_answers
from neuroexplain.explaining.hypotheses import ask_explainer
from neuroexplain.explaining.plan import Requests
from neuroexplain.explaining.replies import is_part_of_speech
from neuroexplain.llm.prompts import load_prompt
from neuroexplain.units import UnitId
from tests.explaining.test_explainers import words_record
from tests.fakes import ScriptedLlm
from tests.tokens import vocabulary_of

UNIT = UnitId(0, 0)


def ask(first, second, explainer="category", candidate=0):
    """The explanation of a unit that fires on "ran" and "flew", and the LLM that gave these two answers."""

    def answer(messages, sampling):
        reply = first if len(llm.requests) == 1 else second
        if isinstance(reply, Exception):
            raise reply
        return reply

    llm = ScriptedLlm(answer)
    requests = Requests.of(ExplainConfig((UNIT,), explainer, candidates=candidate + 1), llm)
    exemplar, texts = words_record(0, (" ran", 9.0), (" flew", 8.0))
    request = requests.request(UNIT, candidate)
    (explanation,) = ask_explainer(requests, request, [exemplar], vocabulary_of(texts))
    return explanation, llm


@pytest.mark.parametrize("candidate", [0, 1, 2])
def test_the_second_answer_is_the_rule(candidate):
    explanation, llm = ask("Verb.", "verbs of movement", candidate=candidate)
    assert (explanation.status, explanation.rule) == ("ok", "verbs of movement")
    assert explanation.reply == "verbs of movement"
    assert explanation.examples == ("ran", "flew")
    assert explanation.provenance.prompt_tokens == 2 * llm.prompt_tokens
    (_, sampling), (question, second_sampling) = llm.requests
    assert question[-1].content == "These words are verbs: ran, flew\nWhich verbs?"
    assert len(worked_answers(question)) == 4
    assert second_sampling == sampling


@pytest.mark.parametrize(
    "second", ["verbs", "Nouns and verbs", "The Italian word", "", "I cannot say", "x" * 500]
)
def test_an_answer_that_is_no_narrower_leaves_the_first(second):
    explanation, llm = ask("verbs", second)
    assert (explanation.status, explanation.rule, explanation.reply) == ("ok", "verbs", "verbs")
    assert explanation.provenance.prompt_tokens == 2 * llm.prompt_tokens


def test_a_second_request_that_fails_fails_the_attempt():
    explanation, llm = ask("verbs", LlmReplyError(Status.LLM_ERROR, "the server is gone"))
    assert (explanation.status, explanation.reason) == ("llm_error", "the server is gone")
    assert explanation.text is None
    assert explanation.provenance.prompt_tokens == llm.prompt_tokens


@pytest.mark.parametrize(("explainer", "first"), [("category", "verbs of movement"), ("excerpts", "verbs")])
def test_nothing_is_asked_of_another_answer_or_by_another_explainer(explainer, first):
    explanation, llm = ask(first, "verbs of flying", explainer)
    assert (explanation.text_of(explanation.ranking_part), len(llm.requests)) == (first, 1)


@pytest.mark.parametrize(
    "text", ["verbs", "A noun", "Proper nouns.", "nouns and verbs", "noun phrases", "Words"]
)
def test_a_part_of_speech_says_no_more(text):
    assert is_part_of_speech(text)


@pytest.mark.parametrize(
    "text", ["", "and", "verbs of motion", "past tense verbs", "prepositions", "surnames"]
)
def test_other_categories_say_more(text):
    assert not is_part_of_speech(text)


def test_each_question_draws_one_worked_answer_of_a_kind():
    prompt = load_prompt("explain/narrower")
    assert all(is_part_of_speech(e.wider) and not is_part_of_speech(e.explanation) for e in prompt.pool)
    kinds = {example.kind for example in prompt.pool}
    draws = [draw_worked(prompt.pool, f"question {n}", 0) for n in range(60)]
    assert all({example.kind for example in draw} == kinds and len(draw) == len(kinds) for draw in draws)
    assert {example for draw in draws for example in draw} == set(prompt.pool)
    first, second = (
        narrower_messages(prompt, wide, "elm, ash", draw=draw)
        for draw, wide in enumerate(("A noun", "Nouns"))
    )
    assert first[-1] == second[-1]
    assert first[-1].content == "These words are nouns: elm, ash\nWhich nouns?"
    assert worked_answers(first) != worked_answers(second)


def test_a_prompt_s_identity_covers_the_second_question():
    prompt = load_prompt("explain/category")
    assert prompt.narrower == load_prompt("explain/narrower")
    assert prompt.text.endswith(prompt.narrower.text)
    assert [turn.role for turn in prompt.fill({"records": "elm"})] == ["system", "user"]
