"""Windows on hand-made records: which are positive, which are read, and what a judge's scores say of them."""

from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.evidence import PredictedRecord, Prediction, Provenance, Status
from neuroexplain.sampling import scored_first
from neuroexplain.scorers._judge import OpenJudge
from neuroexplain.scorers.base import trials_read
from neuroexplain.scorers.detection import SCORER
from neuroexplain.scorers.intruder import SCORER as INTRUDER
from neuroexplain.scoring.windows import firing_tokens, windows_of
from tests.scoring.test_side_evidence import evidence_of, record, sampled

N_SEGMENTS = 100
PROVENANCE = Provenance("local", "1", "model", None, "0" * 64)


def at(own, place, activation):
    """The record with one token, counted from its scored half, at another activation."""
    values = own.activations.copy()
    values[scored_first(0, own.segment) + place] = activation
    return replace(own, activations=values)


def outside(own, activation):
    """The record with a token of the half that is not scored at another activation."""
    values = own.activations.copy()
    values[(scored_first(0, own.segment) + 32) % 64] = activation
    return replace(own, activations=values)


RANDOM = [record("random", rank, 10 + rank, 0.0, "report") for rank in range(4)]
SAMPLED = [sampled(rank, 20 + rank, 1.0, "report") for rank in range(4)]
RECORDS = [
    record("top", 0, 1, 10.0),
    RANDOM[0], at(RANDOM[1], 5, 3.0), at(RANDOM[2], 5, 3.1), outside(RANDOM[3], 9.0),
    at(SAMPLED[0], 31, 9.0), at(SAMPLED[1], 0, 4.0), SAMPLED[2], SAMPLED[3],
]  # fmt: skip
POSITIVE = [False, False, True, False, True, True, False, False]


def evidence(records=RECORDS, **more):
    own = evidence_of(records, split_segments={"select": 0, "report": N_SEGMENTS}, n_sampled=40, **more)
    thresholds = {("positive", split): 0.0 for split in ("select", "report")}
    return replace(own, unit=replace(own.unit, thresholds=thresholds))


def prediction(probabilities, own=None, control=None, mass=0.9, **more):
    """A prediction with a probability for each window, in the order of RECORDS."""
    windows = windows_of(own or evidence())
    records = [
        PredictedRecord(
            *trial.key,
            trial.first,
            np.array([p], np.float32),
            np.array([mass], np.float32),
            None if control is None else np.array([control[place]], np.float32),
        )
        for place, (trial, p) in enumerate(zip(windows, probabilities, strict=True))
    ]
    fields = {"codec": "probabilities", "n_read": 16, "with_bills": False, "has_report": True} | more
    return Prediction(7, windows[0] and (own or evidence()).unit.id, "detection", Status.OK, tuple(records),
                      PROVENANCE, **fields)  # fmt: skip


def report(own, predicted):
    return {s.metric: s for s in SCORER.score(own, predicted) if s.split == "report"}


def test_a_window_is_positive_where_a_scored_token_is_above_0_3_of_the_peak():
    own = evidence()
    assert [trial.kind for trial in windows_of(own)] == ["random"] * 4 + ["sampled"] * 4
    fires = [firing_tokens(own, own.by_key[trial.key]) for trial in windows_of(own)]
    assert [bool(tokens.any()) for tokens in fires] == POSITIVE
    assert np.flatnonzero(fires[2]).tolist() == [5]
    assert np.flatnonzero(fires[4]).tolist() == [31]


def test_a_barred_token_does_not_fire():
    barred = int(RECORDS[3].token_ids[scored_first(0, RECORDS[3].segment) + 5])
    own = evidence(barred_ids=frozenset({barred}))
    assert not firing_tokens(own, own.by_key["random", 2]).any()


def test_the_negative_side_fires_below_0():
    negated = [
        replace(r, activation=-r.activation, activations=-r.activations, side=r.side and "negative",
                kind="bottom" if r.kind == "top" else r.kind)
        for r in RECORDS
    ]  # fmt: skip
    own = evidence(negated, side="negative")
    assert [bool(firing_tokens(own, own.by_key[t.key]).any()) for t in windows_of(own)] == POSITIVE


def test_windows_that_leak_or_are_of_other_splits_are_not_read():
    leaking = replace(RECORDS[1], token_ids=RECORDS[0].token_ids)
    elsewhere = replace(RECORDS[2], split="explain")
    own = evidence([RECORDS[0], leaking, elsewhere, *RECORDS[3:]])
    assert [trial.key for trial in windows_of(own)][:2] == [("random", 2), ("random", 3)]
    assert windows_of(evidence(RECORDS[1:])) == []  # no record tells the peak


def weights():
    return [1 / d.probability for d in sorted(evidence().draw("report"), key=lambda d: d.record.segment)]


def test_a_background_is_not_read():
    """Its windows have no marks, and a judge's weights are those of the random records of every unit."""
    own = evidence()
    more = tuple(replace(r, kind="background", rank=n, segment=50 + n) for n, r in enumerate(RANDOM))
    own = replace(own, unit=replace(own.unit, background=more))
    for scorer in (SCORER, INTRUDER):
        judge = OpenJudge.__new__(OpenJudge)
        judge.scorer = scorer
        assert judge.background_read(own, 16) is None
    assert [t.key for t in trials_read(SCORER, own, 16, False)] == [t.key for t in windows_of(evidence())]


def test_scores_by_hand():
    values = [0.1, 0.2, 0.4, 0.6, 0.9, 0.3, 0.2, 0.1]
    windows = list(zip(values, POSITIVE, weights(), strict=True))
    yes, no = [(p, w) for p, y, w in windows if y], [(p, w) for p, y, w in windows if not y]
    n_yes, n_no = sum(w for _, w in yes), sum(w for _, w in no)
    scores = report(evidence(), prediction(values))
    wins = sum(w * v * ((p > q) + 0.5 * (p == q)) for p, w in yes for q, v in no)
    assert scores["auroc"].value == pytest.approx(wins / (n_yes * n_no))
    hits, false_alarms = weights()[4], weights()[3]
    assert scores["f1"].value == pytest.approx(2 * hits / (hits + false_alarms + n_yes))
    assert scores["balanced_accuracy"].value == pytest.approx((hits / n_yes + 1 - false_alarms / n_no) / 2)
    brier = sum(w * (p - y) ** 2 for p, y, w in windows)
    assert scores["brier"].value == pytest.approx(brier / (n_yes + n_no))
    for score in scores.values():
        assert (score.n_records, score.n_tokens, score.subset) == (8, 256, "population")
        assert score.control_reason == "not asked for"
        assert score.ci_low <= score.value <= score.ci_high


def test_the_control_is_judged_on_the_same_windows():
    own, values = evidence(), [0.1, 0.2, 0.4, 0.6, 0.9, 0.3, 0.2, 0.1]
    other = [0.3, 0.1, 0.2, 0.2, 0.2, 0.8, 0.5, 0.1]
    scores = report(own, prediction(values, control=other, control_explanation_id=9))
    alone = report(own, prediction(other))
    for metric, score in scores.items():
        assert (score.control, score.control_explanation_id) == (alone[metric].value, 9)
        assert score.control_reason is None


def test_a_window_without_an_answer_is_left_out():
    values = [0.1, 0.2, 0.4, np.nan, 0.9, 0.3, 0.2, 0.1]
    score = report(evidence(), prediction(values))["brier"]
    assert score.n_records == 7
    rest = [(p, y, w) for p, y, w in zip(values, POSITIVE, weights(), strict=True) if not np.isnan(p)]
    brier = sum(w * (p - y) ** 2 for p, y, w in rest)
    assert score.value == pytest.approx(brier / sum(w for _, _, w in rest))


ALL, FIRING, TWO = [0.5] * 8, [RECORDS[2], RECORDS[3], *RECORDS[5:]], [RECORDS[0], RECORDS[1], RECORDS[5]]
LOW, HIGH = replace(RECORDS[0], activation=1e-3), replace(RECORDS[0], activation=1e3)


def judged(records):
    return prediction(ALL[: len(records) - 1], evidence(records))


@pytest.mark.parametrize(
    ("own", "predicted", "status", "reason"),
    [
        (RECORDS, prediction(ALL, mass=0.01), Status.LOW_DIGIT_MASS, "at only 0% of the windows"),
        (RECORDS, prediction([np.nan] * 8), Status.LOW_DIGIT_MASS, "of the windows"),
        (RECORDS, prediction(ALL, has_report=False), Status.NOT_CHOSEN, "another candidate was chosen"),
        ([HIGH, *RECORDS[1:]], judged(RECORDS), Status.NO_RECORDS, "none of the 8 windows"),
        ([LOW, *FIRING], judged([RECORDS[0], *FIRING]), Status.NO_RECORDS, "each of the 6 windows"),
        (TWO, judged(TWO), Status.FEW_RECORDS, "the weight of 1.0 equal ones"),
    ],
)
def test_why_there_is_no_score(own, predicted, status, reason):
    (score,) = [s for s in SCORER.score(evidence(own), predicted) if s.split == "report"]
    assert (score.metric, score.subset, score.status, score.value) == ("auroc", "population", status, None)
    assert reason in score.reason
    assert score.ci_low is score.control is None


def test_without_any_record_it_says_so():
    none = replace(prediction(ALL), records=())
    (score,) = SCORER.score(evidence(RECORDS[:1]), none)
    assert (score.status, score.reason) == (
        Status.NO_RECORDS,
        "no random or sampled record in the split report",
    )
