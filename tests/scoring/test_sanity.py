"""The headline falls where a concept is made narrower or wider, as much as over the whole corpus.

The checks are those of Oikarinen et al. (2025): half of the concept dropped, as many wrong tokens added, five
times too broad. Bills' score, which is no headline, hardly falls where a concept is too broad.
"""

from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.scorers.base import compute_scores
from neuroexplain.scoring.population import weighted_correlation
from tests.scoring.test_population import evidence_of, half_of, main_score, predict

N, WORDS, CONCEPT = 120, 400, 24  # segments, words of the vocabulary, words of the concept
SEEDS = range(60)


def corpus():
    """Token ids [segment, 64] and activations: high on the words of the concept, small noise elsewhere."""
    generator = np.random.default_rng(11)
    ids = generator.integers(0, WORDS, (N, 64)).astype(np.uint32)
    strength = np.where(ids < CONCEPT, generator.gamma(4, 0.25, ids.shape), 0.0)
    return ids, (strength + 0.1 * generator.random(ids.shape)).astype(np.float32)


def explanation(first, last):
    """Predicts 1 for the words first..last."""
    return lambda ids: ((ids >= first) & (ids < last)).astype(np.float32)


WORSE = {
    "half dropped": explanation(0, CONCEPT // 2),
    "as many wrong": explanation(0, 2 * CONCEPT),
    "five times too broad": explanation(0, 5 * CONCEPT),
}


def scores_of(table):
    """The estimates of many draws, and the true values of the same halves."""
    ids, acts = corpus()
    estimates, truths = [], []
    for seed in SEEDS:
        evidence = evidence_of(seed, acts, token_ids=ids)
        top = evidence.unit.exemplars[-1]
        evidence = replace(
            evidence,
            unit=replace(evidence.unit, exemplars=(*evidence.unit.exemplars[:-1], replace(top, split=None))),
        )
        estimates.append(main_score(compute_scores(evidence, predict(evidence, table, n_read=6))).value)
        halves = [slice(half_of(seed, s), half_of(seed, s) + 32) for s in range(N)]
        x = np.concatenate([table(ids[s, half]) for s, half in enumerate(halves)]).astype(float)
        y = np.concatenate([acts[s, half] for s, half in enumerate(halves)]).astype(float)
        truths.append(weighted_correlation(x, y, np.ones(len(x))))
    return np.array(estimates), np.array(truths)


@pytest.fixture(scope="module")
def of_concept():
    return scores_of(explanation(0, CONCEPT))


def test_the_estimates_are_those_of_the_whole_corpus(of_concept):
    estimates, truths = of_concept
    errors = estimates - truths
    assert abs(errors.mean()) < 3 * errors.std() / len(errors) ** 0.5 + 0.01
    assert errors.std() < 0.05


@pytest.mark.parametrize("check", WORSE)
def test_the_headline_falls_by_as_much_as_over_the_whole_corpus(check, of_concept):
    estimates, truths = scores_of(WORSE[check])
    losses = of_concept[0] - estimates
    assert (losses > 0).mean() >= 0.95
    true_loss = (of_concept[1] - truths).mean()
    assert true_loss > 0.2
    assert 2 / 3 * true_loss < losses.mean() < 4 / 3 * true_loss
