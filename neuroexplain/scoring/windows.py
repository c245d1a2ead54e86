"""Windows of 32 tokens that a judge is asked about: in which of them a unit fires, and where (pure).

A window is the scored half of a random or sampled record. A side fires at a token above 0.3 of its strongest
peak, as for the AUPRC; a window with such a token is positive. The activations of each window are known, so
no text is taken to be silent because nobody looked.

Marks, for fuzzing: in a positive window, the tokens where the side fires; in a negative one, as many tokens
at random as in one of the split's positive windows. How many are marked then tells nothing of the answer, as
a mean over positive windows would. White space is not marked at random: nobody would take it for a hit.

Hard windows hold a token of which one would expect that the unit fires (look_alikes.py). The unit's own
activations there were measured by a pass of the subject. Where the unit does not fire, it is a hard negative;
where it fires, it is left out, for such windows are no sample of anything. In fuzzing that token is marked,
and others at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Exemplar, Split
from neuroexplain.scoring.population import POSITIVE_SHARE
from neuroexplain.scoring.side_evidence import SideEvidence, Trial
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import CROP_LENGTH, PEAK_INDEX


@dataclass(frozen=True, slots=True)
class MarkedWindow(Trial):
    """A window with marked tokens."""

    marked: tuple[int, ...] = ()  # their places in the window, ascending


def windows_of(evidence: SideEvidence) -> list[Trial]:
    """The held-out windows of a side, those of select first in the order of kinds and ranks.

    None without a peak above 0: nothing says then where the side fires.
    """
    if not (evidence.peak or 0.0) > 0:
        return []
    return [trial for trial in evidence.crops() if trial.kind in ("random", "sampled")]


def hard_negatives(evidence: SideEvidence) -> list[Trial]:
    """Windows that look as if a side fired there, and in which it does not, in the order of ranks.

    None without a peak above 0, and none where no pass of the subject has measured them.
    """
    if not (evidence.peak or 0.0) > 0:
        return []
    crops = evidence.hard_crops()
    return [trial for trial in crops if not firing_tokens(evidence, evidence.by_key[trial.key]).any()]


def firing_tokens(evidence: SideEvidence, record: Exemplar) -> NDArray[np.bool_]:
    """At which tokens of a random, sampled or hard record's window the side fires, [32].

    There must be a peak. A token that is not scored, a barred special one, does not count.
    """
    assert evidence.peak is not None
    first = evidence.first_of(record)
    window = slice(first, first + CROP_LENGTH)
    fires = evidence.truth(record)[window] > POSITIVE_SHARE * evidence.peak
    return fires & evidence.counts(record)[window]


def marked_windows(evidence: SideEvidence) -> list[MarkedWindow]:
    """The windows of a side with their marks, which depend on the run's seed and on the records alone."""
    counts = _positive_counts(evidence)
    return [_marked(evidence, window, counts) for window in windows_of(evidence)]


def marked_hard_negatives(evidence: SideEvidence) -> list[MarkedWindow]:
    """The hard negatives with their marks: the token that looks like a hit, and others at random."""
    counts = _positive_counts(evidence)
    return [_marked(evidence, window, counts) for window in hard_negatives(evidence)]


def _positive_counts(evidence: SideEvidence) -> Mapping[Split, Mapping[int, int]]:
    """How many tokens fire in each positive window, by split and segment."""
    counts: dict[Split, dict[int, int]] = {}
    for window in windows_of(evidence):
        record = evidence.by_key[window.key]
        if n := int(firing_tokens(evidence, record).sum()):
            counts.setdefault(window.split, {})[record.segment] = n
    return counts


def _marked(evidence: SideEvidence, window: Trial, counts: Mapping[Split, Mapping[int, int]]) -> MarkedWindow:
    """A window with its marks. counts: see _positive_counts."""
    record = evidence.by_key[window.key]
    places = np.flatnonzero(firing_tokens(evidence, record)).tolist()
    if not places:
        places = _random_places(evidence, record, counts.get(window.split) or {record.segment: 1})
    fields = (window.kind, window.rank, window.split, window.first, window.token_ids)
    return MarkedWindow(*fields, tuple(places))


def _random_places(evidence: SideEvidence, record: Exemplar, counts: Mapping[int, int]) -> list[int]:
    """As many places of a record's window as one of the counts, drawn by a hash of unit and segment.

    In a hard record the token that looks as if the unit fired is one of them.
    """
    first = evidence.first_of(record)
    window = slice(first, first + CROP_LENGTH)
    can_be_marked = evidence.counts(record)[window]
    if evidence.tokens:
        can_be_marked = can_be_marked & [bool(text.strip()) for text in evidence.texts(record)[window]]
    name = (evidence.seed, evidence.side, record.unit.layer, record.unit.index, record.segment)
    drawn = sorted(counts)[stable_hash("mark as many", *name) % len(counts)]
    places = np.flatnonzero(can_be_marked).tolist()
    places.sort(key=lambda place: stable_hash("mark", *name, place))
    if record.kind == "hard":
        shared = PEAK_INDEX - first
        places = [shared, *(place for place in places if place != shared)]
    return sorted(places[: counts[drawn]])
