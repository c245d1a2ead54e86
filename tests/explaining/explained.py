"""What tests of explaining share: asking a scripted LLM, and reading what was stored."""

import random

import numpy as np

from neuroexplain.config import ExplainConfig
from neuroexplain.evidence import TEXT_PARTS
from neuroexplain.explaining.run import run_explain
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.scoring.splits import assign_splits
from neuroexplain.stable_hash import stable_hash
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
    tables = [
        (e.unit, e.candidate, e.status, e.text, e.chosen, e.covers, e.parts, e.rule, e.examples)
        for e in explanations
    ]
    for part in TEXT_PARTS:
        for s in list_predictions(store, who, part):
            levels = [(r.kind, r.rank, r.values.tolist()) for r in s.records]
            tables.append((part, who[s.explanation_id], s.status, who.get(s.control_explanation_id), levels))
        for s in list_scores(store, who, part):
            values = (s.score.split, s.score.subset, s.score.status, s.score.value, s.score.control)
            tables.append((part, who[s.explanation_id], s.scorer, values))
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
    mine = ("select", "population", "correlation")
    return next((s.value for s in scores if (s.split, s.subset, s.metric) == mine), None)


def on_select(store, neuron, explanation_id):
    """The population score on `select`, from the stored levels, activations and hashes by hand."""
    (prediction,) = list_predictions(store, [explanation_id])
    return score_by_hand(load_run(store), load_unit(store, load_run(store), neuron), prediction, "select")


def score_by_hand(run, unit, prediction, split, side="positive"):
    """The weighted correlation, from the definition in evidence.md; None without a value."""
    weights = weights_by_hand(run, unit, split, prediction.n_read, side)
    records = {x.key: x for x in unit.exemplars}
    explained = [x for x in unit.exemplars if x.split == "explain"]
    weights = {key: w for key, w in weights.items() if not shares_text(records[key], explained)}
    levels = {r.key: r for r in prediction.records}
    w, predicted, truth = [], [], []
    for key, weight in weights.items():
        first = 32 * (stable_hash(run.seed, "half", records[key].segment) % 2)
        assert levels[key].first == first
        a = records[key].activations[first : first + 32].astype(np.float64)
        a = a if side == "positive" else -a
        counted = ~np.isnan(levels[key].values)
        if run.barred_ids:
            counted &= ~np.isin(records[key].token_ids[first : first + 32], run.barred_ids)
        predicted += levels[key].values[counted].tolist()
        truth += (np.where(a > 0, a, 0) if run.rectified else a)[counted].tolist()
        w += [weight] * int(counted.sum())
    by_record = np.array([weights[key] for key in weights])
    if by_record.sum() ** 2 / (by_record**2).sum() < 3 or np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return None
    details = [levels[key].detail for key in weights if levels[key].detail is not None]
    if details and np.mean(np.concatenate(details) >= 0.02) < 0.5:  # too few levels came back
        return None
    covariance = np.cov(predicted, truth, aweights=w)
    return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])


def weights_by_hand(run, unit, split, n, side="positive"):
    """1 / the probability of each record that is drawn if n sampled and n random ones are, by its key."""

    def size(x):
        first = 32 * (stable_hash(run.seed, "half", x.segment) % 2)
        a = x.activations[first : first + 32].astype(np.float64) * (1 if side == "positive" else -1)
        counted = ~np.isin(x.token_ids[first : first + 32], run.barred_ids)
        return float(sum(value**2 for value in a[counted] if value > 0))

    def ratio(x):
        return size(x) / ((stable_hash(run.seed, "sampled", x.segment) + 1) / 2**64)

    own = [x for x in unit.exemplars if x.split == split]
    sampled = sorted((x for x in own if x.kind == "sampled" and x.side == side), key=lambda x: -ratio(x))
    random = sorted(
        (x for x in own if x.kind == "random"), key=lambda x: stable_hash(run.seed, "random", x.segment)
    )
    tau = ratio(sampled[n]) if n < len(sampled) else unit.thresholds[side, split]
    sampled, random = sampled[:n], random[:n]
    last = ratio(sampled[-1]) if sampled and tau > 0 else 0
    weights = {}
    for x in [*sampled, *random]:
        is_inside = x.segment in {y.segment for y in sampled}
        if x.kind == "random" and is_inside:
            continue
        bound = tau if is_inside else last
        p = 0.0 if size(x) == 0 else 1.0 if bound == 0 else min(1.0, size(x) / bound)
        weights[x.key] = 1 / (1 - (1 - p) * (1 - len(random) / run.split_segments[split]))
    return weights


def shares_text(record, others):
    """Whether 16 token ids in a row are also in one of the others."""
    ids = record.token_ids.tolist()
    windows = {tuple(ids[i : i + 16]) for i in range(49)}
    for other in others:
        ids = other.token_ids.tolist()
        if windows & {tuple(ids[i : i + 16]) for i in range(49)}:
            return True
    return False


def old_on_select(store, neuron, explanation_id, among):
    """Of a run that splits by rank: the correlation on its records of `select` that are among these."""
    exemplars = load_unit(store, load_run(store), neuron).exemplars
    splits = assign_splits(exemplars)
    true = {(x.kind, x.rank): x.activations for x in exemplars}
    records = [
        r
        for r in list_predictions(store, [explanation_id])[0].records
        if splits[r.kind, r.rank] == "select" and (r.kind, r.rank) in among
    ]
    if {r.kind for r in records} != {"top", "random"}:
        return None
    recorded = [true[r.kind, r.rank][r.first : r.first + CROP_LENGTH] for r in records]
    return correlation_score(np.concatenate([r.values for r in records]), np.concatenate(recorded))
