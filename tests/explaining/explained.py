"""What tests of explaining share: asking a scripted LLM, and reading what was stored."""

import random

import numpy as np

from neuroexplain.config import ExplainConfig
from neuroexplain.explaining.run import run_explain
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.scoring.splits import assign_splits
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import CROP_LENGTH, UnitId
from tests.fakes import WORDS

NEURONS = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(2))


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
