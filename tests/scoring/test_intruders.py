"""Rounds of five windows on hand-made records, and the share of odd ones found."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.evidence import PredictedRecord, Status
from neuroexplain.scoring.intruders import (
    found_share,
    intruder_rounds,
    score_rounds,
    wilson_interval,
)
from neuroexplain.scoring.windows import marked_windows
from tests.scoring.test_judge_scores import RECORDS, at, evidence
from tests.scoring.test_side_evidence import record, sampled

SILENT = [record("random", rank, 10 + rank, 0.0, "report") for rank in range(7)]
FIRING = [at(sampled(rank, 30 + rank, 1.0, "report"), rank, 8.0) for rank in range(6)]
WEAK = sampled(6, 40, 1.0, "report")  # below 0.3 of the peak: neither a member nor an odd one
OWN = [RECORDS[0], *SILENT, *FIRING, WEAK]


def test_each_silent_random_window_is_the_odd_one_among_four_where_the_unit_fires():
    own = evidence(OWN)
    marked = {window.key: window for window in marked_windows(own)}
    rounds = intruder_rounds(own)
    assert [r.key for r in rounds] == [("random", rank) for rank in range(7)]
    for r in rounds:
        windows = r.windows()
        assert len(windows) == 5
        assert windows[r.place] == marked[r.key] == r.odd
        members = [window for window in windows if window != r.odd]
        assert len({window.key for window in members}) == 4
        assert all(window.kind == "sampled" and window.rank < 6 for window in members)
        assert all(window == marked[window.key] for window in members)


def test_places_and_members_are_drawn_evenly_by_seed():
    places, members = Counter(), Counter()
    for seed in range(80):
        fires = [
            replace(r, activations=np.where(np.arange(64) % 32 == 3, np.float32(8), np.float32(0)))
            for r in FIRING
        ]
        for r in intruder_rounds(evidence([RECORDS[0], *SILENT, *fires], seed=seed)):
            places[r.place] += 1
            members.update(window.rank for window in r.members)
    for counts, n in ((places, 5), (members, 6)):
        mean = sum(counts.values()) / n
        assert set(counts) == set(range(n))
        assert sum((count - mean) ** 2 / mean for count in counts.values()) < 20


def test_the_odd_one_s_value_comes_first():
    (first, *_) = intruder_rounds(evidence(OWN))
    for place in range(5):
        own = replace(first, place=place)
        assert own.windows()[place] == own.odd
        values = own.odd_first(np.arange(5.0))
        assert values.tolist() == [place, *(n for n in range(5) if n != place)]


def test_other_records_do_not_change_a_round():
    rounds = {r.key: r for r in intruder_rounds(evidence(OWN))}
    fewer = intruder_rounds(evidence([x for x in OWN if x.key != ("random", 2)]))
    assert [r.place for r in fewer] == [rounds[r.key].place for r in fewer]
    assert [r.members for r in fewer] == [rounds[r.key].members for r in fewer]


def predicted(rows):
    return [PredictedRecord("random", n, 0, np.array(row, np.float32)) for n, row in enumerate(rows)]


RIGHT, WRONG = [0.5, 0.1, 0.2, 0.1, 0.05], [0.1, 0.5, 0.2, 0.1, 0.05]


def test_the_share_by_hand():
    score = score_rounds(evidence(OWN), predicted([RIGHT] * 5 + [WRONG] * 2 + [[0.2] * 5]), "none")
    assert (score.metric, score.subset, score.split) == ("intruder_found", "windows", "report")
    assert score.value == pytest.approx((5 + 0.2) / 8)
    assert (score.n_records, score.status, score.control_reason) == (8, Status.OK, "none")
    assert (score.ci_low, score.ci_high) == wilson_interval(5.2 / 8, 8)


def test_a_round_without_an_answer_is_left_out_and_too_many_leave_no_score():
    nothing = [0.001] * 5
    assert score_rounds(evidence(OWN), predicted([RIGHT, RIGHT, WRONG, nothing]), "").value == pytest.approx(
        2 / 3
    )
    score = score_rounds(evidence(OWN), predicted([RIGHT, nothing, nothing]), "")
    assert (score.status, score.value) == (Status.LOW_DIGIT_MASS, None)
    assert score.reason == "only 1 of 3 rounds were answered with a number"


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([RECORDS[0], *SILENT, *FIRING[:3]], "fires in 3 windows of report (4 are needed)"),
        ([RECORDS[0], *SILENT[:4], *FIRING], "not in 4 random ones (5 are needed)"),
    ],
)
def test_with_too_few_windows_nothing_is_asked(records, reason):
    own = evidence(records)
    assert intruder_rounds(own) == []
    score = score_rounds(own, [], "")
    assert score.status == Status.NO_RECORDS
    assert reason in score.reason


def test_found_by_hand():
    assert found_share(np.array([3.0, 1, 2, 0, 0])) == 1
    assert found_share(np.array([2.0, 3, 2, 0, 0])) == 0
    assert found_share(np.array([3.0, 3, 2, 0, 3])) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("found", "n"), [(0, 16), (3, 16), (16, 16), (5, 7)])
def test_the_interval_is_that_of_wilson(found, n):
    """Its ends are the shares that lie 1.96 standard errors from what was found."""
    low, high = wilson_interval(found / n, n)
    assert 0 <= low <= found / n <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(found / n - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5)
