"""Charts: viewer.js draws them on a canvas, and _chart.html writes the same numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from neuroexplain.evidence import Unit
from neuroexplain.formatting import activation_histogram, printable

SCORE_BINS = 40  # of the histogram of scores, over -1..1

Chart = Mapping[str, Any]


def activation_chart(unit: Unit) -> Chart | None:
    """The histogram of a unit's activations; None if there is nothing to count."""
    counts, middles, of_what = activation_histogram(unit)
    if not counts:
        return None
    return {
        "title": f"Activations: {of_what}",
        "type": "bar",
        "x": "activation",
        "y": "tokens",
        "log": True,
        "labels": [f"{middle:.3g}" for middle in middles],
        "series": [{"label": of_what, "data": counts}],
    }


def score_charts(scores: Sequence[tuple[int, str, str, float]]) -> tuple[Chart, ...]:
    """The start page's two charts: the distribution of scores, and their mean by layer.

    `scores` are (layer, explainer, scorer, score). A chart has one series for each explainer and scorer.
    Without scores there is no chart.
    """
    if not scores:
        return ()
    by_series: dict[str, list[tuple[int, float]]] = {}
    for layer, explainer, scorer, score in scores:
        by_series.setdefault(f"{explainer}, {scorer}", []).append((layer, score))
    series = sorted(by_series.items())
    layers = sorted({layer for layer, *_ in scores})
    edges = np.linspace(-1, 1, SCORE_BINS + 1)
    distribution = {
        "title": "Distribution of scores",
        "type": "bar",
        "x": "score",
        "y": "explanations",
        "range": [-1, 1],
        "labels": [round((low + high) / 2, 4) for low, high in pairwise(edges.tolist())],
        "series": [
            {"label": printable(name), "data": np.histogram([score for _, score in own], edges)[0].tolist()}
            for name, own in series
        ],
    }
    by_layer = {
        "title": "Mean score by layer",
        "type": "line",
        "x": "layer",
        "y": "mean score",
        "labels": [str(layer) for layer in layers],
        "series": [{"label": printable(name), "data": _mean_by_layer(own, layers)} for name, own in series],
    }
    return distribution, by_layer


def _mean_by_layer(scores: Sequence[tuple[int, float]], layers: Sequence[int]) -> list[float | None]:
    """The mean score of each layer; None for a layer without scores."""
    by_layer: dict[int, list[float]] = {}
    for layer, score in scores:
        by_layer.setdefault(layer, []).append(score)
    return [round(float(np.mean(by_layer[layer])), 4) if layer in by_layer else None for layer in layers]
