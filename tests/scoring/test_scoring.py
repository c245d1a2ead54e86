"""Levels, splits, crops and scores against the recorded reference, brute force and properties."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroexplain.evidence import Exemplar, Status, Unit
from neuroexplain.sampling import scored_first
from neuroexplain.scoring.correlation import (
    ScoredRecord,
    absolute_deviation_explained,
    correlation_score,
    fit_line,
    jackknife_interval,
    r_squared,
    score_records,
)
from neuroexplain.scoring.levels import expected_level, raised_level, to_levels
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.scoring.splits import (
    assign_splits,
    crop_first,
    find_leaks,
    find_shared,
    halve_select,
    split_by_rank,
)
from neuroexplain.units import UnitId

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "bills_golden.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["normalize"])
def test_levels_equal_the_reference(case):
    records = [np.array(record, np.float32) for record in case["records"]]
    maximum = max(float(record.max()) for record in records)
    assert maximum == np.float32(case["max_activation"])
    assert [to_levels(record, maximum).tolist() for record in records] == case["normalized"]


@pytest.mark.parametrize("case", GOLDEN["expected_value"])
def test_expected_values_equal_the_reference(case):
    mass = {
        level: np.exp(case["logprobs"][str(level)]) for level in range(11) if str(level) in case["logprobs"]
    }
    probabilities = np.array([[mass.get(level, 0.0) for level in range(11)]])
    levels, _ = expected_level(probabilities)
    assert levels[0] == pytest.approx(case["expected_value"], abs=1e-9)


@pytest.mark.parametrize("case", GOLDEN["score"])
def test_scores_equal_the_reference(case):
    expected = np.concatenate([s["expected"] for s in case["sequences"]])
    true = np.concatenate([s["true"] for s in case["sequences"]])
    assert correlation_score(expected, true) == pytest.approx(case["correlation"], abs=1e-9)
    assert r_squared(expected, true) == pytest.approx(case["r_squared"], abs=1e-9)
    assert absolute_deviation_explained(expected, true) == pytest.approx(
        case["absolute_deviation_explained"], abs=1e-9
    )


def test_levels_are_floors_and_the_peak_is_ten():
    assert to_levels([0.0, -3.0, 0.89, 0.95, 1.0], 1.0).tolist() == [0, 0, 8, 9, 10]
    assert to_levels([1.0, 2.0], 0.0).tolist() == [0, 0]


def test_a_constant_side_has_no_score():
    assert correlation_score([0, 0, 0], [0.0, 1.5, 0.2]) is None
    assert correlation_score([0, 1, 0], [7.0, 7.0, 7.0]) is None
    with pytest.raises(ValueError, match="finite"):
        correlation_score([0, np.nan], [1, 2])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_values_of_any_scale_have_a_correlation(scale):
    assert correlation_score([scale, 2 * scale, 3 * scale], [2, 1, 3]) == pytest.approx(0.5)
    assert correlation_score([1, 2, 3], [2 * scale, scale, 3 * scale]) == pytest.approx(0.5)


def record(kind, simulated, recorded):
    return ScoredRecord(kind, np.array(simulated, np.float64), np.array(recorded, np.float64))


def test_the_jackknife_by_hand():
    """Three records a kind, z_i computed one by one."""
    from scipy.stats import pearsonr, t

    rng = np.random.default_rng(0)
    records = [
        record(kind, s := rng.normal(size=8), s + rng.normal(size=8)) for kind in ["top"] * 4 + ["random"] * 3
    ]

    def z(kept):
        return np.arctanh(
            pearsonr(
                np.concatenate([x.simulated for x in kept]), np.concatenate([x.recorded for x in kept])
            ).statistic
        )

    variance = 0.0
    for members in (range(4), range(4, 7)):
        left = np.array([z([x for j, x in enumerate(records) if j != i]) for i in members])
        variance += (len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum()
    half = t.ppf(0.975, 2) * np.sqrt(variance)
    assert jackknife_interval(records, ("top", "random")) == pytest.approx(
        (np.tanh(z(records) - half), np.tanh(z(records) + half))
    )


def test_what_is_undefined_has_a_status_and_a_reason():
    flat = [record("top", [1, 1], [0.0, 2.0]), record("random", [1, 1], [0.0, 1.0])]
    headline, top, _ = score_records("report", flat, [])
    assert (headline.status, headline.value) == ("constant_simulation", None)
    alone, _, random = score_records("report", [record("top", [1, 2], [0.0, 2.0])], [])
    assert (alone.status, random.status) == ("no_records", "no_records")
    assert top.n_records == 1


def exemplars_strategy():
    places = st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([0, 1, 2, 48, 50]), st.integers(0, 3)), max_size=32
    )  # (segment, shift of the shared tokens, document)
    return st.tuples(places, places)


def build(tops, randoms):
    exemplars = []
    for kind, places in (("top", tops), ("random", randoms)):
        for rank, (segment, shared, document) in enumerate(places):
            ids = np.arange(64, dtype=np.uint32) + 1000 * (1 + len(exemplars))
            n_shared = min(16, 64 - shared)  # 14 at the end of a record, from 50 on
            ids[shared : shared + 16] = np.arange(n_shared)
            exemplars.append(
                Exemplar(
                    UnitId(0, 0), kind, rank, segment, 0, document, 0, 1.0, ids, np.zeros(64, np.float32)
                )
            )
    return exemplars


def leaks(a, b):
    runs = {tuple(a.token_ids[i : i + 16].tolist()) for i in range(49)}
    return a.segment == b.segment or any(tuple(b.token_ids[i : i + 16].tolist()) in runs for i in range(49))


@settings(max_examples=60, deadline=None)
@given(exemplars_strategy())
def test_no_split_leaks_into_another_and_nothing_is_dropped_without_need(places):
    exemplars = build(*places)
    splits = assign_splits(exemplars)
    by = {
        name: [x for x in exemplars if splits[x.kind, x.rank] == name]
        for name in ("explain", "select", "report")
    }
    assert not any(leaks(a, b) for a in by["explain"] for b in by["select"] + by["report"])
    assert not any(leaks(a, b) for a in by["select"] for b in by["report"])
    explained = [x for x in exemplars if x.rank % 4 < 2]
    assert by["explain"] == explained
    documents = {x.document for x in explained}
    for x in exemplars:
        if splits[x.kind, x.rank] is None:
            clean = not any(leaks(a, x) for a in explained)
            own: str = "select" if x.rank % 4 == 2 else "report"
            if clean and (own == "select" or not any(leaks(a, x) for a in exemplars if a.rank % 4 == 2)):
                assert x.document in documents
                assert sum(y.kind == x.kind for y in by[own]) >= 5


@settings(max_examples=60, deadline=None)
@given(exemplars_strategy())
def test_select_is_halved_by_rank_and_the_second_half_shares_nothing_with_the_first(places):
    exemplars = build(*places)
    splits = assign_splits(exemplars)
    select = [x for x in exemplars if splits[x.key] == "select" and x.kind == "top"]
    first = [x for x in select if x.rank % 8 == 2]
    second = [x for x in select if x.rank % 8 == 6 and not any(leaks(a, x) for a in first)]
    halves = halve_select(exemplars, splits, ("top",))
    assert halves == ({x.key for x in first}, {x.key for x in second})


@settings(max_examples=60, deadline=None)
@given(exemplars_strategy())
def test_leaks_are_found_where_brute_force_finds_them(places):
    exemplars = build(*places)
    splits = assign_splits(exemplars)
    later = {key for key, split in splits.items() if split in ("select", "report")}
    assert find_leaks(exemplars, later) == []
    own = {x.key for x in exemplars if splits[x.key] == "explain"}
    assert len(find_leaks(exemplars, own)) == len(own)
    dropped = {x.key for x in exemplars if splits[x.key] is None}
    assert len(find_leaks(exemplars, dropped)) == len(dropped)

    by_rank = {x.key: split_by_rank(x.rank) for x in exemplars}  # as if nothing had been dropped
    order = ("explain", "select", "report")
    later = {key for key, split in by_rank.items() if split != "explain"}
    pairs = [
        (x, y)
        for x in exemplars
        for y in exemplars
        if order.index(by_rank[y.key]) < order.index(by_rank[x.key]) and leaks(y, x)
    ]
    with patch("neuroexplain.scoring.splits.assign_splits", return_value=by_rank):
        assert len(find_leaks(exemplars, later)) == len(pairs)


@settings(max_examples=60, deadline=None)
@given(exemplars_strategy())
def test_in_runs_that_split_by_passage_what_shares_text_with_explain_is_found(places):
    """Two records of one segment have one split there, unless something is wrong: only verify looks."""
    exemplars = [replace(x, split=split_by_rank(x.rank)) for x in build(*places)]
    splits = {x.key: x.split for x in exemplars}
    explain = [x for x in exemplars if x.split == "explain"]
    later = [x for x in exemplars if x.split in ("select", "report")]
    shared = {x.key for x in later if any(leaks(replace(y, segment=-1), x) for y in explain)}
    assert find_shared(exemplars, splits) == shared
    pairs = [(x, y) for x in later for y in explain if leaks(x, y)]
    assert len(find_leaks(exemplars, {x.key for x in later}, "passages")) == len(pairs)


def test_segments_that_overlap_leak():
    """With a stride of 1, segments share tokens if fewer than 128 numbers apart."""
    ids = np.arange(64, dtype=np.uint32)
    seen, near, far = (
        Exemplar(UnitId(0, 0), "random", rank, segment, 64, None, 0, 1.0, ids + 100 * rank, ids, 1, split)
        for rank, (segment, split) in enumerate([(1000, "explain"), (873, "report"), (1128, "report")])
    )
    leak = "random 1 and random 0, which was seen, are of segment 873"
    assert find_leaks([seen, near, far], {near.key, far.key}, "passages") == [leak]


def test_levels_are_raised_by_odds_beyond_noise():
    odds = 3.0  # expected 0.6 (odds 1.5) over neutral 1/3 (odds 0.5), but for LEAST_SHARE
    raised = np.log(odds)
    levels = raised_level(np.array([0.6, 1 / 3, 0.2, np.nan]), np.array([1 / 3, 1 / 3, 0.6, 0.5]))
    np.testing.assert_allclose(levels[:3], [raised**2 / (raised + 0.2), 0, 0], rtol=0.01)
    assert np.isnan(levels[3])


def test_crops_hide_the_peak():
    firsts = [crop_first(0, UnitId(3, n), "top", n % 32) for n in range(2000)]
    assert (min(firsts), max(firsts)) == (1, 32)
    assert np.bincount(firsts, minlength=33)[1:].min() > 30


@pytest.mark.parametrize("rule", ["ranks", "passages"])
def test_records_of_fixed_tokens_have_a_scored_half_and_others_a_crop_that_hides_the_peak(rule):
    unit = Unit(
        UnitId(0, 0), Status.OK, None, tuple(build([(0, 0, 0)] * 8, [(n, 0, 0) for n in range(8)])), (), ()
    )
    evidence = SideEvidence(unit, seed=3, split_rule=rule)
    for record in unit.exemplars:
        if rule == "passages" and record.kind == "random":
            assert evidence.first_of(record) == scored_first(3, record.segment)
        else:
            assert evidence.first_of(record) == crop_first(3, unit.id, record.kind, record.rank)


def test_records_without_any_prediction_have_no_score_and_say_why():
    nothing = ScoredRecord("top", np.full(32, np.nan), np.arange(32.0), None, np.ones(32))
    assert {score.status for score in score_records("report", [nothing], ())} == {
        "low_digit_mass",
        "no_records",
    }


def test_rounding_never_makes_a_correlation_larger_than_one():
    rng = np.random.default_rng(0)
    lines = [rng.normal(size=n) for n in rng.integers(3, 40, size=500)]
    assert any(_raw_correlation(x, 3 * x + 1) > 1 for x in lines)  # so the bound is needed
    assert all(0.999 < correlation_score(x, 3 * x + 1) <= 1 for x in lines)
    assert all(-1 <= correlation_score(x, -3 * x + 1) < -0.999 for x in lines)


def _raw_correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return x @ y / np.sqrt((x @ x) * (y @ y))


def test_a_perfect_correlation_has_no_interval_and_says_why():
    levels = [[0, 2, 0, 8], [1, 0, 4, 0], [0, 0, 6, 2], [3, 0, 0, 1]]
    records = [record(kind, values, values) for kind in ("top", "random") for values in levels]
    assert jackknife_interval(records, ("top", "random")) == "the correlation is 1 or -1"


@pytest.mark.parametrize(
    ("masses", "is_scored"),
    [
        ([0.02] * 4, True),
        ([0.03] * 4, True),
        ([0.019] * 4, False),
        ([0.9, 0.9, 0.0, 0.0], True),
        ([0.9, 0.0, 0.0, 0.0], False),
    ],
)
def test_half_of_the_tokens_must_have_a_prediction(masses, is_scored):
    """A token counts from a probability of 0.02 on all level tokens."""
    values, mass = np.array([0.0, 1.0, 5.0, 2.0]), np.array(masses, np.float32)
    records = [ScoredRecord("top", values, values * 2, None, mass)]
    top = next(s for s in score_records("report", records, ()) if s.subset == "top")
    assert (top.status == "ok") == is_scored
    assert is_scored or top.status == "low_digit_mass"


@pytest.mark.parametrize("kind", ["top", "random"])
def test_five_records_stay_though_their_documents_explain(kind):
    exemplars = [
        Exemplar(
            UnitId(0, 0),
            kind,
            rank,
            rank,  # no two share a segment
            0,
            0,  # all are of one document
            0,
            1.0,
            np.arange(64, dtype=np.uint32) + 100 * rank,
            np.zeros(64, np.float32),
        )
        for rank in range(32)
    ]
    splits = assign_splits(exemplars)
    for split, ranks in (("select", [2, 6, 10, 14, 18]), ("report", [3, 7, 11, 15, 19])):
        assert [rank for (_, rank), own in splits.items() if own == split] == ranks


@pytest.mark.parametrize(
    ("activations", "side", "is_dead"),
    [
        ([2.0], "positive", False),
        ([2.0, 0.0], "positive", False),
        ([0.0, 0.0], "positive", True),
        ([], "positive", True),
        ([-2.0, 0.0], "negative", False),
        ([0.0], "negative", True),
    ],
)
def test_a_side_is_dead_when_its_strongest_record_is_not_beyond_0(activations, side, is_dead):
    kind = "top" if side == "positive" else "bottom"
    ids, values = np.arange(64, dtype=np.uint32), np.zeros(64, np.float32)
    exemplars = tuple(
        Exemplar(UnitId(0, 0), kind, rank, rank, 0, 0, 0, activation, ids, values)
        for rank, activation in enumerate(activations)
    )
    unit = Unit(UnitId(0, 0), "ok", None, exemplars, (), ())
    assert SideEvidence(unit, side).is_dead == is_dead


def test_explainers_see_the_strongest_explain_records_of_the_side_and_no_others():
    exemplars = tuple(
        Exemplar(
            UnitId(0, 0),
            kind,
            rank,
            1000 * k + rank,
            0,
            1000 * k + rank,
            0,
            9.0 - rank,
            np.arange(64, dtype=np.uint32) + 10_000 * k + 100 * rank,
            np.zeros(64, np.float32),
        )
        for k, kind in enumerate(("top", "bottom", "random"))
        for rank in range(8)
    )
    unit = Unit(UnitId(0, 0), "ok", None, exemplars, (), ())
    keys = [record.key for record in SideEvidence(unit, "positive").explain_records(3)]
    assert keys == [("top", 0), ("top", 1), ("top", 4)]
    keys = [record.key for record in SideEvidence(unit, "negative").explain_records(9)]
    assert keys == [("bottom", 0), ("bottom", 1), ("bottom", 4), ("bottom", 5)]


def test_select_ranks_alternate_between_its_halves():
    exemplars = build([(segment, 64, segment) for segment in range(16)], [])  # nothing is shared
    halves = halve_select(exemplars, assign_splits(exemplars), ("top",))
    assert halves == ({("top", 2), ("top", 10)}, {("top", 6), ("top", 14)})


def test_the_interval_of_bills_says_why_it_is_missing():
    spread = [[0.0, 1, 2, 3], [1.0, 0, 2, 5], [3.0, 1, 1, 4]]
    perfect = [record(kind, values, values) for kind in ("top", "random") for values in spread]
    assert jackknife_interval(perfect, ("top", "random")) == "the correlation is 1 or -1"
    opposite = [record(x.kind, -x.simulated, x.recorded) for x in perfect]
    assert jackknife_interval(opposite, ("top", "random")) == "the correlation is 1 or -1"
    constant = [record(x.kind, [0.0] * 4, x.recorded) for x in perfect]
    assert jackknife_interval(constant, ("top", "random")) == "the correlation is undefined"
    reason = "without one of the records the correlation is undefined"
    all_but_one_perfect = [record("top", [3.0, 2, 1, 0], perfect[0].recorded), *perfect[1:]]
    assert jackknife_interval(all_but_one_perfect, ("top", "random")) == reason
    all_but_one_constant = [record("top", [0.0, 0, 0, 7], perfect[0].recorded), *constant[1:]]
    assert jackknife_interval(all_but_one_constant, ("top", "random")) == reason


def test_three_records_of_each_kind_are_needed_for_an_interval():
    rng = np.random.default_rng(1)
    records = [record(kind, rng.normal(size=8), rng.normal(size=8)) for kind in ["top"] * 3 + ["random"] * 2]
    assert jackknife_interval(records, ("top", "random")) == "2 random records, 3 are needed"
    low, high = jackknife_interval(records[:3], ("top",))
    assert -1 <= low < high <= 1


def test_without_records_no_token_is_counted():
    for score in score_records("report", [], []):
        assert (score.n_tokens, score.n_records, score.status) == (0, 0, "no_records")


def test_two_tokens_are_enough_for_a_correlation():
    assert correlation_score([1, 2], [5, 3]) == pytest.approx(-1)
    assert correlation_score([1], [5]) is None
    assert correlation_score([], []) is None


def scored(kind, simulated, control=None):
    recorded = [0.0, 1.0, 3.0, 2.0]
    own = record(kind, simulated, recorded)
    return own if control is None else replace(own, control=np.array(control, np.float64))


def test_predictions_are_calibrated_on_select_for_report_only():
    records = [scored("top", [0, 1, 2, np.nan]), scored("random", [1, 0, 0, 4])]
    calibration = [record("top", [0, 2], [1.0, 2.0]), record("random", [7, 7], [0.0, 0.0])]
    scores = {(s.subset, s.metric): s for s in score_records("report", records, calibration)}
    top = [scores["top", metric] for metric in ("r_squared", "absolute_deviation_explained")]
    errors = np.array([0.0 - 1.0, 1.0 - 1.5, 3.0 - 2.0])  # the line is 1 + level / 2; a token has no level
    assert top[0].value == pytest.approx(1 - (errors**2).sum() / 10)
    assert top[1].value == pytest.approx(1 - np.abs(errors).sum() / 4)
    assert [(s.n_tokens, s.n_records) for s in top] == [(3, 1)] * 2
    assert ("random", "correlation") in scores
    assert ("random", "r_squared") not in scores  # no line: all levels are equal
    assert {s.metric for s in score_records("select", records, calibration)} == {"correlation"}
    flat = [scored("top", [5, 5, 5, 5])]
    assert {s.metric for s in score_records("report", flat, calibration)} == {"correlation"}


def test_a_missing_control_of_bills_score_has_its_reason():
    def top(*scores, **more):
        return next(s for s in score_records("report", scores, (), **more) if s.subset == "top")

    given = top(scored("top", [0, 1, 2, 3], control=[3, 2, 1, 0]), control_explanation_id=4)
    assert given.control == pytest.approx(-0.8)
    assert (given.control_explanation_id, given.control_reason) == (4, None)
    constant = top(scored("top", [0, 1, 2, 3], control=[1, 1, 1, 1]), control_explanation_id=4)
    reason = "the other explanation's simulation is constant"
    assert (constant.control, constant.control_reason) == (None, reason)
    without = top(scored("top", [0, 1, 2, 3]), control_reason="there is no other unit")
    assert (without.control, without.control_reason) == (None, "there is no other unit")
    assert without.value == pytest.approx(0.8)
    undefined = [top(scored("top", [1, 1, 1, 1]), control_reason=reason) for reason in ("none", None)]
    assert [s.control_reason for s in undefined] == ["none", "the simulated activations are all equal"]
    assert all(s.reason == s.ci_reason == "the simulated activations are all equal" for s in undefined)


def test_the_kinds_that_a_score_lacks_are_named():
    reasons = [s.reason for s in score_records("select", [record("top", [1, 2], [0.0, 2.0])], [])]
    nothing = "no random records in the split select"
    assert reasons == [nothing, None, nothing]
    assert score_records("select", [], [])[0].reason == "no top and no random records in the split select"


def test_a_token_without_mass_on_any_level_is_an_error():
    levels, mass = expected_level(np.array([[0.0, 0.25, 0.25], [0.5, 0.0, 0.0]]))
    assert (levels.tolist(), mass.tolist()) == ([1.5, 0.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="no mass"):
        expected_level(np.array([[0.1, 0.2], [0.0, 0.0]]))


def test_two_tokens_are_enough_for_a_line():
    assert fit_line([record("top", [1.0, 3.0], [10.0, 14.0])]) == (2.0, 8.0)
    assert fit_line([record("top", [1.0], [10.0])]) is None
