"""Which text may look as if a unit fired there (pure).

A random window is an easy negative. A hard one holds a token of which one would expect it: one at which the
unit itself peaks often, in other text; or the peak of a record of the nearest units. Nearest are latents by
the cosine of their directions, as the run stores them. Other units have no direction that is theirs alone, so
nearest are those of the layer that share most peak tokens with it. What the unit does there is not known:
that it is not among the unit's records says nothing. So a pass of the subject measures it
(collecting/measure_hard.py), and only where the unit is known to be silent is the window a negative.

All candidates are of `report`: no explainer of any unit has seen them. Segments of the unit's own sampled and
random records are left out, since those are judged already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import PEAK_INDEX

REASONS = ("token", "nearest")  # why a record is a candidate; the store keeps the place
MOST_MEASURED = 48  # records of a side: many fire, too, and a judge reads 16 that do not
MOST_TOKENS = 8  # peak tokens that are looked for in other text
MOST_NEAREST = 8  # nearest units whose records are read
# How far sums over a record may differ between machines and batches, of the strongest record's: measured in
# docs/decisions.md. Another model, layer or place in the text gives values that have nothing in common.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True, slots=True)
class LookAlike:
    """A record in which one would expect a unit to fire."""

    other: int  # the unit whose record it is; the unit itself if its own peak token stands there
    segment: int
    start: int  # of the record; the token is PEAK_INDEX later
    reason: int  # a place in REASONS


def count_peak_tokens(evidence: SideEvidence) -> Counter[int]:
    """How many of a side's strongest records peak on each token, without those that do not fire."""
    records = (evidence.oriented(r) for r in evidence.by_key.values() if r.kind == evidence.strongest)
    return Counter(int(r.token_ids[PEAK_INDEX]) for r in records if r.activation > 0)


def most_frequent(peaks: Mapping[int, int]) -> list[int]:
    """At most MOST_TOKENS tokens, the most frequent first; ties by token id."""
    return sorted(peaks, key=lambda token: (-peaks[token], token))[:MOST_TOKENS]


def place_hash(seed: int, token: int, segment: int) -> int:
    """The order in which text with a token is taken: the same for every unit, so one pass serves many."""
    return stable_hash(seed, "look-alike", token, segment)


def rank_by_shared_peaks(
    peaks: Mapping[int, int], others: Iterable[tuple[int, int, int]], unit: int
) -> list[int]:
    """The units that share peak tokens with `unit`, most first; ties by unit.

    peaks: the unit's own counts. others: (token, unit, count). Two units share as many records as the smaller
    of their counts, summed over tokens.
    """
    shared: Counter[int] = Counter()
    for token, other, count in others:
        if other != unit:
            shared[other] += min(count, peaks.get(token, 0))
    return sorted((n for n in shared if shared[n] > 0), key=lambda other: (-shared[other], other))


def draw_look_alikes(
    evidence: SideEvidence,
    peaks: Mapping[int, int],
    places: Mapping[int, Sequence[tuple[int, int]]],
    of_nearest: Sequence[LookAlike],
) -> list[LookAlike]:
    """At most MOST_MEASURED candidates, each of another segment, those of both reasons by turns.

    peaks: how often the side peaks on each token. places: by token (segment, position), in the order of
    place_hash; tokens come in proportion to how often the side peaks on them. of_nearest: in their order, the
    strongest record of the nearest unit first.
    """
    judged = {r.segment for r in evidence.unit.exemplars if r.kind in ("random", "sampled")}
    own = evidence.unit.id.index
    turns: list[tuple[float, int, LookAlike]] = []
    for token in most_frequent(peaks):
        new = [place for place in places.get(token, ()) if place[0] not in judged]
        for n, (segment, position) in enumerate(new):
            candidate = LookAlike(own, segment, position - PEAK_INDEX, 0)
            turns.append(((n + 0.5) / peaks[token], token, candidate))
    by_token = [candidate for *_, candidate in sorted(turns, key=lambda turn: turn[:2])]
    by_nearest = [candidate for candidate in of_nearest if candidate.segment not in judged]
    drawn: dict[int, LookAlike] = {}
    for candidate in chain.from_iterable(zip_longest(_distinct(by_token), _distinct(by_nearest))):
        if candidate is not None and len(drawn) < MOST_MEASURED:
            drawn.setdefault(candidate.segment, candidate)
    return list(drawn.values())


def _distinct(candidates: Iterable[LookAlike]) -> list[LookAlike]:
    """The first candidate of each segment."""
    first: dict[int, LookAlike] = {}
    for candidate in candidates:
        first.setdefault(candidate.segment, candidate)
    return list(first.values())
