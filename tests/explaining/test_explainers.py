"""What explainers show an LLM, and which of its replies are hypotheses."""

import numpy as np
import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar, Headline, Status, Unit
from neuroexplain.explaining.explainers import EXPLAINERS, WITHOUT_LLM, draw_worked, worked_answers
from neuroexplain.explaining.hypotheses import ask_explainer
from neuroexplain.explaining.plan import ExplainTask, Requests
from neuroexplain.explaining.rendering import worked_excerpts, worked_meanings, worked_pairs
from neuroexplain.explaining.replies import is_copy, parse_category, parse_meanings, parse_single
from neuroexplain.explaining.side import explain_side
from neuroexplain.llm.prompts import WorkedExample
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
    assert [turn.role for turn in turns] == ["system", *["user", "assistant"] * 4, "user"]
    lines = turns[-1].content.splitlines()
    assert lines[1:] == [f" w{i}\t{ {32: 10, 5: 2}.get(i, 0) }" for i in range(63)] + ["tab\\there\t0"]
    peaks = [max(range(len(r)), key=lambda i, r=r: r[i][1]) for x in prompt.pool for r in x.records]
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
ASKING = [name for name in EXPLAINERS if name not in WITHOUT_LLM]


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


def words_record(rank, *texts_with_values):
    """(record, texts) whose tokens are these, after silent words that fill it up to 64."""
    texts = [f" w{i}" for i in range(64 - len(texts_with_values))] + [text for text, _ in texts_with_values]
    values = [-0.5] * (64 - len(texts_with_values)) + [value for _, value in texts_with_values]
    first = 64 * rank
    ids, acts = np.arange(first, first + 64, dtype=np.uint32), np.array(values, np.float32)
    return Exemplar(UnitId(0, 0), "sampled", rank, rank, 0, 0, 0, float(acts.max()), ids, acts), texts


def firing_words(*rows):
    """What `category` lists for records with these tokens and activations."""
    records, texts = zip(*(words_record(rank, *row) for rank, row in enumerate(rows)), strict=True)
    tokens = vocabulary_of([text for of_record in texts for text in of_record])
    return EXPLAINERS["category"].render(records, tokens)


def test_category_lists_words_by_strength_then_number_once_each():
    assert firing_words([(" Oak", 5.0), (" elm", 9.0), (" ash", 5.0)], [(" ash", 5.0)]) == "elm, ash, oak"
    assert (
        firing_words([(" map", 1.0), ("les", 9.0), (" fir", 8.0)]) == "maples, fir"
    )  # a word, not its tokens
    assert firing_words([(" BBC", 9.0), (" Bbc", 8.0)]) == "BBC, bbc"
    assert firing_words([(f" a{i}", 9.0 - i / 10) for i in range(20)]).count(",") == 11


def test_category_leaves_out_what_is_often_silent_and_punctuation_beside_words():
    often_silent = [(" the", 8.0), (" the", -0.5), (" the", -0.5), (" the", -0.5), (" the", -0.5)]
    assert firing_words([(" elm", 9.0), *often_silent]) == "elm"
    assert firing_words([(" elm", 9.0), (" ash", 2.0)]) == "elm"  # level 2 of 10
    assert firing_words([(" elm", 9.0), (" ash", 7.0), (",", 8.0)]) == "elm, ash"
    assert firing_words([(" elm", 9.0), (",", 8.0)]) == "elm, ,"  # of a unit that may fire on commas
    with pytest.raises(LlmReplyError, match="fires on no word"):
        firing_words([(" ", 9.0)])


@pytest.mark.parametrize("explainer", ASKING)
def test_worked_examples_are_drawn_by_question_and_number_never_two_of_a_kind(explainer):
    pool = EXPLAINERS[explainer].load_prompt().pool
    kinds = {example.kind for example in pool}
    assert len(kinds) == 4
    assert len(pool) > 4 * len(kinds)
    draws = [draw_worked(pool, f"question {n}", 0) for n in range(60)]
    for draw in draws:
        assert {example.kind for example in draw} == kinds
        assert len(draw) == len(kinds)
    assert {example for draw in draws for example in draw} == set(pool)
    assert draw_worked(pool[::-1], "question 3", 0) == draws[3]
    assert draw_worked(pool, "question 3", 1) != draws[3]


def test_worked_neurons_are_shown_as_the_explainer_shows_units():
    birds = WorkedExample("birds", "thing", (((" a", 0), (" wren", 9)), ((" the", 1), (" owl", 4))))
    rain = WorkedExample("rain", "topic", (((" wet", 7), (" day", 0)), ((" heavy", 3), (" showers", 10))))
    dots = WorkedExample("dots", "form", (((" Hm", 0), (".", 5)),) * 2)
    assert worked_pairs([birds]) == [("Excerpt 1:\n a\t0\n wren\t9\n\nExcerpt 2:\n the\t1\n owl\t4", "birds")]
    assert worked_excerpts([rain, dots]) == [
        ("**wet** day\nheavy **showers**", "rain"),
        ("Hm**.**\nHm**.**", "dots"),
    ]
    two_meanings = "1. a **wren**\n2. **wet** day\n3. the **owl**\n4. heavy **showers**"
    assert worked_meanings([birds, rain, dots]) == [
        (two_meanings, "birds | 1, 3\nrain | 2, 4"),
        ("1. Hm**.**\n2. Hm**.**", "dots | 1, 2"),
    ]
    assert worked_meanings([]) == []
    for question, answer in worked_meanings([birds, rain, dots]):  # an answer is one that would be read
        covered = [hypothesis.covers for hypothesis in parse_meanings(answer, numbered_records(question))]
        assert sorted(rank for ranks in covered for rank in ranks) == list(range(question.count("\n") + 1))


def numbered_records(question):
    """As many records as a question has lines, of rank 0, 1, ..."""
    return [record("top", rank, rank, "explain", at32=1.0) for rank in range(question.count("\n") + 1)]


@pytest.mark.parametrize("explainer", ["category", "excerpts", "pairs"])
def test_a_candidate_has_worked_examples_of_its_own_and_the_second_has_none(explainer):
    llm = ScriptedLlm(lambda messages, sampling: "elms")
    requests = Requests.of(ExplainConfig((UnitId(0, 0),), explainer, candidates=3, seed=5), llm)
    exemplar, texts = words_record(0, (" elm", 9.0))
    for candidate in range(3):
        ask_explainer(requests, requests.request(UnitId(0, 0), candidate), [exemplar], vocabulary_of(texts))
    first, second, third = (messages for messages, _ in llm.requests)
    assert [turn.role for turn in second] == ["system", "user"]
    assert [turn.role for turn in first] == ["system", *["user", "assistant"] * 4, "user"]
    assert first[-1] == second[-1] == third[-1]
    assert first != third
    assert {sampling["temperature"] for _, sampling in llm.requests} == {0.0}


@pytest.mark.parametrize("explainer", ["category", "excerpts", "pairs"])
def test_the_answer_of_a_worked_example_is_asked_again_without_them(explainer):
    def first_answer(messages, sampling):
        worked = worked_answers(messages)
        return f"The {worked[0]}." if worked else "elms"

    llm = ScriptedLlm(first_answer)
    (explanation,) = ask_one(llm, explainer)
    assert (explanation.text, explanation.status, len(llm.requests)) == ("elms", "ok", 2)
    assert explanation.provenance.prompt_tokens == 2 * llm.prompt_tokens
    assert [turn.role for turn in llm.requests[1][0]] == ["system", "user"]
    assert llm.requests[1][0][0] == llm.requests[0][0][0]


def test_the_answer_of_a_worked_example_that_comes_again_is_a_failed_attempt():
    shown = []

    def always(messages, sampling):
        shown.extend(worked_answers(messages))
        return shown[0]

    (explanation,) = ask_one(ScriptedLlm(always), "category")
    assert (explanation.status, explanation.text) == ("parse_error", None)
    assert explanation.reply == shown[0]
    assert explanation.provenance.prompt_tokens == 2 * ScriptedLlm.prompt_tokens


def test_a_reading_that_is_that_of_a_worked_example_is_asked_again():
    def first_answer(messages, sampling):
        worked = worked_answers(messages)
        return f"{worked[1]} | 1" if worked else "elms and oaks | 1"

    llm = ScriptedLlm(first_answer)
    (explanation,) = ask_one(llm, "meanings")
    assert (explanation.text, len(llm.requests)) == ("elms and oaks", 2)


def ask_one(llm, explainer):
    requests = Requests.of(ExplainConfig((UnitId(0, 0),), explainer), llm)
    exemplar, texts = words_record(0, (" elm", 9.0))
    return ask_explainer(requests, requests.request(UnitId(0, 0), 0), [exemplar], vocabulary_of(texts))


@pytest.mark.parametrize(
    ("text", "answer", "copied"),
    [
        ("Selling and buying", "buying and selling", True),
        ("a farm's prepositions", "the preposition of farms", False),
        ("prepositions of time", "prepositions of place", False),
        ("trees", "tree", True),
        ("old trees", "trees", False),
    ],
)
def test_a_copy_has_the_words_of_an_answer_in_any_order_and_form(text, answer, copied):
    assert is_copy(text, ["something else", answer]) == copied


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


LOOPS = ("A: A: A: A: A: A: A: A: A", "It's a it's a it's a", "war, war, war, war, war, war")


@pytest.mark.parametrize("reply", ["", "  \n ", "...", "x" * 500, *REFUSALS, *THOUGHTS, *LOOPS])
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
        ("Category: trees", "trees"),
        ("war, war", "war, war"),
        ("words that begin with s, words that end with s", "words that begin with s, words that end with s"),
        ('The category that these words belong to is "trees".', "trees"),
        ('The category that words belong to is "trees".', "trees"),
        ('The category that the words "may, might" belong to is "modal verbs".', "modal verbs"),
        ("Categories of words", "Categories of words"),
    ],
)
def test_a_hypothesis_is_tidied(reply, text):
    assert [hypothesis.text for hypothesis in parse_single(reply, [])] == [text]


def test_a_sentence_about_the_words_is_no_category():
    longest = "a b c d e f g h i j k l"
    assert [hypothesis.text for hypothesis in parse_category(f" {longest}.\nmore", [])] == [longest]
    with pytest.raises(LlmReplyError, match="13 words: a sentence, not a category of at most 12") as failed:
        parse_category(f"{longest} m", [])
    assert (failed.value.status, failed.value.reply) == ("parse_error", f"{longest} m")
    assert EXPLAINERS["category"].parse is parse_category
