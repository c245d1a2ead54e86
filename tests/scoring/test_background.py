"""What is drawn of a background, with which probability, and the rule of three."""

import zlib
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from neuroexplain.evidence import Prediction, Provenance, Status
from neuroexplain.scoring.population import WeightedRecord, correlate_records, lower_with_three
from neuroexplain.scoring.probability_faults import find_wrong_probabilities
from neuroexplain.scoring.side_evidence import BackgroundDraw
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.packing import pack_background, unpack_background
from neuroexplain.units import UnitId
from tests.scoring.test_population import N_RANDOM, N, evidence_of, half_of, population

N_BACKGROUND = 40


def with_background(seed, acts):
    """The evidence of tests/scoring/test_population.py with the next random segments as background."""
    evidence = evidence_of(seed, acts)
    order = sorted(range(N), key=lambda s: stable_hash(seed, "random", s))
    random = next(x for x in evidence.unit.exemplars if x.kind == "random")
    background = tuple(
        replace(
            random,
            kind="background",
            rank=rank,
            segment=segment,
            token_ids=np.arange(64, dtype=np.uint32) + 100 * segment,
            activations=acts[segment],
        )
        for rank, segment in enumerate(order[: N_RANDOM + N_BACKGROUND])
    )[N_RANDOM:]
    return replace(evidence, unit=replace(evidence.unit, background=background))


def guesses_of(evidence, seed):
    """Guesses by segment that know a little of the activations, many of them 0."""
    draw = np.random.default_rng(seed)
    chance, is_marked = draw.random(N), draw.random(N) < 0.4
    return tuple(
        (float(x.activations.max()) + 0.1) * float(chance[x.segment] * is_marked[x.segment])
        for x in evidence.guessed_records()
    )


def sparse_population():
    acts = population()
    acts[np.random.default_rng(2).random(N) < 0.8] = 0.0
    return acts


@pytest.mark.parametrize("n", [None, 12])
def test_totals_are_estimated_without_bias(n):
    """Of segments, and of activations: the same guesses for a segment, whatever the seed of the draws."""
    acts = sparse_population()
    guess = np.random.default_rng(5).random(N) * (np.random.default_rng(6).random(N) < 0.3)
    counts, totals, truths = [], [], []
    for seed in range(400):
        evidence = with_background(seed, acts)
        guesses = None if n is None else tuple(guess[x.segment] for x in evidence.guessed_records())
        drawn = evidence.draw("report", None, BackgroundDraw(n or N_RANDOM + N_BACKGROUND, guesses))
        assert len({d.record.segment for d in drawn}) == len(drawn)
        halves = np.stack([acts[s, half_of(seed, s) : half_of(seed, s) + 32] for s in range(N)])
        truths.append(halves.astype(float).sum())
        counts.append(sum(1 / d.probability for d in drawn))
        totals.append(sum(halves[d.record.segment].astype(float).sum() / d.probability for d in drawn))
    errors = np.array(totals) - np.array(truths)
    assert np.mean(counts) == pytest.approx(N, rel=0.03)
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(len(errors)) + 1e-9


@pytest.mark.parametrize("m", [1, 5, 20, N_RANDOM + N_BACKGROUND])
def test_two_ways_to_compute_probabilities_agree_and_find_a_wrong_one(m):
    acts = sparse_population()
    for seed in range(3):
        evidence = with_background(seed, acts)
        for guesses in (None, guesses_of(evidence, seed), (0.0,) * len(evidence.guessed_records())):
            prediction = Prediction(
                *(0, UnitId(0, 0), "lexical", Status.OK, (), Provenance("none", None, "", None, None)),
                n_background=m,
                guesses=guesses,
            )
            for n in (1, 5, 30):
                assert list(find_wrong_probabilities(evidence, "report", n, prediction)) == []
            with patch(
                "neuroexplain.scoring.side_evidence.background_uniform_of",
                side_effect=lambda seed, segment: (stable_hash(seed, "other", segment) + 1) / 2**64,
            ):
                is_drawn = guesses is not None and m < N_RANDOM + N_BACKGROUND
                assert bool(list(find_wrong_probabilities(evidence, "report", 5, prediction))) == is_drawn


def record(kind, weight, predicted, truth):
    return WeightedRecord(kind, weight, np.array(predicted, float), np.array(truth, float))


def test_the_lower_end_is_at_most_the_score_with_three_more_records():
    fired = record("sampled", 1.0, [0, 1, 0], [0, 2, 0])
    silent = record("random", 10.0, [0, 0, 0], [0, 0, 0])
    records = [fired, silent, silent]
    w = np.repeat([1.0, 10.0, 10.0, 10.0, 10.0, 10.0], 3)
    p, t = np.array([0, 1, 0] + [0] * 6 + [0, 1, 0] * 3), np.array([0, 2, 0] + [0] * 15)
    p, t = p - np.average(p, weights=w), t - np.average(t, weights=w)
    expected = (w * p * t).sum() / np.sqrt((w * p * p).sum() * (w * t * t).sum())
    assert correlate_records(records) == pytest.approx(1.0)
    assert lower_with_three(0.9, records, [fired]) == pytest.approx(expected)
    assert lower_with_three(-0.5, records, [fired]) == -0.5
    assert lower_with_three(0.9, records, []) == 0.9
    assert lower_with_three(0.9, [fired], [fired]) == 0.9  # without a random record nothing is known


def test_what_is_predicted_of_a_background_is_packed_and_a_damaged_blob_is_refused():
    ranks, firsts, values = np.array([16, 17, 40, 1039]), np.array([0, 32, 32, 0]), bytes(range(200))
    packed = pack_background(ranks, firsts, values)
    assert unpack_background(packed) == (ranks.tolist(), firsts.tolist(), values)
    for damaged in (b"", packed[:-1], b"x" + packed, zlib.compress(b"\xff"), zlib.compress(b"\xff\0\0\0\1")):
        with pytest.raises(ValueError, match="its background"):
            unpack_background(damaged)
    with (
        pytest.raises(ValueError, match="its background"),
        patch("neuroexplain.store.packing.MOST_PACKED", 99),
    ):
        unpack_background(packed)
