"""Look for a background, or histograms, that contradict how they should have been made (pure).

Written from the rules and apart from collecting/background.py, so that each can find the other's faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from neuroexplain.arrays import BackgroundArrays, CollectedLayer, ExemplarArrays
from neuroexplain.evidence import Segment
from neuroexplain.runs import Run
from neuroexplain.scoring.record_faults import MOST_LINES
from neuroexplain.stable_hash import stable_hash

CLOSE = 1e-6  # of a share of tokens, which is stored in float64


def find_background_faults(run: Run, layer: CollectedLayer, segments: Mapping[int, Segment]) -> Iterator[str]:
    """A line for each fault of a layer's background and histograms. segments: by number."""
    background, random = layer.background, layer.exemplars.get("random")
    if (background is None) != (not run.n_background):
        yield f"layer {layer.layer}: the run draws {run.n_background} records of a background"
    if background is not None:
        yield from _find_wrong_segments(run, layer.layer, background, random, segments)
        if random is not None:
            yield from _find_wrong_activations(layer.layer, background, random)
    yield from _find_wrong_histograms(run, layer)


def _find_wrong_segments(
    run: Run,
    layer: int,
    background: BackgroundArrays,
    random: ExemplarArrays | None,
    segments: Mapping[int, Segment],
) -> Iterator[str]:
    numbers = background.segments.tolist()
    others = [number for number in numbers if segments[number].split != "report"]
    for number in others[:MOST_LINES]:
        yield f"layer {layer}: segment {number} of the background is {segments[number].split}, not report"
    order = [(stable_hash(run.seed, "random", number), number) for number in numbers]
    if order != sorted(set(order)):
        yield f"layer {layer}: the background is not in the order of hashes"
    of_report = [] if random is None else random.segments[0, : random.counts[0]].tolist()
    of_report = [number for number in of_report if segments[number].split == "report"]
    if numbers[: len(of_report)] != of_report:
        yield f"layer {layer}: the background does not begin with the random records of report"
    n_report = run.n_random - 2 * (run.n_random // 4)
    expected = min(n_report + run.n_background, run.split_segments.get("report", 0))
    if len(numbers) != expected:
        yield f"layer {layer}: the background has {len(numbers)} segments, not {expected}"
    last, known = max(order, default=(-1, -1)), set(numbers)
    missed = [s for s in segments.values() if s.split == "report" and s.segment not in known]
    for s in [s for s in missed if (stable_hash(run.seed, "random", s.segment), s.segment) < last][
        :MOST_LINES
    ]:
        yield f"layer {layer}: segment {s.segment} has a smaller hash than one of the background"


def _find_wrong_activations(
    layer: int, background: BackgroundArrays, random: ExemplarArrays
) -> Iterator[str]:
    """Activations that are 0 or repeated, and those that differ from the same segment's random record."""
    units = np.repeat(np.arange(len(background.counts)), background.counts)
    keys = (
        units.astype(np.int64) * len(background.segments) + background.records
    ) * 64 + background.positions
    wrong = (background.activations == 0) | (np.diff(keys, prepend=-1) <= 0)
    for unit in np.unique(units[wrong])[:MOST_LINES].tolist():
        yield f"{layer}:{unit}: its activations in the background are 0, repeated or out of order"
    column_of = {number: column for column, number in enumerate(random.segments[0].tolist())}
    for place, number in enumerate(background.segments.tolist()):
        if number not in column_of:
            continue
        dense = np.zeros((len(background.counts), 64), np.float32)
        own = background.records == place
        dense[units[own], background.positions[own]] = background.activations[own]
        differs = (dense != random.activations[:, column_of[number]]).any(axis=1)
        for unit in np.flatnonzero(differs)[:MOST_LINES].tolist():
            yield f"{layer}:{unit}: in segment {number} its background differs from its random record"


def _find_wrong_histograms(run: Run, layer: CollectedLayer) -> Iterator[str]:
    """Histograms that do not add up to the number of tokens above 0."""
    if layer.histogram is None or layer.stats is None:
        return
    shares = layer.histogram.sum(axis=1) / max(1, run.n_segments * 64)
    for unit in np.flatnonzero(np.abs(shares - layer.stats.share_positive) > CLOSE)[:MOST_LINES].tolist():
        share = layer.stats.share_positive[unit]
        name = f"{layer.layer}:{unit}"
        yield f"{name}: its histogram has {shares[unit]:.6f} of the tokens, {share:.6f} are above 0"
