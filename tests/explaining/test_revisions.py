"""Revisions: what an explainer is shown again, and which answer is kept."""

import re

from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.splits import assign_splits, halve_select
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import CROP_LENGTH
from tests.explaining.explained import NEURONS, by_words, explain, on_select
from tests.fakes import ScriptedLlm


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
