"""Revisions: what an explainer is shown again, and which answer is kept."""

import re

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Status
from neuroexplain.explaining.explainers import worked_answers
from neuroexplain.explaining.verify import verify_run
from neuroexplain.llm.prompts import displayed, load_prompt
from neuroexplain.lookup import load_page
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.splits import assign_splits, halve_select
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import list_unit_ids, load_unit
from neuroexplain.units import CROP_LENGTH
from tests.explaining.explained import NEURONS, by_words, explain, old_on_select, on_select
from tests.fakes import ScriptedLlm


def test_a_revision_is_kept_only_if_better_on_all_of_select(store, scorer):
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer, revise=6)
    assert len(llm.requests) == 7 * len(NEURONS)
    kept = 0
    for neuron in NEURONS:
        first, *revised = list_explanations(store, 1, neuron)
        best = first
        for e in revised:
            new, old = (on_select(store, neuron, explanation.id) for explanation in (e, best))
            if new is not None and (old is None or new > old):
                best, kept = e, kept + 1
        assert [e.chosen for e in (first, *revised)] == [e is best for e in (first, *revised)]
    assert kept < 6 * len(NEURONS)
    assert kept > 0 or scorer.name == "digits"  # a random model gives few scores by it
    assert list(verify_run(store, load_run(store))) == []


def test_in_old_runs_a_revision_is_shown_half_of_select_and_kept_if_better_on_the_other(old_store, local):
    store = old_store
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
            new, old = (old_on_select(store, neuron, explanation.id, held_keys) for explanation in (e, best))
            if new is not None and (old is None or new > old):
                best, kept = e, kept + 1
        assert [e.chosen for e in (first, *revised)] == [e is best for e in (first, *revised)]
    assert 0 < kept < 6 * len(NEURONS)  # both happened
    assert list(verify_run(store, run)) == []


def test_a_revision_is_shown_mistakes_on_explain_records_alone(store, scorer):
    """Its prompt holds 3 crops, each the scored half of a sampled or random record that was predicted."""
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer, revise=1)
    run = load_run(store)
    halves = {}  # the texts of scored halves -> (unit, split)
    for unit in list_unit_ids(store, run.id):
        page = load_page(store, run, unit)
        for x in page.unit.exemplars:
            if x.kind in ("random", "sampled"):
                first = 32 * (stable_hash(run.seed, "half", x.segment) % 2)
                texts = tuple(displayed(text) for text in page.texts(x)[first : first + 32])
                halves.setdefault(texts, set()).add((unit, x.split))
    asked_again = [m for m, _ in llm.requests if "guessed from your phrase" in m[-1].content]
    assert len(asked_again) == len(NEURONS)
    for neuron, messages in zip(NEURONS, asked_again, strict=True):
        excerpts = re.split(r"Excerpt \d+:\n", messages[-1].content)[1:]
        assert len(excerpts) == 3
        for excerpt in excerpts:
            lines = [line.split("\t") for line in excerpt.split("\n\n")[0].splitlines()]
            assert len(lines) == CROP_LENGTH
            assert all(0 <= int(level) <= 10 for line in lines for level in line[1:])
            owners = halves[tuple(text for text, *_ in lines)]
            assert {split for _, split in owners} == {"explain"}
            assert neuron in {unit for unit, _ in owners}
    assert list(verify_run(store, run)) == []


def test_in_old_runs_records_of_the_two_halves_share_nothing(old_store):
    store, run = old_store, load_run(old_store)
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


def test_where_the_records_to_show_cannot_be_predicted_the_revision_has_that_status(
    store, scorer, monkeypatch
):
    def refuse(*_):
        raise LlmReplyError(Status.LLM_ERROR, "the server answered 500")

    monkeypatch.setattr("neuroexplain.explaining.trials.SideTrials.predict_explain", refuse)
    llm = ScriptedLlm(by_words)
    explain(store, llm, scorer, revise=1)
    failed = [e for e in list_explanations(store, load_run(store).id) if e.status != Status.OK]
    assert {e.unit for e in failed} == set(NEURONS)
    assert {e.status for e in failed} == {Status.LLM_ERROR}
    assert {e.reason for e in failed} == {
        "the records to show could not be predicted: the server answered 500"
    }
    assert not any("guessed from your phrase" in m[-1].content for m, _ in llm.requests)


def test_a_revision_that_answers_a_worked_example_is_asked_again_without_them(store, scorer):
    """Its first turns are those of a request whose worked examples are drawn by the revision's number."""

    def copying(messages, sampling):
        worked = worked_answers(messages[:-3])
        is_revision = "guessed from your phrase" in messages[-1].content
        return worked[0] if is_revision and worked else by_words(messages, sampling)

    llm = ScriptedLlm(copying)
    explain(store, llm, scorer, "excerpts", revise=2)
    revisions = [messages for messages, _ in llm.requests if "guessed" in messages[-1].content]
    assert len(revisions) == 4 * len(NEURONS)
    for again in revisions[1::2]:
        assert [turn.role for turn in again] == ["system", "user", "assistant", "user"]
    assert len({tuple(worked_answers(messages[:-3])) for messages in revisions[::2]}) > len(NEURONS)
    texts = {e.text for neuron in NEURONS for e in list_explanations(store, 1, neuron)}
    assert not texts & {example.explanation for example in load_prompt("explain/excerpts").pool}
