"""Which text may look as if a unit fired, and how a judge's hard score is computed, on hand-made records."""

from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.evidence import PredictedRecord, Status
from neuroexplain.explaining.trials import SideTrials
from neuroexplain.scorers._judge import OpenJudge
from neuroexplain.scorers.base import PredictedTrial, Predictions, trials_read
from neuroexplain.scorers.detection import SCORER
from neuroexplain.scorers.digits import SCORER as DIGITS
from neuroexplain.scorers.fuzzing import SCORER as FUZZING
from neuroexplain.scorers.intruder import SCORER as INTRUDER
from neuroexplain.scoring.hard_faults import find_wrong_hard
from neuroexplain.scoring.look_alikes import (
    LookAlike,
    count_peak_tokens,
    draw_look_alikes,
    most_frequent,
    rank_by_shared_peaks,
)
from neuroexplain.scoring.splits import crop_first
from neuroexplain.scoring.windows import hard_negatives, marked_hard_negatives
from tests.scorers.test_words import Answering
from tests.scoring.test_judge_scores import POSITIVE, RECORDS, evidence, prediction, report, weights
from tests.scoring.test_side_evidence import UNIT, record

N_HARD = 7
VALUES = [0.1, 0.2, 0.4, 0.6, 0.9, 0.3, 0.2, 0.1]


def hard_record(rank, activation=0.0, place=32):
    """A record of a look-alike where the unit has one activation at one token."""
    values = np.zeros(64, np.float32)
    values[place] = activation
    own = record("hard", rank, 60 + rank, 0.0, "report", side="positive")
    return replace(own, activations=values, start=40)


HARD = tuple(hard_record(rank, {1: 3.1, 4: 3.0}.get(rank, 0.0)) for rank in range(N_HARD))


def with_hard(hard=HARD, records=RECORDS, **more):
    own = evidence(records, **more)
    return replace(own, unit=replace(own.unit, hard={"positive": tuple(hard)}))


def judged(hard_values, n_hard=None, control=None, **more):
    """A prediction of the windows of RECORDS, and of the hard negatives."""
    own = prediction(VALUES, control=VALUES[::-1] if control else None, **more)
    records = [
        PredictedRecord(
            *trial.key,
            trial.first,
            np.array([p], np.float32),
            np.array([0.9], np.float32),
            np.array([1 - p], np.float32) if control else None,
        )
        for trial, p in zip(hard_negatives(with_hard()), hard_values, strict=False)
    ]
    n = len(records) if n_hard is None else n_hard
    return replace(own, records=(*own.records, *records), n_hard=n)


def test_a_window_holds_the_shared_token_and_is_negative_where_the_unit_is_silent():
    own = with_hard()
    trials = hard_negatives(own)
    assert [trial.rank for trial in trials] == [0, 2, 3, 4, 5, 6]  # 3.1 of 10 fires, 3.0 does not
    for trial in trials:
        assert trial.first == crop_first(0, UNIT, "hard", 60 + trial.rank)
        assert int(HARD[trial.rank].token_ids[32]) in trial.token_ids
        assert trial.split == "report"
    outside = replace(HARD[1], activations=np.roll(HARD[1].activations, 31))  # token 63
    is_inside = 63 - own.first_of(HARD[1]) < 32
    assert (1 in [t.rank for t in hard_negatives(with_hard([HARD[0], outside]))]) is not is_inside
    assert hard_negatives(with_hard(records=RECORDS[1:])) == []  # no record tells the peak
    assert hard_negatives(evidence()) == []


def test_barred_tokens_do_not_fire_and_text_that_was_explained_by_is_not_judged():
    barred = int(HARD[1].token_ids[32])
    assert [t.rank for t in hard_negatives(with_hard(barred_ids=frozenset({barred})))] == list(range(7))
    seen = replace(RECORDS[0], token_ids=HARD[0].token_ids, split="explain")
    assert [t.rank for t in hard_negatives(with_hard(records=[seen, *RECORDS[1:]]))] == [2, 3, 4, 5, 6]


def test_simulators_and_the_intruder_do_not_read_them_and_judges_read_the_first_ones():
    own = with_hard()
    for scorer in (DIGITS, INTRUDER):
        assert all(trial.kind != "hard" for trial in trials_read(scorer, own, 16, True, None, 16))
    for scorer in (SCORER, FUZZING):
        for n, ranks in ((None, []), (0, []), (2, [0, 2]), (16, [0, 2, 3, 4, 5, 6])):
            trials = trials_read(scorer, own, 16, False, None, n)
            assert [t.rank for t in trials if t.kind == "hard"] == ranks
            assert len([t for t in trials if t.kind != "hard"]) == 8


def test_fuzzing_marks_the_token_that_looks_like_a_hit():
    own = with_hard()
    windows = marked_hard_negatives(own)
    assert [w.key for w in windows] == [t.key for t in hard_negatives(own)]
    for window in windows:
        assert 32 - window.first in window.marked
        assert len(window.marked) == 1  # as in the positive windows


def test_the_score_by_hand():
    hard = [0.1, 0.5, 0.5, 0.6, 0.2, 0.95]
    (score,) = [s for s in SCORER.score(with_hard(), judged(hard)) if s.subset == "hard"]
    positive = [(p, w) for p, y, w in zip(VALUES, POSITIVE, weights(), strict=True) if y]
    wins = sum(w * ((p > q) + 0.5 * (p == q)) for p, w in positive for q in hard)
    expected = wins / (len(hard) * sum(w for _, w in positive))
    assert score.value == pytest.approx(expected)
    assert (score.metric, score.split, score.status) == ("auroc", "report", "ok")
    assert (score.n_records, score.n_tokens, score.effective_records) == (9, 288, None)
    assert score.ci_low <= score.value <= score.ci_high
    assert score.control_reason == "not asked for"


def test_the_control_is_of_the_same_windows():
    scores = SCORER.score(with_hard(), judged([0.1] * 6, control=True, control_explanation_id=9))
    (score,) = [s for s in scores if s.subset == "hard"]
    positive = [(p, w) for p, y, w in zip(VALUES[::-1], POSITIVE, weights(), strict=True) if y]
    assert score.control == pytest.approx(
        sum(w for p, w in positive if p > 0.9) / sum(w for _, w in positive)
    )
    assert score.control_explanation_id == 9


def test_other_scores_do_not_see_them():
    assert report(with_hard(), judged([0.9] * 6)) | {"auroc": None} == report(
        evidence(), prediction(VALUES)
    ) | {"auroc": None}
    before = [s for s in SCORER.score(evidence(), prediction(VALUES)) if s.subset == "population"]
    after = [s for s in SCORER.score(with_hard(), judged([0.9] * 6)) if s.subset == "population"]
    assert before == after


SILENT = [replace(RECORDS[0], activation=1e3), *RECORDS[1:]]


@pytest.mark.parametrize(
    ("own", "predicted", "status", "reason"),
    [
        (with_hard(HARD[:5]), judged([0.5] * 4), Status.FEW_RECORDS, "in 4 of the 5 windows"),
        (with_hard([]), judged([], 0), Status.FEW_RECORDS, "in 0 of the 0 windows"),
        (with_hard(records=SILENT), judged([0.5] * 6), Status.FEW_RECORDS, "in 0 windows, 2 are"),
        (with_hard(), judged([np.nan] * 6), Status.LOW_DIGIT_MASS, "none of the hard negatives"),
    ],
)
def test_why_there_is_no_hard_score(own, predicted, status, reason):
    (score,) = [s for s in SCORER.score(own, predicted) if s.subset == "hard"]
    assert (score.status, score.value, score.ci_low) == (status, None, None)
    assert reason in score.reason


def test_nothing_is_said_where_nothing_was_measured_or_the_report_was_not_read():
    for own, predicted in (
        (evidence(), prediction(VALUES)),
        (with_hard(), prediction(VALUES)),
        (with_hard(), replace(judged([0.5] * 6), has_report=False)),
    ):
        assert [s for s in SCORER.score(own, predicted) if s.subset == "hard"] == []


def test_verify_tells_which_windows_are_to_be_read():
    own = with_hard()
    assert list(find_wrong_hard(own, judged([0.5] * 6))) == []
    assert list(find_wrong_hard(own, judged([0.5] * 3))) == []
    for wrong in (judged([0.5] * 3, 2), judged([0.5] * 2, 3), replace(judged([0.5] * 3), n_hard=None)):
        assert len(list(find_wrong_hard(own, wrong))) == 1


def test_a_prediction_gets_hard_negatives_when_its_report_is_read_and_those_alone():
    class Counting(OpenJudge):
        asked = 0

        def run(self, explanation, trials, tokens):
            self.asked += len(trials)
            trials = [
                PredictedTrial(np.array([0.5], np.float32), np.array([1.0], np.float32)) for _ in trials
            ]
            return Predictions(trials)

    def trials_for(own):
        return SideTrials(Counting(SCORER, Answering(lambda text: 0.5)), own, {})

    trials = trials_for(evidence())
    before = trials.extend(replace(prediction(VALUES), records=(), has_report=False), ["x"], ("report",))
    assert (trials._scorer.asked, before.n_hard, before.has_report) == (8, None, True)
    trials = trials_for(with_hard())
    assert trials.extend(before, ["x"], ("select",)) is before
    after = trials.extend(before, ["x"], ("report",))
    assert (trials._scorer.asked, after.n_hard, len(after.records)) == (6, 6, 14)
    assert list(find_wrong_hard(with_hard(), after)) == []
    assert trials.extend(after, ["x"], ("report",)) == after
    trials = trials_for(with_hard([]))
    assert (trials.extend(before, ["x"], ("report",)).n_hard, trials._scorer.asked) == (0, 0)


def test_peak_tokens_are_those_of_records_that_fire():
    top = [record("top", n, 1 + n, value) for n, value in enumerate((3.0, 2.0, 1.0, 0.0))]
    top = [replace(r, token_ids=top[min(n, 1)].token_ids) for n, r in enumerate(top)]
    own = evidence([*top, *RECORDS[1:]])
    assert count_peak_tokens(own) == {1032: 1, 2032: 2}
    assert most_frequent({7: 1, 5: 2, 3: 1}) == [5, 3, 7]
    assert len(most_frequent(dict.fromkeys(range(20), 1))) == 8


def test_nearest_are_units_that_share_most_peaks():
    others = [(5, 0, 9), (5, 1, 3), (5, 2, 8), (6, 1, 1), (6, 3, 30), (8, 4, 9)]
    # shared: 1 has 3 + 1, 2 has 4, 3 has 1; 0 is the unit itself, and 4 shares none.
    assert rank_by_shared_peaks({5: 4, 6: 1}, others, 0) == [1, 2, 3]


def test_candidates_come_by_turns_in_proportion_to_peaks_and_once_a_segment():
    places = {5: [(n, 70) for n in (20, *range(100, 140))], 6: [(n, 80) for n in range(200, 240)]}
    nearest = [LookAlike(9, n, 64, 1) for n in (100, 10, 300, 301, *range(400, 430))]
    drawn = draw_look_alikes(evidence(), {5: 3, 6: 1}, places, nearest)
    assert len(drawn) == len({c.segment for c in drawn}) == 48
    assert {10, 20}.isdisjoint(c.segment for c in drawn)  # a random and a sampled record of the unit
    by_token = [c for c in drawn if c.reason == 0]
    assert [c.segment // 100 for c in by_token[:8]] == [1, 1, 2, 1, 1, 1, 2, 1]
    assert {(c.other, c.start) for c in by_token} == {(0, 38), (0, 48)}
    assert [c.reason for c in drawn[:5]] == [0, 0, 1, 0, 1]  # the nearest unit's first segment was taken
    assert [c.segment for c in drawn if c.reason == 1][:3] == [300, 301, 400]
    assert draw_look_alikes(evidence(), {}, {}, nearest)[0].segment == 100
    assert draw_look_alikes(evidence(), {}, {}, []) == []
