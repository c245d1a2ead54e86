"""What a side of a unit shows and is scored by, in runs that split by passage."""

from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.evidence import Exemplar, Unit, VocabularyEntry
from neuroexplain.runs import Run
from neuroexplain.sampling import scored_first
from neuroexplain.scoring.side_evidence import SideEvidence, tokens_needed
from neuroexplain.scoring.splits import crop_first
from neuroexplain.units import UnitId

UNIT = UnitId(0, 0)


def record(kind, rank, segment, activation, split="explain", **more):
    """A record that shares no text with one of another segment."""
    ids = np.arange(64, dtype=np.uint32) + 1000 * segment
    values = np.full(64, activation, np.float32)
    return Exemplar(UNIT, kind, rank, segment, 64, 0, 0, activation, ids, values, split=split, **more)


def sampled(rank, segment, activation, split="explain", side="positive"):
    return record("sampled", rank, segment, activation, split, side=side, size=32 * activation**2)


def evidence_of(records, side="positive", **more):
    unit = Unit(UNIT, "ok", None, tuple(records), (), ())
    return SideEvidence(unit, side, split_rule="passages", **more)


def test_explainers_see_top_records_above_0_and_then_the_strongest_sampled_ones_of_other_segments():
    records = [
        record("top", 0, 1, 9.0), record("top", 1, 2, 8.0, "report"), record("top", 2, 3, 7.0),
        record("top", 3, 12, 0.5), record("top", 4, 4, 0.0),
        record("random", 0, 5, 6.0),
        sampled(0, 6, 0.25), sampled(1, 7, 5.0), sampled(2, 3, 7.0), sampled(3, 8, 5.0), sampled(4, 9, 0.0),
        sampled(5, 10, 6.0, "select"), sampled(6, 11, 6.0, side="negative"),
    ]  # fmt: skip
    evidence = evidence_of(records)
    expected = [("top", 0), ("top", 2), ("top", 3), ("sampled", 1), ("sampled", 3), ("sampled", 0)]
    for n in range(1, 8):
        assert [x.key for x in evidence.explain_records(n)] == expected[:n]


def test_no_segment_is_shown_twice():
    """Neither as a top and a sampled record, nor in place of a top one for which there is no room."""
    evidence = evidence_of([record("top", 0, 1, 9.0), record("top", 1, 2, 8.0), sampled(0, 2, 8.0)])
    assert [x.key for x in evidence.explain_records(1)] == [("top", 0)]
    assert [x.key for x in evidence.explain_records(2)] == [("top", 0), ("top", 1)]


def test_the_negative_side_sees_its_activations_negated():
    bottom, own = record("bottom", 0, 1, -3.0), sampled(0, 2, -2.0, side="negative")
    evidence = evidence_of([record("top", 0, 4, 5.0), bottom, own, sampled(1, 3, 4.0)], "negative")
    assert evidence.peak == 3.0
    assert not evidence.is_dead
    assert list(evidence.by_key) == [("bottom", 0), ("sampled", 0)]
    assert [x.activation for x in evidence.explain_records(9)] == [3.0, 2.0]
    assert evidence.explain_records(9)[1].side == "positive"
    assert evidence.truth(own).tolist() == [2.0] * 64
    assert evidence.truth(record("random", 0, 5, 1.5)).tolist() == [-1.5] * 64
    rectified = replace(evidence, rectified=True)
    assert rectified.truth(record("random", 0, 5, 1.5)).tolist() == [0.0] * 64
    assert rectified.truth(own).tolist() == [2.0] * 64
    assert evidence_of([sampled(0, 2, 2.0)]).peak is None


def test_held_out_records_are_scored_on_their_halves_or_crops():
    records = [
        record("top", 0, 1, 9.0, "report"), record("top", 1, 2, 8.0), record("top", 2, 3, 8.0, None),
        record("random", 0, 4, 1.0, "select"), record("random", 1, 5, 1.0, "report"),
        sampled(0, 6, 2.0, "report"), sampled(1, 7, 2.0, "report", "negative"),
    ]  # fmt: skip
    shared = record("random", 2, 8, 1.0, "report")  # repeats the text of an `explain` record
    records.append(replace(shared, token_ids=records[1].token_ids))
    for seed in range(4):
        evidence = evidence_of(records, seed=seed)
        firsts = {
            ("top", 0): crop_first(seed, UNIT, "top", 0),
            ("random", 0): scored_first(seed, 4),
            ("random", 1): scored_first(seed, 5),
            ("sampled", 0): scored_first(seed, 6),
        }
        trials = {trial.key: trial for trial in evidence.crops()}
        assert {key: trial.first for key, trial in trials.items()} == firsts
        for key, trial in trials.items():
            own = evidence.by_key[key]
            assert list(trial.token_ids) == own.token_ids[trial.first : trial.first + 32].tolist()
            assert trial.split == own.split
        assert {trial.key for trial in evidence.crops_of("select")} == {("random", 0)}
        assert {trial.key for trial in evidence.crops_of("explain")} == {("top", 1)}


def test_without_a_sample_a_record_s_probability_is_that_of_a_random_one():
    """Whatever its size: nothing was drawn by size."""
    records = [record("random", rank, 10 + rank, 3.0, "report") for rank in range(4)]
    evidence = evidence_of(records, split_segments={"report": 50})
    assert [(d.record.rank, d.probability) for d in evidence.draw("report")] == [(n, 0.08) for n in range(4)]
    assert [(d.record.rank, d.probability) for d in evidence.draw("report", 2)] == [(0, 0.04), (1, 0.04)]


def test_where_no_record_with_a_size_is_outside_each_was_drawn_for_sure():
    """Those of one split and side only: its threshold is not another's."""
    records = [sampled(0, 1, 3.0, "report"), sampled(1, 2, 2.0, "report"), sampled(2, 3, 1.0, "select")]
    records += [sampled(3, 4, 9.0, "report", "negative"), record("random", 0, 5, 0.0, "report")]
    unit = replace(
        evidence_of(records).unit, thresholds={("positive", "report"): 0.0, ("negative", "report"): 70.0}
    )
    evidence = replace(evidence_of(records), unit=unit, split_segments={"report": 9})
    drawn = {d.record.key: d.probability for d in evidence.draw("report")}
    assert drawn == {("random", 0): 1 / 9, ("sampled", 0): 1.0, ("sampled", 1): 1.0}


@pytest.mark.parametrize("n_sampled", [0, 40])
def test_the_evidence_of_a_run_has_its_rules(n_sampled):
    """Special tokens are left out of scores in runs that draw samples."""
    run = Run(
        1, "finished", "s", None, "float32", "act", (0,), 1, 4, 32, 5, "0" * 64, {}, 10, 1, 1280, "", None,
        split_rule="passages", n_sampled=n_sampled, barred_ids=(3,), split_segments={"report": 7},
        rectified=True,
    )  # fmt: skip
    unit = Unit(UNIT, "ok", None, (record("top", 0, 0, 1.0),), (), ())
    tokens = {i: VocabularyEntry(i, f"{i} ", False, b"") for i in range(64)}
    evidence = SideEvidence.of(run, unit, "negative", tokens)
    assert (evidence.unit, evidence.side, evidence.seed, evidence.rectified) == (unit, "negative", 5, True)
    assert (evidence.split_rule, evidence.split_segments) == ("passages", {"report": 7})
    assert (evidence.n_random, evidence.n_sampled) == ({"explain": 8, "select": 8, "report": 16}, n_sampled)
    counts = evidence.counts(unit.exemplars[0]).tolist()
    assert [i for i, is_scored in enumerate(counts) if not is_scored] == ([3] if n_sampled else [])
    assert evidence.texts(unit.exemplars[0])[:3] == ["0 ", "1 ", "2 "]
    assert SideEvidence.of(run, unit, "negative").tokens == {}
    assert tokens_needed(unit.exemplars) == set(range(64))


@pytest.mark.parametrize(
    ("n_sampled", "n_random", "positive", "negative"),
    [
        (None, None, "top", "bottom"),
        (0, {"explain": 0, "report": 1}, "top_and_random", "bottom_and_random"),
        (1, {"report": 1}, "population", "population"),
    ],
)
def test_the_headline_is_of_the_records_that_the_run_draws(n_sampled, n_random, positive, negative):
    drawn = {} if n_sampled is None else {"n_sampled": n_sampled, "n_random": n_random}
    assert evidence_of([], **drawn).headline_subset == positive
    assert evidence_of([], "negative", **drawn).headline_subset == negative
