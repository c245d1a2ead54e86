"""Look for records whose probability is not the one that their draw gives (pure).

Written from the rule and apart from SideEvidence.draw and sampling.py, so that each can find the other's
faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from neuroexplain.evidence import Exemplar, Prediction, Split
from neuroexplain.scoring.record_faults import exact_uniform
from neuroexplain.scoring.side_evidence import BackgroundDraw, SideEvidence, background_draw_of
from neuroexplain.stable_hash import stable_hash

CLOSE = 1e-9  # what two ways to compute a probability may differ by


def find_wrong_probabilities(
    evidence: SideEvidence, split: Split, n_read: int, prediction: Prediction | None = None
) -> Iterator[str]:
    """A line for each record of a split with a wrong probability, if n_read of each kind are read.

    prediction: says how much of a background is read; None: nothing.
    """
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
    chances = dict.fromkeys(random, Fraction(len(random), evidence.split_segments[split]))
    of_others = Fraction(len(random), evidence.split_segments[split])  # of a segment that is not read
    others: dict[int, Fraction] = {}
    background = None if prediction is None else background_draw_of(prediction)
    if background is not None and split == "report" and evidence.unit.background:
        chances, others = _chances_of_background(evidence, background)
        random = list(chances)
        of_others = Fraction(len(_frame_of(evidence)), evidence.split_segments[split])
    drawn = {d.record.segment: d for d in evidence.draw(split, n_read, background)}
    if set(drawn) != inside | set(random):
        yield f"{split}: {len(drawn)} records are drawn, not {len(inside | set(random))}"
    for segment, own in drawn.items():
        share = 0.0
        if inside:
            bound = bounds[len(inside)] if segment in inside else bounds[len(inside) - 1]
            share = min(1.0, evidence.size_of(own.record) / bound) if bound else 1.0
        chance = chances.get(segment, others.get(segment, of_others))
        expected = 1 - (1 - share) * float(1 - chance)
        if abs(own.probability - expected) > CLOSE:
            yield f"{_name(own.record)} has the probability {own.probability}, not {expected}"


def _frame_of(evidence: SideEvidence) -> list[Exemplar]:
    """The random records of `report`, and the background."""
    random = [x for x in evidence.unit.exemplars if x.kind == "random" and x.split == "report"]
    return [*random, *evidence.unit.background]


def _chances_of_background(
    evidence: SideEvidence, draw: BackgroundDraw
) -> tuple[dict[int, Fraction], dict[int, Fraction]]:
    """The chance of each segment that is read to be a random one, and of the others that have a guess."""
    frame = _frame_of(evidence)
    of_frame = Fraction(len(frame), evidence.split_segments["report"])
    if draw.guesses is None or draw.n >= len(frame):
        return {x.segment: of_frame for x in frame}, {}
    own = (x for x in evidence.unit.exemplars if x.kind == "sampled" and x.side == evidence.side)
    guessed = [*frame, *(x for x in own if x.split == "report")]
    total = sum(map(Fraction, draw.guesses[: len(frame)]))
    sizes = [Fraction(1, 2) + (Fraction(g) * len(frame) / total if total else 0) for g in draw.guesses]
    keys = [Fraction(stable_hash(evidence.seed, "background", x.segment) + 1, 1 << 64) for x in guessed]
    ratios = [size / key for size, key in zip(sizes, keys, strict=True)]
    bounds = sorted(ratios[: len(frame)], reverse=True)
    last, threshold = bounds[draw.n - 1], bounds[draw.n]
    read: dict[int, Fraction] = {}
    others: dict[int, Fraction] = {}
    for place, (x, size, ratio) in enumerate(zip(guessed, sizes, ratios, strict=True)):
        if place < len(frame) and ratio >= last:
            read[x.segment] = of_frame * min(Fraction(1), size / threshold)
        elif x.segment not in read:
            others[x.segment] = of_frame * min(Fraction(1), size / last)
    return read, others


def _name(record: Exemplar) -> str:
    return f"{record.kind} {record.rank}"
