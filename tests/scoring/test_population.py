"""The population score against brute force, whole populations and values worked out by hand."""

import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from neuroexplain.evidence import (
    Exemplar,
    PredictedRecord,
    Prediction,
    Provenance,
    Status,
    Unit,
    VocabularyEntry,
)
from neuroexplain.sampling import probability_of
from neuroexplain.scorers.base import compute_scores, trials_read
from neuroexplain.scorers.lexical import SCORER
from neuroexplain.scoring.population import (
    WeightedRecord,
    correlate_records,
    effective_records,
    jackknife_interval,
    join_tokens,
    share_of_variation,
    weighted_auprc,
    weighted_correlation,
)
from neuroexplain.scoring.population_scores import score_population
from neuroexplain.scoring.probability_faults import find_wrong_probabilities
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import UnitId

SPLITS = ("explain", "select", "report")
tokens_of = st.lists(
    st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(1, 4)), min_size=2, max_size=12
)


@given(tokens_of)
@settings(deadline=None)
def test_a_weight_counts_as_that_many_tokens(tokens):
    x, y, w = (np.array(column, float) for column in zip(*tokens, strict=True))
    repeated_x, repeated_y = np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int))
    r = weighted_correlation(x, y, w)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert r is None
    else:
        assert r == pytest.approx(np.corrcoef(repeated_x, repeated_y)[0, 1], abs=1e-9)
        assert weighted_correlation(3 * x - 2, y, 0.1 * w) == pytest.approx(r, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_values_of_any_scale_have_a_correlation(scale):
    x, y, w = np.array([1.0, 2, 3]), np.array([2.0, 1, 3]), np.ones(3)
    assert weighted_correlation(scale * x, y, w) == pytest.approx(0.5)
    assert weighted_correlation(x, scale * y, w) == pytest.approx(0.5)


def test_a_token_without_weight_does_not_count():
    x, y = np.array([1.0, 2, 3, 50]), np.array([2.0, 1, 3, -90])
    assert weighted_correlation(x, y, np.array([1.0, 1, 1, 0])) == pytest.approx(0.5)
    assert weighted_correlation(x, y, np.array([1.0, 0, 0, 0])) is None
    for bad in (np.array([1.0, 1, 1, -1]), np.array([1.0, 1, 1, np.nan]), np.ones(3)):
        with pytest.raises(ValueError, match="weight"):
            weighted_correlation(x, y, bad)


def records_of(seed, n=(4, 5), constant=False):
    generator = np.random.default_rng(seed)
    records = []
    for kind, count in zip(("random", "sampled"), n, strict=True):
        for _ in range(count):
            truth = generator.normal(size=6)
            predicted = np.zeros(6) if constant else truth + generator.normal(size=6)
            records.append(WeightedRecord(kind, float(generator.uniform(1, 9)), predicted, truth))
    return records


def interval_by_definition(records):
    """The interval by the formula of the design, with a whole correlation for each record left out."""
    z = []
    for left_out in range(len(records)):
        rest = [record for i, record in enumerate(records) if i != left_out]
        r = weighted_correlation(
            np.concatenate([x.predicted for x in rest]),
            np.concatenate([x.truth for x in rest]),
            np.concatenate([[x.weight] * len(x.truth) for x in rest]),
        )
        z.append(0.0 if r is None else math.atanh(r))
    variance, d_squared, d_fourth = 0.0, 0.0, 0.0
    for kind in ("random", "sampled"):
        own = [value for value, record in zip(z, records, strict=True) if record.kind == kind]
        d = [value - sum(own) / len(own) for value in own]
        variance += (len(own) - 1) / len(own) * sum(x**2 for x in d)
        d_squared, d_fourth = d_squared + sum(x**2 for x in d), d_fourth + sum(x**4 for x in d)
    half = student.ppf(0.975, max(1.0, d_squared**2 / d_fourth)) * math.sqrt(variance)
    middle = math.atanh(correlate_records(records))
    return math.tanh(middle - half), math.tanh(middle + half)


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_is_that_of_the_formula(seed):
    records = records_of(seed, (2 + seed % 3, 3 + seed))
    assert jackknife_interval(records) == pytest.approx(interval_by_definition(records), abs=1e-9)


def test_a_leave_one_out_that_is_undefined_counts_as_0():
    records = records_of(1, constant=True)
    only = replace(records[0], predicted=records[0].truth + np.arange(6))
    records = [only, *records[1:]]  # without the first, every prediction is 0
    assert jackknife_interval(records) == pytest.approx(interval_by_definition(records), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_does_not_depend_on_scales_and_offsets(seed):
    records = records_of(seed)
    expected = jackknife_interval(records)
    for scale, offset, weight in ((1e-6, 0.0, 1e-3), (1e-3, -5.0, 1e-4), (1e6, 5e6, 1e4), (1.0, 1e8, 1.0)):
        for name in ("predicted", "truth"):
            moved = [
                replace(r, **{name: scale * getattr(r, name) + offset, "weight": r.weight * weight})
                for r in records
            ]
            assert jackknife_interval(moved) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["predicted", "truth"])
@pytest.mark.parametrize("constant", [0.1, -0.3, 1 / 3])
def test_without_the_only_record_that_varies_the_correlation_counts_as_0(name, constant):
    """Also where sums of equal values leave a rest by rounding."""
    records = records_of(1)
    records = [records[0], *(replace(r, **{name: np.full(6, constant)}) for r in records[1:])]
    assert jackknife_interval(records) == pytest.approx(interval_by_definition(records), abs=1e-9)


def test_an_interval_is_of_numbers_where_one_record_dwarfs_the_others():
    """Without it, the sums of the others are lost in rounding."""
    records = records_of(2)
    for name in ("predicted", "truth"):
        for power in (6, 7, 8, 9, 10, 12, 15):
            large = replace(records[0], **{name: getattr(records[0], name) * 10.0**power})
            low, high = jackknife_interval([large, *records[1:]])
            assert -1 <= low <= high <= 1


@pytest.mark.parametrize("name", ["predicted", "truth"])
def test_an_interval_is_of_numbers_where_the_variation_of_all_records_but_one_is_lost(name):
    signs = np.array([1.0, -1, 1, -1, 1, -1])
    records = [replace(r, weight=1.0, **{name: 1e-30 * signs}) for r in records_of(4)]
    low, high = jackknife_interval([replace(records[0], **{name: signs}), *records[1:]])
    assert -1 <= low <= high <= 1


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_never_makes_a_leave_one_out_larger_than_1(sign):
    for seed in range(30):
        first, *others = records_of(seed)
        perfect = [replace(record, predicted=sign * 0.1 * record.truth) for record in others]
        interval = jackknife_interval([first, *perfect])
        if isinstance(interval, str):
            assert interval == "without one of the records the correlation is 1 or -1"
        else:
            assert -1 <= interval[0] <= interval[1] <= 1


def test_a_record_without_tokens_counts_as_a_record():
    records = records_of(3)
    empty = replace(records[0], predicted=np.zeros(0), truth=np.zeros(0))
    records = [empty, *records[1:]]
    assert jackknife_interval(records) == pytest.approx(interval_by_definition(records), abs=1e-9)
    assert [len(values) for values in join_tokens([])] == [0, 0, 0]


def test_there_is_no_interval_without_two_records_of_each_kind_and_at_1():
    assert jackknife_interval(records_of(1, (1, 5))) == "1 random records, 2 are needed"
    assert jackknife_interval(records_of(1, (5, 0))) == "0 sampled records, 2 are needed"
    perfect = [replace(record, predicted=record.truth) for record in records_of(2)]
    assert jackknife_interval(perfect) == "the correlation is 1 or -1"
    one_is_off = [replace(perfect[0], predicted=-perfect[0].truth), *perfect[1:]]
    assert jackknife_interval(one_is_off) == "without one of the records the correlation is 1 or -1"
    assert jackknife_interval(records_of(1, constant=True)) == "the correlation is undefined"
    alike = [replace(records_of(3)[0], kind=kind) for kind in ("random", "random", "sampled", "sampled")]
    assert jackknife_interval(alike) == "the correlation is the same without any of the records"


def test_effective_records_by_hand():
    records = records_of(0, (2, 2))
    weights = [replace(record, weight=w) for record, w in zip(records, (1.0, 1, 1, 1), strict=True)]
    assert effective_records(weights) == 4
    weights = [replace(record, weight=w) for record, w in zip(records, (8.0, 0, 0, 2), strict=True)]
    assert effective_records(weights) == pytest.approx(100 / 68)
    assert effective_records([]) == 0


def auprc_by_thresholds(predicted, positive, weights):
    """Average precision: each distinct prediction is a threshold."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(predicted.tolist()), reverse=True):
        chosen = predicted >= threshold
        hits = weights[chosen & positive].sum()
        recall = hits / weights[positive].sum()
        area += (recall - recall_before) * hits / weights[chosen].sum()
        recall_before = recall
    return area


@given(tokens_of)
@settings(deadline=None)
def test_auprc_is_that_of_all_thresholds(tokens):
    predicted, truth, weights = (np.array(column, float) for column in zip(*tokens, strict=True))
    positive = truth > 1
    value = weighted_auprc(predicted, positive, weights)
    if not positive.any():
        assert value is None
    else:
        assert value == pytest.approx(auprc_by_thresholds(predicted, positive, weights))


def test_guessing_earns_the_base_rate():
    positive = np.arange(10) < 3
    assert weighted_auprc(np.zeros(10), positive, np.ones(10)) == pytest.approx(0.3)
    assert weighted_auprc(np.zeros(10), positive, np.where(positive, 1.0, 7.0)) == pytest.approx(3 / 52)


def test_the_share_of_variation_by_hand():
    record = WeightedRecord(
        "random", 2.0, np.zeros(4), np.array([0.0, 0, 0, 4]), np.array([True] * 3 + [False])
    )
    assert share_of_variation([record]) == pytest.approx(3 / 12)  # mean 1: squares 1, 1, 1, 9
    assert share_of_variation([replace(record, kept=None)]) == 1
    assert share_of_variation([replace(record, truth=0.01 * record.truth)]) == pytest.approx(3 / 12)
    assert share_of_variation([replace(record, truth=np.ones(4))]) == 0
    assert share_of_variation([]) == 0


def test_probabilities_by_hand():
    ask = {"n_random": 4, "n_segments": 16}
    assert probability_of(0.0, 0.5, 10.0, 8.0, **ask) == 0.25
    inside = probability_of(4.0, 0.25, 10.0, 8.0, **ask)  # 4 / 0.25 = 16 is at least the last, 10
    assert inside == pytest.approx(1 - (1 - 4 / 8) * 0.75)
    outside = probability_of(4.0, 0.8, 10.0, 8.0, **ask)  # 5 is below it: given the last inside
    assert outside == pytest.approx(1 - (1 - 4 / 10) * 0.75)
    assert probability_of(40.0, 0.9, 10.0, 8.0, **ask) == 1
    assert probability_of(1e-9, 0.9, 0.0, 0.0, **ask) == 1  # every segment with a size is inside


# A population of segments, from which runs with many seeds draw.
N, N_RANDOM, N_SAMPLED = 120, 6, 9


def population(seed=5):
    """Activations [segment, 64], heavy-tailed, some silent."""
    generator = np.random.default_rng(seed)
    scale = generator.pareto(1.5, (N, 1)) * (generator.random((N, 1)) < 0.7)
    return (scale * generator.random((N, 64)) ** 4).astype(np.float32)


def half_of(seed, segment):
    return 32 * (stable_hash(seed, "half", segment) % 2)


def draw_by_hand(seed, acts):
    """(random segments, sampled segments by size / u descending, sizes, threshold), from the definition."""
    sizes = {}
    for segment in range(N):
        first = half_of(seed, segment)
        values = np.maximum(acts[segment, first : first + 32], np.float32(0)) ** 2
        while len(values) > 1:
            values = values[: len(values) // 2] + values[len(values) // 2 :]
        sizes[segment] = float(values[0])
    ratio = {s: sizes[s] / ((stable_hash(seed, "sampled", s) + 1) / 2**64) for s in sizes if sizes[s] > 0}
    order = sorted(ratio, key=lambda s: (-ratio[s], s))
    threshold = ratio[order[N_SAMPLED]] if len(order) > N_SAMPLED else 0.0
    random = sorted(range(N), key=lambda s: stable_hash(seed, "random", s))[:N_RANDOM]
    return random, order[:N_SAMPLED], sizes, threshold


def evidence_of(seed, acts, split="report", barred=(), token_ids=None):
    random, sampled, sizes, threshold = draw_by_hand(seed, acts)
    unit = UnitId(0, 0)

    def record(kind, rank, segment, size=None):
        ids = np.arange(64, dtype=np.uint32) + 100 * segment if token_ids is None else token_ids[segment]
        side = None if size is None else "positive"
        return Exemplar(
            unit, kind, rank, segment, 64, 0, 0, float(acts[segment].max()), ids, acts[segment],
            split=split, side=side, size=size,
        )  # fmt: skip

    records = [record("random", rank, segment) for rank, segment in enumerate(random)]
    records += [record("sampled", rank, s, sizes[s]) for rank, s in enumerate(sampled)]
    strongest = int(acts.max(axis=1).argmax())
    records.append(
        replace(
            record("top", 0, strongest), split="explain", token_ids=np.arange(64, dtype=np.uint32) + 10**6
        )
    )
    return SideEvidence(
        Unit(unit, Status.OK, None, tuple(records), (), (), {("positive", split): threshold}),
        seed=seed,
        split_rule="passages",
        barred_ids=frozenset(barred),
        n_random={"explain": 0, "select": 0, split: N_RANDOM},
        split_segments={"explain": 0, "select": 0, split: N},
        n_sampled=2 * N_SAMPLED,
    )


def test_totals_of_the_population_are_estimated_without_bias():
    acts = population()
    estimates, true_totals = [], []
    for seed in range(300):
        evidence = evidence_of(seed, acts)
        halves = np.stack([acts[s, half_of(seed, s) : half_of(seed, s) + 32] for s in range(N)])
        true_totals.append((N, halves.astype(float).sum()))
        drawn = evidence.draw("report")
        assert len({d.record.segment for d in drawn}) == len(drawn)  # one drawn twice counts once
        estimates.append(
            (
                sum(1 / d.probability for d in drawn),
                sum(halves[d.record.segment].astype(float).sum() / d.probability for d in drawn),
            )
        )
    ratios = np.array(estimates) / np.array(true_totals)
    errors = ratios.std(axis=0) / math.sqrt(len(ratios))
    assert (np.abs(ratios.mean(axis=0) - 1) < 3 * errors).all()
    assert errors[0] < 0.01 or errors[1] < 0.03  # so that a bias of a few percent would show


@pytest.mark.parametrize("n", [2, 4, 5])
def test_reading_fewer_records_is_drawing_fewer(n):
    acts = population()
    for seed in range(5):
        fewer = evidence_of(seed, acts).draw("report", n)
        random, sampled, sizes, _ = draw_by_hand(seed, acts)
        uniform = {s: (stable_hash(seed, "sampled", s) + 1) / 2**64 for s in range(N)}
        ratio = sorted((sizes[s] / uniform[s] for s in sampled), reverse=True)
        assert {d.record.segment for d in fewer} == {*random[:n], *sampled[:n]}
        for d in fewer:
            s, last, threshold = d.record.segment, ratio[n - 1], ratio[n]
            bound = threshold if s in sampled[:n] else last
            by_size = min(1.0, sizes[s] / bound)
            assert d.probability == pytest.approx(1 - (1 - by_size) * (1 - n / N), rel=1e-12)


def test_two_ways_to_compute_probabilities_agree_and_find_a_wrong_one():
    acts = population()
    for seed in range(6):
        evidence = evidence_of(seed, acts)
        for n in (1, 2, 5, N_SAMPLED, 30):
            assert list(find_wrong_probabilities(evidence, "report", n)) == []
    silent = evidence_of(1, np.zeros((N, 64), np.float32))
    assert list(find_wrong_probabilities(silent, "report", 5)) == []
    assert list(find_wrong_probabilities(silent, "select", 5)) == []  # of which no segment was visited
    with patch("neuroexplain.scoring.side_evidence.probability_of", return_value=0.5):
        assert "has the probability 0.5, not" in next(find_wrong_probabilities(evidence, "report", 5))
    drawn = evidence.draw("report", 5)
    for place in (0, len(drawn) - 1):
        off = [*drawn]
        off[place] = replace(off[place], probability=off[place].probability - 1e-6)
        record = off[place].record
        with patch.object(SideEvidence, "draw", return_value=off):
            (line,) = find_wrong_probabilities(evidence, "report", 5)
        assert line == (
            f"{record.kind} {record.rank} has the probability {off[place].probability}, "
            f"not {drawn[place].probability}"
        )
    with patch.object(SideEvidence, "draw", return_value=drawn[1:]):
        (line,) = find_wrong_probabilities(evidence, "report", 5)
    assert line == f"report: {len(drawn) - 1} records are drawn, not {len(drawn)}"
    with patch.object(SideEvidence, "draw", return_value=[]):
        assert "0 records are drawn" in next(find_wrong_probabilities(evidence, "report", 5))


def test_the_two_ways_agree_where_the_sample_holds_all_that_fires_and_on_units_of_two_sides():
    acts = population()
    acts[np.argsort(acts.max(axis=1))[:-5]] = 0.0
    for seed in range(3):
        few = evidence_of(seed, acts)
        assert [x.kind for x in few.unit.exemplars].count("sampled") <= 5
        evidence = evidence_of(seed, population())
        negative = [
            replace(x, rank=x.rank + 50, side="negative", segment=x.segment + N)
            for x in evidence.unit.exemplars
            if x.kind == "sampled"
        ]
        unit = replace(evidence.unit, exemplars=(*evidence.unit.exemplars, *negative))
        for n in (1, 3, N_SAMPLED, 30):
            assert list(find_wrong_probabilities(few, "report", n)) == []
            assert list(find_wrong_probabilities(replace(evidence, unit=unit), "report", n)) == []


def test_a_silent_unit_is_known_by_its_random_records():
    evidence = evidence_of(1, np.zeros((N, 64), np.float32))
    drawn = evidence.draw("report")
    assert [d.record.kind for d in drawn] == ["random"] * N_RANDOM
    assert {d.probability for d in drawn} == {N_RANDOM / N}


def predict(evidence, table, text="words", n_read=N_SAMPLED, with_bills=False):
    records = tuple(
        PredictedRecord(t.kind, t.rank, t.first, table(np.array(t.token_ids)).astype(np.float32))
        for t in trials_read(SCORER, evidence, n_read, with_bills)
    )
    provenance = Provenance("none", None, "table", None, None)
    return Prediction(
        1, evidence.unit.id, "lexical", Status.OK, records, provenance, text=text, n_read=n_read,
        with_bills=with_bills,
    )  # fmt: skip


def main_score(scores):
    return next(s for s in scores if (s.split, s.subset, s.metric) == ("report", "population", "correlation"))


def test_the_score_weighs_each_record_by_its_draw():
    acts = population()
    evidence = evidence_of(3, acts)
    score = main_score(compute_scores(evidence, predict(evidence, np.sin)))
    x, y, w = [], [], []
    for d in evidence.draw("report"):
        first = half_of(3, d.record.segment)
        x += np.sin(d.record.token_ids[first : first + 32]).astype(np.float32).astype(float).tolist()
        y += acts[d.record.segment, first : first + 32].astype(float).tolist()
        w += [1 / d.probability] * 32
    x, y, w = (np.array(values) for values in (x, y, w))
    x, y = x - np.average(x, weights=w), y - np.average(y, weights=w)
    assert score.value == pytest.approx((w * x * y).sum() / math.sqrt((w * x * x).sum() * (w * y * y).sum()))
    assert score.n_records == len(evidence.draw("report"))
    assert score.n_tokens == 32 * score.n_records
    assert score.ci_low < score.value < score.ci_high


def test_barred_tokens_are_neither_scored_nor_counted_in_sizes():
    acts = population()
    token_ids = np.tile(np.arange(64, dtype=np.uint32), (N, 1)) + np.arange(N, dtype=np.uint32)[:, None] * 64
    token_ids[:, [5, 40]] = 9999
    plain, barred = (evidence_of(3, acts, barred=ids, token_ids=token_ids) for ids in ((), (9999,)))
    prediction = predict(barred, np.sin)
    score = main_score(compute_scores(barred, prediction))
    assert score.n_tokens == 31 * score.n_records
    # What is predicted at the barred tokens changes nothing.
    kept = [replace(r, values=r.values.copy()) for r in prediction.records]
    for record in kept:
        record.values[[5, 8][record.first // 32]] = 1000.0
    assert main_score(compute_scores(barred, replace(prediction, records=tuple(kept)))) == score
    for record in (x for x in plain.unit.exemplars if x.kind == "random"):
        first = half_of(3, record.segment)
        lost = float(acts[record.segment, [5, 40][first // 32]]) ** 2
        difference = plain.size_of(record) - barred.size_of(record)
        assert difference == pytest.approx(lost, rel=1e-4, abs=1e-6)


def test_records_that_share_text_with_explain_are_not_scored_and_the_others_keep_their_weights():
    evidence = evidence_of(3, population())
    drawn = evidence.draw("report")
    leaking = next(x for x in evidence.unit.exemplars if x.key == drawn[0].record.key)
    seen = replace(leaking, kind="top", rank=1, split="explain", segment=N + 5)
    unit = replace(evidence.unit, exemplars=(*evidence.unit.exemplars, seen))
    with_leak = replace(evidence, unit=unit)
    assert leaking.key in with_leak.leaking
    assert evidence.leaking == frozenset()
    assert [d.probability for d in with_leak.draw("report")] == [d.probability for d in drawn]
    trials = {trial.key for trial in trials_read(SCORER, with_leak, N_SAMPLED, False)}
    assert trials == {d.record.key for d in drawn} - with_leak.leaking
    assert main_score(compute_scores(with_leak, predict(with_leak, np.sin))).n_records == len(trials)
    predicted_before = predict(evidence, np.sin)  # as if the leak had not been known
    assert main_score(compute_scores(with_leak, predicted_before)).n_records == len(trials)
    other = replace(
        seen, token_ids=seen.token_ids + np.where(np.arange(64) % 15 == 0, 10**7, 0).astype(np.uint32)
    )
    unit = replace(evidence.unit, exemplars=(*evidence.unit.exemplars, other))  # 14 equal ones in a row
    assert replace(evidence, unit=unit).leaking == frozenset()


def test_an_undefined_score_has_its_reason():
    acts = population()
    evidence = evidence_of(3, acts)
    constant = main_score(compute_scores(evidence, predict(evidence, np.zeros_like)))
    assert (constant.status, constant.value) == (Status.CONSTANT_SIMULATION, None)
    silent = evidence_of(3, np.zeros_like(acts))
    assert main_score(compute_scores(silent, predict(silent, np.sin))).status == Status.CONSTANT_ACTIVATIONS
    few = main_score(compute_scores(evidence, predict(evidence, np.sin, n_read=1)))
    assert (few.status, few.value) == (Status.FEW_RECORDS, None)
    assert few.effective_records < 3
    assert "fewer than 3" in few.reason
    nothing = replace(evidence, unit=replace(evidence.unit, exemplars=evidence.unit.exemplars[-1:]))
    assert main_score(compute_scores(nothing, predict(nothing, np.sin))).status == Status.NO_RECORDS


def test_beyond_the_words_leaves_out_the_tokens_of_named_words():
    acts = population()
    words = {i: f" w{i}" for i in range(100 * N + 64)}
    tokens = {i: VocabularyEntry(i, text, False, text.encode()) for i, text in words.items()}
    tokens |= {i + 10**6: VocabularyEntry(i + 10**6, " x", False, b" x") for i in range(64)}
    evidence = replace(evidence_of(3, acts), tokens=tokens)
    drawn = evidence.draw("report")
    named = [100 * d.record.segment + half_of(3, d.record.segment) + k for d in drawn for k in (3, 17)]
    text = "words like " + ", ".join(f"w{i}" for i in named)

    def beyond(scores):
        return next(s for s in scores if (s.split, s.metric) == ("report", "correlation_beyond_words"))

    score = beyond(compute_scores(evidence, predict(evidence, np.sin, text)))
    assert score.n_tokens == 30 * len(drawn)
    silenced = predict(evidence, lambda ids: np.where(np.isin(ids, named), 77.0, np.sin(ids)), text)
    assert beyond(compute_scores(evidence, silenced)).value == score.value
    whole = compute_scores(evidence, predict(evidence, np.sin, "nothing of it"))
    assert beyond(whole).value == main_score(whole).value
    everything = ", ".join(words.values())
    undefined = beyond(compute_scores(evidence, predict(evidence, np.sin, everything)))
    assert (undefined.status, undefined.value) == (Status.LITTLE_VARIATION, None)


def test_auprc_takes_truth_above_a_share_of_the_strongest_peak():
    acts = population()
    evidence = evidence_of(3, acts)
    prediction = predict(evidence, np.sin)
    with_control = replace(
        prediction,
        records=tuple(replace(r, control=-r.values) for r in prediction.records),
        control_explanation_id=7,
        control_text="",
    )
    x, y, w = [], [], []
    for d in evidence.draw("report"):
        half = slice(half_of(3, d.record.segment), half_of(3, d.record.segment) + 32)
        x += np.sin(d.record.token_ids[half]).astype(np.float32).tolist()
        y += acts[d.record.segment, half].tolist()
        w += [1 / d.probability] * 32
    positive = np.array(y) > 0.3 * acts.max()
    assert positive.any()
    score = next(s for s in compute_scores(evidence, with_control) if s.metric == "auprc")
    assert score.value == pytest.approx(auprc_by_thresholds(np.array(x), positive, np.array(w)))
    assert score.control == pytest.approx(auprc_by_thresholds(-np.array(x), positive, np.array(w)))
    assert (score.split, score.control_explanation_id, score.ci_low) == ("report", 7, None)
    alone = next(s for s in compute_scores(evidence, prediction) if s.metric == "auprc")
    assert (alone.value, alone.control, alone.control_explanation_id) == (score.value, None, None)
    constant = compute_scores(evidence, predict(evidence, np.zeros_like))
    base_rate = np.average(positive, weights=np.array(w))
    assert next(s.value for s in constant if s.metric == "auprc") == pytest.approx(base_rate)
    silent = evidence_of(3, np.zeros_like(acts))
    assert not any(s.metric == "auprc" for s in compute_scores(silent, predict(silent, np.sin)))


def test_the_control_of_the_headline_is_of_the_same_records():
    evidence = evidence_of(3, population())
    prediction = predict(evidence, np.sin)
    records = tuple(replace(r, control=np.cos(r.values)) for r in prediction.records)
    with_control = replace(prediction, records=records, control_explanation_id=7, control_text="")
    as_own = replace(prediction, records=tuple(replace(r, values=np.cos(r.values)) for r in records))
    score, own = (main_score(compute_scores(evidence, p)) for p in (with_control, as_own))
    assert score.control == own.value
    assert score.value == main_score(compute_scores(evidence, prediction)).value
    constant = replace(
        with_control, records=tuple(replace(r, control=np.zeros_like(r.values)) for r in records)
    )
    score = main_score(compute_scores(evidence, constant))
    assert (score.control, score.control_reason) == (None, "the other explanation's predictions are constant")


def test_without_a_control_its_own_reason_is_given():
    evidence = evidence_of(3, population())
    reason = "no other unit is explained"
    scores = score_population(evidence, predict(evidence, np.sin), "report", reason)
    assert {score.metric for score in scores} == {"correlation", "correlation_beyond_words", "auprc"}
    for score in scores:
        assert (score.status, score.control, score.control_reason) == (Status.OK, None, reason)


def test_a_control_whose_words_leave_too_little_has_this_reason():
    evidence = evidence_of(3, population())
    tokens = {i: VocabularyEntry(i, f" w{i}", False, b"") for i in range(100 * N + 64)}
    tokens |= {i + 10**6: VocabularyEntry(i + 10**6, " x", False, b" x") for i in range(64)}
    evidence = replace(evidence, tokens=tokens)
    prediction = predict(evidence, np.sin)
    records = tuple(replace(r, control=np.cos(r.values)) for r in prediction.records)
    everything = " ".join(f"w{i}" for i in range(100 * N + 64))
    for text in ("nothing", everything):
        controlled = replace(prediction, records=records, control_explanation_id=7, control_text=text)
        scores = {score.metric: score for score in score_population(evidence, controlled, "report", None)}
        beyond, plain = scores["correlation_beyond_words"], scores["correlation"]
        assert (plain.control_reason, plain.control_explanation_id) == (None, 7)
        if text == "nothing":
            assert (beyond.control, beyond.control_reason) == (plain.control, None)
        else:
            assert (beyond.status, beyond.control, beyond.control_explanation_id) == (Status.OK, None, 7)
            reason = "the other explanation's words leave too little variation of the activations"
            assert beyond.control_reason == reason


def test_a_fifth_of_the_variation_is_enough_for_a_score_beyond_the_words():
    """The strongest tokens are named one after the other, until less than a fifth of it is left."""
    acts = population()
    evidence = evidence_of(3, acts)
    strengths, total = {}, 0.0
    drawn = evidence.draw("report")
    halves = {d.record.segment: half_of(3, d.record.segment) for d in drawn}
    values = {d.record.segment: acts[d.record.segment, first : first + 32].astype(float)
              for d, first in zip(drawn, halves.values(), strict=True)}  # fmt: skip
    weights = {d.record.segment: 1 / d.probability for d in drawn}
    mean = sum(weights[s] * values[s].sum() for s in values) / (32 * sum(weights.values()))
    for s, own in values.items():
        for place, value in enumerate(own):
            strengths[100 * s + halves[s] + place] = weights[s] * (value - mean) ** 2
    total = sum(strengths.values())
    tokens = {i: VocabularyEntry(i, f" w{i}", False, b"") for i in range(100 * N + 64)}
    tokens |= {i + 10**6: VocabularyEntry(i + 10**6, " x", False, b" x") for i in range(64)}
    evidence = replace(evidence, tokens=tokens)
    named, left = [], total
    for token_id in sorted(strengths, key=lambda token_id: -strengths[token_id]):
        before, left = left, left - strengths[token_id]
        named.append(f"w{token_id}")
        if left < 0.2 * total:
            break
    assert before >= 0.2 * total > left
    for words, status in ((named[:-1], Status.OK), (named, Status.LITTLE_VARIATION)):
        scores = compute_scores(evidence, predict(evidence, np.sin, " ".join(words) or "nothing"))
        beyond = next(s for s in scores if s.metric == "correlation_beyond_words")
        assert beyond.status == status, (len(words), before / total, left / total)
