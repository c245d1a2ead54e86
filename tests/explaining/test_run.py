"""Candidates, revisions, several meanings and the null: what is asked, chosen, stored; and that stopping
changes nothing.
"""

import random
import re
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig, ExplainConfig
from neuroexplain.errors import EngineLost, LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Exemplar, Explanation, Provenance
from neuroexplain.explaining.controls import find_controls
from neuroexplain.explaining.estimate import estimate_explain
from neuroexplain.explaining.explainers import parse_meanings
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.score import run_score
from neuroexplain.explaining.verify import verify_run
from neuroexplain.llm.engine import chat_token_ids
from neuroexplain.llm.local import LocalEngine
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.scoring.splits import assign_splits, halve_select
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_failures, list_predictions, list_scores
from neuroexplain.store.runs import list_sessions, load_run
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import load_tokens
from neuroexplain.units import CROP_LENGTH, UnitId
from tests.fakes import WORDS, ScriptedLlm, tiny_subject, words

NEURONS = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(2))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A folder with a tiny model and a database that holds its collected neurons."""
    folder = tmp_path_factory.mktemp("collected")
    (folder / "text.txt").write_text(words(30_000))
    model = str(tiny_subject(folder / "model"))
    with open_store(str(folder / "x.db"), create=True) as store:
        list(
            run_collect(
                store, CollectConfig(model=model, dataset=(str(folder / "text.txt"),), positions=(32, 97))
            )
        )
    return folder


@pytest.fixture(scope="module")
def local(collected):
    return LocalEngine(str(collected / "model"))


@pytest.fixture
def store(collected, tmp_path):
    (tmp_path / "x.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "x.db")) as opened:
        yield opened


@pytest.fixture(params=["lexical", "digits"])
def scorer(request, local, store):
    return (
        DigitsSimulator(local)
        if request.param == "digits"
        else LexicalSimulator(local, load_run(store).tokenizer_sha256)
    )


def by_words(messages, sampling):
    """A few words that depend on the request alone."""
    picks = random.Random(repr((messages, sorted(sampling.items()))))
    return " ".join(picks.choices(WORDS, k=3))


def explain(store, llm, scorer, explainer="excerpts", **options):
    list(run_explain(store, load_run(store), ExplainConfig(NEURONS, explainer, **options), llm, scorer))


def content(store):
    """What was tables out, without ids, times and costs."""
    run = load_run(store)
    explanations = list_explanations(store, run.id)
    who = {e.id: (e.unit, e.candidate) for e in explanations}
    tables = [(e.unit, e.candidate, e.status, e.text, e.chosen, e.covers, e.parts) for e in explanations]
    for s in list_predictions(store, who):
        levels = [(r.kind, r.rank, r.values.tolist()) for r in s.records]
        tables.append((who[s.explanation_id], s.status, who.get(s.control_explanation_id), levels))
    for s in list_scores(store, who):
        values = (s.score.split, s.score.subset, s.score.status, s.score.value, s.score.control)
        tables.append((who[s.explanation_id], s.scorer, values))
    return sorted(tables, key=repr)


def chosen(store):
    """The explanations and what was chosen on; nulls and reports depend on what was chosen at the time."""
    return [
        (e.unit, e.candidate, e.text, e.chosen, stored_select(store, e.id))
        for e in list_explanations(store, 1)
    ]


def stored_select(store, explanation_id):
    """The stored headline correlation on `select`."""
    scores = (s.score for s in list_scores(store, [explanation_id]))
    mine = ("select", "top_and_random", "correlation")
    return next((s.value for s in scores if (s.split, s.subset, s.metric) == mine), None)


def on_select(store, neuron, explanation_id, among=None):
    """The correlation on `select`, computed from the stored levels and activations by hand."""
    run = load_run(store)
    exemplars = load_unit(store, run, neuron).exemplars
    splits = assign_splits(exemplars)
    true = {(x.kind, x.rank): x.activations for x in exemplars}
    records = [
        r
        for r in list_predictions(store, [explanation_id])[0].records
        if splits[r.kind, r.rank] == "select" and (among is None or (r.kind, r.rank) in among)
    ]
    if {r.kind for r in records} != {"top", "random"}:
        return None
    recorded = [true[r.kind, r.rank][r.first : r.first + CROP_LENGTH] for r in records]
    return correlation_score(np.concatenate([r.values for r in records]), np.concatenate(recorded))


def test_the_best_candidate_on_select_is_chosen_and_alone_reported(store, scorer):
    explain(store, ScriptedLlm(by_words), scorer, candidates=4)
    run = load_run(store)
    for neuron in NEURONS:
        of_neuron = list_explanations(store, run.id, neuron)
        assert [e.candidate for e in of_neuron] == [0, 1, 2, 3]
        stored = [stored_select(store, e.id) for e in of_neuron]
        for e, correlation in zip(of_neuron, stored, strict=True):
            assert correlation is None or correlation == pytest.approx(on_select(store, neuron, e.id))
        best = int(np.argmax([-2 if correlation is None else correlation for correlation in stored]))
        assert [e.chosen for e in of_neuron] == [i == best for i in range(4)]
        for e in of_neuron:
            status = {s.score.status for s in list_scores(store, [e.id]) if s.score.split == "report"}
            assert (status == {"not_chosen"}) == (scorer.name == "digits" and not e.chosen)
    assert list(verify_run(store, run)) == []


def test_more_candidates_later_ask_only_what_is_missing(store, scorer, tmp_path, collected):
    first = ScriptedLlm(by_words)
    explain(store, first, scorer, candidates=2)
    more = ScriptedLlm(by_words)
    explain(store, more, scorer, candidates=4)
    assert (len(first.requests), len(more.requests)) == (2 * len(NEURONS), 2 * len(NEURONS))
    nothing = ScriptedLlm(by_words)
    explain(store, nothing, scorer, candidates=4)
    assert nothing.requests == []
    (tmp_path / "y.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "y.db")) as other:
        explain(other, ScriptedLlm(by_words), scorer, candidates=4)
        assert chosen(store) == chosen(other)


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_stopped_anywhere_and_run_again_it_ends_the_same(store, local, tmp_path, collected, after):
    scorer = LexicalSimulator(local, load_run(store).tokenizer_sha256)
    events = run_explain(
        store, load_run(store), ExplainConfig(NEURONS, "excerpts", revise=1), ScriptedLlm(by_words), scorer
    )
    for _ in range(after):
        next(events)
    events.close()
    explain(store, ScriptedLlm(by_words), scorer, revise=1)
    (tmp_path / "y.db").write_bytes((collected / "x.db").read_bytes())
    with open_store(str(tmp_path / "y.db")) as other:
        explain(other, ScriptedLlm(by_words), scorer, revise=1)
        assert content(store) == content(other)


def test_an_engine_that_is_lost_keeps_what_was_complete(store, scorer):
    class Lost(ScriptedLlm):
        def generate(self, messages, **sampling):
            if len(self.requests) == 3:
                raise EngineLost("gone")
            return super().generate(messages, **sampling)

    with pytest.raises(EngineLost):
        explain(store, Lost(by_words), scorer)
    assert len(list_explanations(store, 1)) == 3
    again = ScriptedLlm(by_words)
    explain(store, again, scorer)
    assert len(again.requests) == len(NEURONS) - 3
    assert list(verify_run(store, load_run(store))) == []


def test_a_revision_is_shown_half_of_select_and_kept_only_if_better_on_the_other(store, local):
    scorer = LexicalSimulator(local, load_run(store).tokenizer_sha256)
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer, revise=6)
    run = load_run(store)
    assert len(llm.requests) == 7 * len(NEURONS)
    asked_again = [
        messages for messages, _ in llm.requests if "guessed from your phrase" in messages[-1].content
    ]
    assert len(asked_again) == 6 * len(NEURONS)
    kept = 0
    for neuron in NEURONS:
        first, *revised = list_explanations(store, run.id, neuron)
        exemplars = load_unit(store, run, neuron).exemplars
        shown_keys, held_keys = halve_select(exemplars, assign_splits(exemplars), ("top", "random"))
        assert {rank % 8 for _, rank in shown_keys} == {2}
        assert {rank % 8 for _, rank in held_keys} == {6}
        best = first
        for e in revised:
            new, old = (on_select(store, neuron, explanation.id, held_keys) for explanation in (e, best))
            if new is not None and (old is None or new > old):
                best, kept = e, kept + 1
        assert [e.chosen for e in (first, *revised)] == [e is best for e in (first, *revised)]
    assert 0 < kept < 6 * len(NEURONS)  # both happened
    assert list(verify_run(store, run)) == []


def test_a_revision_sees_no_report_record(store, scorer):
    """Its prompt holds 3 crops, each the tokens of a record that is neither reported nor judged on."""
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer, revise=1)
    run = load_run(store)
    for messages, _ in llm.requests:
        if "guessed from your phrase" not in messages[-1].content:
            continue
        excerpts = re.split(r"Excerpt \d+:\n", messages[-1].content)[1:]
        assert len(excerpts) == 3
        for excerpt in excerpts:
            lines = [line.split("\t") for line in excerpt.split("\n\n")[0].splitlines()]
            assert len(lines) == CROP_LENGTH
            assert all(0 <= int(level) <= 10 for line in lines for level in line[1:])
    assert list(verify_run(store, run)) == []


def test_several_meanings_are_stored_with_what_they_cover_and_their_union(store, scorer):
    llm = ScriptedLlm(
        lambda messages, sampling: "old mills | 1, 3\n2. sleeping geese | 2\n- money | 1, 4, 5\nmore | 1"
    )
    explain(store, llm, scorer, "meanings")
    run = load_run(store)
    assert len(llm.requests) == len(NEURONS)
    for neuron in NEURONS:
        of_neuron = list_explanations(store, run.id, neuron)
        assert [e.text for e in of_neuron] == [
            "old mills",
            "sleeping geese",
            "money",
            "old mills; or sleeping geese; or money",
        ]
        exemplars = load_unit(store, run, neuron).exemplars
        splits = assign_splits(exemplars)
        explained = [x.rank for x in exemplars if x.kind == "top" and splits["top", x.rank] == "explain"]
        assert of_neuron[0].covers == (explained[0], explained[2])
        assert of_neuron[3].covers == tuple(explained[:5])
        assert sum(e.provenance.prompt_tokens for e in of_neuron) == llm.prompt_tokens
        assert sum(e.chosen for e in of_neuron) == 1
        *parts, union = (list_predictions(store, [e.id])[0] for e in of_neuron)
        for r in union.records:
            same = [p for s in parts for p in s.records if (p.kind, p.rank) == (r.kind, r.rank)]
            if len(same) == 3:
                greatest = np.max([p.values for p in same], axis=0)
                np.testing.assert_array_equal(r.values, greatest)
        assert union.records
    assert list(verify_run(store, run)) == []
    nothing = ScriptedLlm(by_words)
    explain(store, nothing, scorer, "meanings")
    assert nothing.requests == []


def test_meanings_that_were_not_simulated_are_the_next_time(store, scorer):
    """Every hypothesis of an answer is known again, and one of them is chosen."""
    llm = ScriptedLlm(lambda messages, sampling: "old mills | 1, 3\nsleeping geese | 2\nmoney | 1, 4, 5")
    explain(store, llm, None, "meanings")
    explain(store, llm, scorer, "meanings")
    assert len(llm.requests) == len(NEURONS)
    for neuron in NEURONS:
        of_neuron = list_explanations(store, 1, neuron)
        assert (len(of_neuron), sum(e.chosen for e in of_neuron)) == (4, 1)
        assert all(list_predictions(store, [e.id]) for e in of_neuron)


def test_a_neuron_has_one_chosen_explanation_of_an_explainer_and_model(store, scorer):
    """The last command's, also one that asks nothing anew; but not one of another seed that gets no usable
    answer.
    """
    llm = ScriptedLlm(by_words)

    def chosen_ids():
        stored = list_explanations(store, 1, explainer="excerpts")
        return {explanation.unit: explanation.id for explanation in stored if explanation.chosen}

    explain(store, llm, scorer, candidates=3)
    first = chosen_ids()
    explain(store, llm, scorer, candidates=2, revise=1)
    explain(store, llm, scorer, "pairs")
    for neuron in NEURONS:
        of_neuron = list_explanations(store, 1, neuron)
        assert sum(e.chosen for e in of_neuron if e.explainer == "excerpts") == 1
        assert sum(e.chosen for e in of_neuron) == 2
    n_asked = len(llm.requests)
    explain(store, llm, scorer, candidates=3)
    assert (chosen_ids(), len(llm.requests)) == (first, n_asked)
    before = [e.id for e in list_explanations(store, 1) if e.chosen and e.status == "ok"]
    explain(store, ScriptedLlm(lambda messages, sampling: ""), scorer, candidates=2, seed=7)
    assert [e.id for e in list_explanations(store, 1) if e.chosen and e.status == "ok"] == before


def test_a_line_of_white_space_takes_no_time_and_a_number_has_an_end():
    for reply in (
        "words | x\n" + " " * 100_000 + "x",
        "words | " + "9" * 5_000,
        "words | " + "1," * 50_000 + "x",
    ):
        with pytest.raises(LlmReplyError, match="no line is of the form"):
            parse_meanings(reply, [])


@pytest.mark.parametrize(
    "reply",
    ["", "rivers", "rivers | ", "rivers | 0", "rivers | 1, 11", "| 1", "<think>rivers | 1", "I cannot | 1"],
)
def test_what_does_not_name_meanings_is_a_failed_attempt(reply):
    records = [
        Exemplar(UnitId(0, 0), "top", rank, 0, 0, 0, 0, 1.0, np.zeros(64), np.zeros(64)) for rank in range(10)
    ]
    with pytest.raises(LlmReplyError) as failed:
        parse_meanings(reply, records)
    assert (failed.value.status, failed.value.reply) == ("parse_error", reply)


def test_a_failed_request_is_a_row_with_a_reason_and_asked_again_only_when_told(store, scorer):
    def failing(messages, sampling):
        raise LlmReplyError("llm_error", "400: no", "no")

    explain(store, ScriptedLlm(failing), scorer)
    assert {(f.status, f.reason) for f in list_failures(store, 1, None, 99)} == {("llm_error", "400: no")}
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer)
    assert llm.requests == []
    explain(store, llm, scorer, retry_failed=True)
    assert len(llm.requests) == len(NEURONS)
    assert {e.status for e in list_explanations(store, 1)} == {"ok"}


def test_what_a_command_cost_is_kept(store, local):
    llm = ScriptedLlm(by_words)
    explain(store, llm, DigitsSimulator(local))
    (session,) = list_sessions(store, 1)
    predictions = list_predictions(store, [e.id for e in list_explanations(store, 1)])
    sent = sum(s.provenance.prompt_tokens for s in predictions)
    assert (session.n_neurons, session.n_failed, session.scorer_prompt_tokens) == (len(NEURONS), 0, sent)
    assert session.prompt_tokens == sent + llm.prompt_tokens * len(NEURONS)
    assert session.scored_tokens == sum(CROP_LENGTH * len(s.records) for s in predictions)


def test_digits_are_compared_with_another_explanation_when_asked(store, local):
    run, digits = load_run(store), DigitsSimulator(local)
    explain(store, ScriptedLlm(by_words), digits)
    explanations = list_explanations(store, run.id)
    scores = [s.score for s in list_scores(store, [e.id for e in explanations])]
    assert {score.control_reason for score in scores if score.metric == "correlation"} == {"not asked for"}
    list(run_score(store, run, explanations, digits, with_control=True))
    texts = {e.id: e.text for e in explanations}
    for prediction in list_predictions(store, texts):
        assert prediction.control_explanation_id not in (None, prediction.explanation_id)
        exemplars = {(x.kind, x.rank): x for x in load_unit(store, run, prediction.unit).exemplars}
        records = [
            exemplars[r.kind, r.rank].token_ids[r.first : r.first + CROP_LENGTH].tolist()
            for r in prediction.records
        ]
        tokens = load_tokens(store, run.id, {i for record in records for i in record})
        others = digits.simulate(texts[prediction.control_explanation_id], records, tokens).trials
        for r, other in zip(prediction.records, others, strict=True):
            np.testing.assert_allclose(r.control, other.values, atol=0.01)  # stored in half precision
    assert list(verify_run(store, run)) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_null_is_the_next_neurons_in_the_order_of_the_hash(seed):
    picks = random.Random(seed)
    nobody = Provenance("none", None, "m", None, None)
    neurons = {
        UnitId(picks.choice([0, 0, 1, 2, 2, 2, 3]), picks.randrange(50))
        for _ in range(picks.choice([1, 2, 5, 20]))
    }
    explanations = [Explanation(n, "pairs", "ok", "x", nobody, id=i) for i, n in enumerate(neurons, 1)]
    controls = find_controls(explanations)
    for e in explanations:
        others = [x for x in explanations if x.unit != e.unit]
        others = [x for x in others if x.unit.layer == e.unit.layer] or others
        place = lambda x: (stable_hash(x.unit.layer, x.unit.index), x.unit)  # noqa: E731
        after = [x for x in others if place(x) > place(e)] or others
        assert controls.get(e.id) is (min(after, key=place) if after else None)


@pytest.mark.parametrize("pause", [0.0, 0.7, 2.0])
def test_killed_at_any_moment_and_run_again_it_ends_the_same(collected, tmp_path, pause):
    """The real command with a real, if tiny, model as explainer and as simulator."""

    def command(db):
        options = (
            "--layers",
            "0-1",
            "--limit",
            "8",
            "--explainer",
            "excerpts",
            "--candidates",
            "2",
            "--scorer",
            "lexical",
        )
        named = ("--local", str(collected / "model"), "--db", str(db))
        return [sys.executable, "-m", "neuroexplain.cli.main", "explain", *options, *named]

    for name in ("killed.db", "whole.db"):
        (tmp_path / name).write_bytes((collected / "x.db").read_bytes())
    with subprocess.Popen(command(tmp_path / "killed.db"), stderr=subprocess.PIPE) as running:
        with open_store(str(tmp_path / "killed.db"), read_only=True) as store:
            while not list_explanations(store, 1):
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.01)
        time.sleep(pause)
        running.kill()
    for name in ("killed.db", "whole.db"):
        done = subprocess.run(command(tmp_path / name), capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr  # what a random model answers may be no hypothesis
    with open_store(str(tmp_path / "killed.db")) as killed, open_store(str(tmp_path / "whole.db")) as whole:
        assert content(killed) == content(whole)
        assert list(verify_run(killed, load_run(killed))) == []


@pytest.mark.parametrize(
    "options",
    [{"candidates": 0}, {"candidates": 101}, {"revise": -1}, {"explainer": "tokens", "candidates": 2}],
)
def test_impossible_candidates_are_refused(options):
    with pytest.raises(NeuroexplainError, match=r"--candidates|--revise"):
        ExplainConfig(NEURONS, **options)


def test_records_of_the_two_halves_share_nothing(store):
    run = load_run(store)
    for neuron in NEURONS:
        exemplars = load_unit(store, run, neuron).exemplars
        shown_keys, held_keys = halve_select(exemplars, assign_splits(exemplars), ("top", "random"))
        ids = {(x.kind, x.rank): x for x in exemplars}
        for a in shown_keys:
            for b in held_keys:
                assert ids[a].segment != ids[b].segment
                assert not windows(ids[a]) & windows(ids[b])


def windows(exemplar):
    ids = exemplar.token_ids.tolist()
    return {tuple(ids[i : i + 16]) for i in range(len(ids) - 15)}


def test_progress_only_grows(store, local):
    events = run_explain(
        store,
        load_run(store),
        ExplainConfig(NEURONS, "excerpts"),
        ScriptedLlm(by_words),
        DigitsSimulator(local),
    )
    done = [event.done for event in events if event.stage == "explaining"]
    assert all(a <= b for a, b in pairwise(done))
    assert done[-1] == len(NEURONS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_control": True},
        {"candidates": 3},
        {"candidates": 3, "with_control": True},
        {"explainer": "tokens"},
        "some are there",
    ],
)
def test_an_estimate_says_what_the_run_then_asks(store, local, options):
    """All neurons are in the sample. The last: two candidates are stored, and simulated for half of the
    neurons.
    """
    run, llm = load_run(store), ScriptedLlm(by_words)
    llm.tokenizer = local.tokenizer
    with_control = options != "some are there" and options.get("with_control", False)
    if options == "some are there":
        explain(store, llm, None, candidates=2)
        list(
            run_explain(
                store, run, ExplainConfig(NEURONS[:2], "excerpts", candidates=2), llm, DigitsSimulator(local)
            )
        )
        options = {"candidates": 3}
    named = {"explainer": "excerpts"} | {
        name: value for name, value in options.items() if name != "with_control"
    }
    config = ExplainConfig(NEURONS, **named)
    engine = llm if config.asks_llm else None
    estimate = estimate_explain(store, run, config, engine, DigitsSimulator(local), with_control=with_control)
    before, n_asked = local.usage.requests, len(llm.requests)
    list(run_explain(store, run, config, engine, DigitsSimulator(local), with_control=with_control))
    assert estimate.n_requests == local.usage.requests - before + len(llm.requests) - n_asked
    explaining = sum(len(chat_token_ids(local.tokenizer, messages)) for messages, _ in llm.requests[n_asked:])
    sent = list_sessions(store, run.id)[-1].scorer_prompt_tokens + explaining
    assert estimate.n_prompt_tokens == pytest.approx(sent, rel=0.05)  # texts of other lengths
