"""The metrics of judges against obvious versions, whole populations and values worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from neuroexplain.scoring.judgements import (
    CUT,
    JUDGE_METRICS,
    Judgements,
    judged_interval,
    weighted_auroc,
    weighted_balanced_accuracy,
    weighted_brier,
    weighted_f1,
)
from neuroexplain.scoring.windows import firing_tokens
from tests.scoring.test_population import N, evidence_of, half_of, population

windows_of = st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(1, 4)), min_size=1, max_size=12)


def columns(windows):
    probabilities, positive, weights = zip(*windows, strict=True)
    return np.array(probabilities) / 8, np.array(positive, bool), np.array(weights, float)


def obvious(probabilities, positive, weights):
    """Every metric by loops over windows that stand there as often as they weigh."""
    repeated = [
        (p, y) for p, y, w in zip(probabilities, positive, weights, strict=True) for _ in range(int(w))
    ]
    yes, no = [p for p, y in repeated if y], [p for p, y in repeated if not y]
    hits, false_alarms = sum(p >= 0.5 for p in yes), sum(p >= 0.5 for p in no)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no]
    both = bool(yes and no)
    return {
        "auroc": sum(pairs) / len(pairs) if both else None,
        "f1": 2 * hits / (len(yes) + hits + false_alarms) if yes else None,
        "balanced_accuracy": (hits / len(yes) + 1 - false_alarms / len(no)) / 2 if both else None,
        "brier": sum((p - y) ** 2 for p, y in repeated) / len(repeated),
    }


@given(windows_of)
@settings(deadline=None)
def test_a_weight_counts_as_that_many_windows(windows):
    own = columns(windows)
    for name, value in obvious(*own).items():
        assert JUDGE_METRICS[name].value_of(*own) == (None if value is None else pytest.approx(value)), name


def test_values_by_hand():
    probabilities = np.array([0.9, 0.4, 0.6, 0.1])
    positive, weights = np.array([True, True, False, False]), np.array([1.0, 1.0, 2.0, 6.0])
    assert weighted_auroc(probabilities, positive, weights) == pytest.approx((8 + 6) / 16)
    assert weighted_f1(probabilities, positive, weights) == pytest.approx(2 / (3 + 2))
    assert weighted_balanced_accuracy(probabilities, positive, weights) == pytest.approx((0.5 + 0.75) / 2)
    assert weighted_brier(probabilities, positive, weights) == pytest.approx(
        (0.01 + 0.36 + 2 * 0.36 + 6 * 0.01) / 10
    )


def test_the_threshold_itself_is_a_yes():
    own = np.array([0.5, 0.49]), np.array([True, False]), np.ones(2)
    assert weighted_f1(*own) == weighted_balanced_accuracy(*own) == 1


def test_a_metric_is_undefined_where_it_says_nothing():
    probabilities, weights = np.array([0.2, 0.8]), np.ones(2)
    for positive, defined in ((np.zeros(2, bool), {"brier"}), (np.ones(2, bool), {"brier", "f1", "auprc"})):
        values = {n: m.value_of(probabilities, positive, weights) for n, m in JUDGE_METRICS.items()}
        assert {name for name, value in values.items() if value is not None} == defined


def judgements_of(seed, n=(5, 7), noise=1.0):
    generator = np.random.default_rng(seed)
    positive = generator.random(sum(n)) < 0.5
    positive[:2] = True, False
    odds = positive + noise * generator.normal(size=sum(n))
    kinds = ["random"] * n[0] + ["sampled"] * n[1]
    return Judgements(kinds, generator.uniform(1, 9, sum(n)), 1 / (1 + np.exp(-odds)), positive)


def interval_by_definition(judged, metric):
    """Log odds of the metric without each window, kinds apart, Student's t as for the correlation."""

    def log_odds(value):
        value = min(max(value, CUT), 1 - CUT)
        return math.log(value / (1 - value))

    z = []
    for left_out in range(len(judged.kinds)):
        kept = np.arange(len(judged.kinds)) != left_out
        value = metric.value_of(judged.probabilities[kept], judged.is_positive[kept], judged.weights[kept])
        z.append(log_odds(metric.guessing if value is None else value))
    variance, d_squared, d_fourth = 0.0, 0.0, 0.0
    for kind in ("random", "sampled"):
        own = [value for value, k in zip(z, judged.kinds, strict=True) if k == kind]
        d = [value - sum(own) / len(own) for value in own]
        variance += (len(own) - 1) / len(own) * sum(x**2 for x in d)
        d_squared, d_fourth = d_squared + sum(x**2 for x in d), d_fourth + sum(x**4 for x in d)
    half = student.ppf(0.975, max(1.0, d_squared**2 / d_fourth)) * math.sqrt(variance)
    value = metric.value(judged)
    low, high = (1 / (1 + math.exp(-log_odds(value) - h)) for h in (-half, half))
    return min(low, value), max(high, value)


@pytest.mark.parametrize("name", JUDGE_METRICS)
@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 6])
def test_the_interval_is_that_of_the_formula(name, seed):
    judged, metric = judgements_of(seed, noise=3.0), JUDGE_METRICS[name]
    low, high = judged_interval(judged, metric)
    assert (low, high) == pytest.approx(interval_by_definition(judged, metric), abs=1e-9)
    assert 0 <= low <= metric.value(judged) <= high <= 1


def test_without_the_only_positive_window_a_metric_counts_as_guessing():
    judged = judgements_of(3)
    only = np.arange(12) == 0
    judged = Judgements(judged.kinds, judged.weights, np.where(only, 0.9, 0.3), only)
    for name in ("auroc", "auprc", "balanced_accuracy", "f1"):
        metric = JUDGE_METRICS[name]
        expected = interval_by_definition(judged, metric)
        assert judged_interval(judged, metric) == pytest.approx(expected, abs=1e-9)
        assert expected[0] < 0.6 or name == "f1"
        assert expected[1] == 1


def test_why_there_is_no_interval():
    auroc = JUDGE_METRICS["auroc"]
    assert judged_interval(judgements_of(1, (1, 5)), auroc) == "1 random windows, 2 are needed"
    assert judged_interval(judgements_of(1, (5, 0)), auroc) == "0 sampled windows, 2 are needed"
    assert judged_interval(judgements_of(1, noise=0.0), auroc) == (
        "the value is the same without any of the windows"
    )
    judged = judgements_of(1)
    silent = Judgements(judged.kinds, judged.weights, judged.probabilities, np.zeros(12, bool))
    assert judged_interval(silent, auroc) == "the metric is undefined"


def test_metrics_are_those_of_the_whole_corpus():
    """Of many draws of records: the mean of each metric is near its value over all windows."""
    acts = population()
    noise = np.random.default_rng(1).normal(size=(N, 2))
    errors = {name: [] for name in JUDGE_METRICS}
    for seed in range(200):
        evidence = evidence_of(seed, acts)
        halves = np.array([half_of(seed, s) for s in range(N)])
        peaks = np.array([acts[s, first : first + 32].max() for s, first in enumerate(halves)])
        positive = peaks > 0.3 * evidence.peak
        probabilities = 1 / (1 + np.exp(1 - 8 * peaks / evidence.peak - noise[np.arange(N), halves // 32]))
        drawn = evidence.draw("report")
        segments = [d.record.segment for d in drawn]
        fires = [bool(firing_tokens(evidence, d.record).any()) for d in drawn]
        assert fires == positive[segments].tolist()
        kinds = ["sampled" if d.record.kind == "sampled" else "random" for d in drawn]
        weights = np.array([1 / d.probability for d in drawn])
        judged = Judgements(kinds, weights, probabilities[segments], np.array(fires))
        for name, metric in JUDGE_METRICS.items():
            value = metric.value(judged)
            if value is not None:
                errors[name].append(value - metric.value_of(probabilities, positive, np.ones(N)))
    assert all(len(of_metric) > 150 for of_metric in errors.values())
    means = {name: float(np.mean(of_metric)) for name, of_metric in errors.items()}
    assert {
        name: abs(mean) < (0.08 if name == "f1" else 0.03) for name, mean in means.items()
    } == dict.fromkeys(means, True), means
