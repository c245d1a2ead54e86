"""Which tokens of windows are marked, on hand-made records."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.sampling import scored_first
from neuroexplain.scoring.side_evidence import tokens_needed
from neuroexplain.scoring.windows import marked_windows, windows_of
from tests.scoring.test_judge_scores import POSITIVE, RECORDS, at, evidence

TWICE = at(at(RECORDS[6], 7, 5.0), 8, 6.0)  # fires at tokens 0, 7 and 8
OWN = [*RECORDS[:6], TWICE, *RECORDS[7:]]


def marks_of(own):
    return {window.key: window.marked for window in marked_windows(own)}


def test_where_the_unit_fires_its_tokens_are_marked_and_elsewhere_as_many_at_random():
    marks = marks_of(evidence(OWN))
    assert marks["random", 2] == (5,)
    assert marks["sampled", 0] == (31,)
    assert marks["sampled", 1] == (0, 7, 8)
    negative = [places for places, fires in zip(marks.values(), POSITIVE, strict=True) if not fires]
    assert len(negative) == 5
    for places in negative:
        assert len(places) in (1, 3)
        assert len(set(places)) == len(places)
        assert list(places) == sorted(places)
        assert set(places) <= set(range(32))


def test_marked_windows_are_the_windows():
    own = evidence(OWN)
    plain = [(w.key, w.split, w.first, w.token_ids) for w in windows_of(own)]
    assert [(w.key, w.split, w.first, w.token_ids) for w in marked_windows(own)] == plain


def test_marks_are_drawn_evenly():
    """Over many seeds of one run: as many as one of the positive windows, at any place."""
    sizes, places = Counter(), Counter()
    for seed in range(600):
        firsts = {r.segment: scored_first(seed, r.segment) for r in OWN}
        fires = [at(replace(r, activations=np.zeros(64, np.float32)), 0, 0.0) for r in OWN]
        for place, token in ((3, 5), (5, 31), (6, 0), (6, 7), (6, 8)):
            fires[place].activations[firsts[fires[place].segment] + token] = 8.0
        marks = marks_of(evidence(fires, seed=seed))["random", 0]
        sizes[len(marks)] += 1
        places.update(marks)
    assert set(sizes) == {1, 3}
    assert sizes[3] / 600 == pytest.approx(1 / 3, abs=0.06)
    assert set(places) == set(range(32))
    mean = sum(places.values()) / 32
    assert sum((n - mean) ** 2 / mean for n in places.values()) < 62  # chi square of 31: 1 in 1,000 is above


def test_the_same_text_has_the_same_marks_however_it_was_drawn_and_whoever_reads_it():
    own, fewer = marks_of(evidence(OWN)), marks_of(evidence([OWN[0], *OWN[2:]]))
    assert {key: own[key] for key in fewer} == fewer
    twin = replace(OWN[7], kind="random", rank=9, side=None, size=None)
    both = marks_of(evidence([*OWN, twin]))
    assert both["random", 9] == both["sampled", 2] == own["sampled", 2]


def test_neither_white_space_nor_barred_tokens_are_marked_at_random():
    words = {
        int(i): VocabularyEntry(int(i), " \n" if i % 32 > 2 else " word", False) for i in tokens_needed(OWN)
    }
    first = scored_first(0, OWN[1].segment)
    visible = [place for place in range(32) if words[int(OWN[1].token_ids[first + place])].text == " word"]
    barred = int(OWN[1].token_ids[first + visible[0]])
    marks = marks_of(evidence(OWN, tokens=words, barred_ids=frozenset({barred})))["random", 0]
    assert marks
    assert set(marks) <= set(visible[1:])


def test_without_a_positive_window_there_is_one_mark_each():
    silent = [replace(OWN[0], activation=1e6), *OWN[1:]]
    assert {len(places) for places in marks_of(evidence(silent)).values()} == {1}
