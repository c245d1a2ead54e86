"""What explainers show an LLM, and which of its replies are hypotheses."""

import numpy as np
import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Headline, Status, Unit
from neuroexplain.explaining.explainers import EXPLAINERS, parse_single
from neuroexplain.explaining.plan import ExplainTask, Requests
from neuroexplain.explaining.side import explain_side
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.units import UnitId
from tests.fakes import ScriptedLlm
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


TEXTS = [f" w{i}" for i in range(64)]


def record(kind, rank, segment, split, sign=1, side=None, **levels):
    """A record of the tokens w0 to w63 that is silent but at some of them: at3=2.0 is 2 at w3."""
    acts = np.full(64, -0.5, np.float32)
    for name, value in levels.items():
        acts[int(name.removeprefix("at"))] = value
    peak = acts[32] if kind in ("top", "bottom") else acts.max()
    ids = np.arange(64, dtype=np.uint32)
    unit = UnitId(0, 0)
    return Exemplar(
        *(unit, kind, rank, segment, 64, 0, 0, float(sign * peak), ids, sign * acts), split=split, side=side
    )


def evidence_of(side, *records):
    unit = Unit(UnitId(0, 0), Status.OK, None, records, (), ())
    return SideEvidence(unit, side, split_rule="passages", n_sampled=4)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_where_top_records_are_few_sampled_ones_are_shown_around_their_own_peak(side):
    top, sign = ("top", 1) if side == "positive" else ("bottom", -1)
    other = "negative" if side == "positive" else "positive"
    evidence = evidence_of(
        side,
        record(top, 0, 1, "report", sign, at32=9.0),
        record(top, 1, 5, "explain", sign, at32=2.0),
        record(top, 2, 6, "explain", sign, at32=-0.5),  # does not fire
        record("sampled", 0, 5, "explain", sign, side, at40=8.0),  # of a segment that is shown already
        record("sampled", 1, 7, "explain", sign, side, at3=1.0),
        record("sampled", 2, 8, "explain", sign, side, at60=5.0),
        record("sampled", 3, 9, "explain", sign, side),  # nor does this one
        record("sampled", 4, 10, "select", sign, side, at10=9.0),
        record("sampled", 5, 11, "explain", sign, other, at11=9.0),
        record("random", 0, 12, "explain", sign, at12=9.0),
    )
    records = evidence.explain_records(10)
    assert [(x.kind, x.segment) for x in records] == [(top, 5), ("sampled", 8), ("sampled", 7)]
    assert [(x.kind, x.segment) for x in evidence.explain_records(2)] == [(top, 5), ("sampled", 8)]
    lines = EXPLAINERS["excerpts"].render(records, vocabulary_of(TEXTS)).splitlines()
    assert lines == [
        "w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31 **w32** w33 w34 w35 w36 w37 w38",
        "w48 w49 w50 w51 w52 w53 w54 w55 w56 w57 w58 w59 **w60** w61 w62 w63",
        "w0 w1 w2 **w3** w4 w5 w6 w7 w8 w9",
    ]
    assert EXPLAINERS["tokens"].render(records, vocabulary_of(TEXTS)) == "w32, w60, w3"
    pairs = EXPLAINERS["pairs"].render(records, vocabulary_of(TEXTS))
    assert " w60\t10" in pairs.splitlines()


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_a_unit_that_fires_in_no_explain_record_has_nothing_to_show(explainer):
    evidence = evidence_of(
        "positive",
        record("top", 0, 1, "report", at32=9.0),
        record("top", 1, 2, "explain", at32=0.0),
        record("sampled", 0, 3, "select", 1, "positive", at10=9.0),
        record("random", 0, 4, "explain", at12=9.0),  # these are drawn without regard to the unit
    )
    llm = ScriptedLlm(lambda messages, sampling: "words")
    requests = Requests.of(ExplainConfig((UnitId(0, 0),), explainer), llm)
    task = ExplainTask(evidence, vocabulary_of(TEXTS), {}, {})
    results = explain_side(
        task, requests=requests, scorer=None, headline=Headline("correlation", ("population",))
    )
    (explanation,) = (result.explanation for result in results)
    assert explanation.status == "no_records"
    assert explanation.reason == "it fires in no record of the split explain"
    assert llm.requests == []


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
