"""Look for records whose probability is not the one that their draw gives (pure).

Written from the rule and apart from SideEvidence.draw and sampling.py, so that each can find the other's
faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from neuroexplain.evidence import Exemplar, Split
from neuroexplain.scoring.record_faults import exact_uniform
from neuroexplain.scoring.side_evidence import SideEvidence

CLOSE = 1e-9  # what two ways to compute a probability may differ by


def find_wrong_probabilities(evidence: SideEvidence, split: Split, n_read: int) -> Iterator[str]:
    """A line for each record of a split with a wrong probability, if n_read of each kind are read."""
    if not evidence.split_segments[split]:
        return  # no segment of the split was visited, so nothing was drawn
    of_split = [x for x in evidence.unit.exemplars if x.split == split]
    random = [x.segment for x in of_split if x.kind == "random"][:n_read]
    sampled = [x for x in of_split if x.kind == "sampled" and x.side == evidence.side]
    inside = {x.segment for x in sampled[:n_read]}
    bounds: list[float] = []  # size / uniform of each sampled record, and the threshold
    if sampled:
        uniforms = [exact_uniform(evidence.seed, x.segment) for x in sampled]
        bounds += [evidence.size_of(x) / u for x, u in zip(sampled, uniforms, strict=True)]
        bounds.append(evidence.unit.thresholds[evidence.side, split])
    not_random = 1 - Fraction(len(random), evidence.split_segments[split])
    drawn = {d.record.segment: d for d in evidence.draw(split, n_read)}
    if set(drawn) != inside | set(random):
        yield f"{split}: {len(drawn)} records are drawn, not {len(inside | set(random))}"
    for segment, own in drawn.items():
        share = 0.0
        if inside:
            bound = bounds[len(inside)] if segment in inside else bounds[len(inside) - 1]
            share = min(1.0, evidence.size_of(own.record) / bound) if bound else 1.0
        expected = 1 - (1 - share) * float(not_random)
        if abs(own.probability - expected) > CLOSE:
            yield f"{_name(own.record)} has the probability {own.probability}, not {expected}"


def _name(record: Exemplar) -> str:
    return f"{record.kind} {record.rank}"
