"""What explainers show an LLM, and which of its replies are hypotheses."""

import numpy as np
import pytest

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar
from neuroexplain.explaining.explainers import EXPLAINERS, parse_single
from neuroexplain.units import UnitId
from tests.tokens import vocabulary_of


def test_pairs_shows_tokens_with_levels_after_worked_neurons_of_its_own():
    texts = [f" w{i}" for i in range(63)] + ["tab\there"]
    ids = np.arange(64, dtype=np.uint32)
    acts = np.where(ids == 32, 2.0, np.where(ids == 5, 0.5, -1.0)).astype(np.float32)
    record = Exemplar(UnitId(0, 0), "top", 0, 0, 0, 0, 0, 2.0, ids, acts)
    explainer = EXPLAINERS["pairs"]
    prompt = explainer.load_prompt()
    turns = explainer.messages(prompt, [record], vocabulary_of(texts))
    assert [turn.role for turn in turns] == ["system", *["user", "assistant"] * len(prompt.examples), "user"]
    lines = turns[-1].content.splitlines()
    assert lines[1:] == [f" w{i}\t{ {32: 10, 5: 2}.get(i, 0) }" for i in range(63)] + ["tab\\there\t0"]
    peaks = [max(range(len(r)), key=lambda i, r=r: r[i][1]) for x in prompt.examples for r in x.records]
    assert len(set(peaks)) > 3  # worked neurons peak anywhere


def test_explainers_show_the_peak():
    texts = [f" w{i}" for i in range(64)]
    ids = np.arange(64, dtype=np.uint32)
    record = Exemplar(
        UnitId(0, 0), "top", 0, 0, 0, 0, 0, 2.0, ids, np.where(ids == 32, 2.0, 0.0).astype(np.float32)
    )
    assert "**w32**" in EXPLAINERS["excerpts"].render([record], vocabulary_of(texts))
    assert EXPLAINERS["tokens"].render([record], vocabulary_of(texts)) == "w32"


REFUSALS = (
    "I cannot help with that.",
    "I\u2019m sorry, but I can\u2019t help.",
    "Sorry, I can't say.",
    "I apologize, but no.",
)
REFUSALS += (
    "Unfortunately, I cannot tell",
    "I am not able to say",
    "I won\u2019t",
    "As an AI language model, no",
)


THOUGHTS = (
    "<think>it may be",
    "rivers<think>or more",
    "<THINK>rivers",
    "a</think>b<think>c",
)


@pytest.mark.parametrize("reply", ["", "  \n ", "...", "x" * 500, *REFUSALS, *THOUGHTS])
def test_a_reply_that_is_no_hypothesis_is_a_failed_attempt(reply):
    with pytest.raises(LlmReplyError) as failed:
        parse_single(reply, [])
    assert (failed.value.status, failed.value.reply) == ("parse_error", reply)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("<think>hm</think>\n Explanation: words about **rivers**.\nMore", "words about rivers"),
        ('"buying and selling."', "buying and selling"),
        ("sorry, regret and apologies", "sorry, regret and apologies"),
    ],
)
def test_a_hypothesis_is_tidied(reply, text):
    assert [hypothesis.text for hypothesis in parse_single(reply, [])] == [text]
