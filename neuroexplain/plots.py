"""Scores or a unit -> figures (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroexplain.evidence import Unit
from neuroexplain.formatting import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LayerScore = tuple[int, str, str, float]  # layer, explainer, scorer, score


def scores_by_layer(axes: Axes, scores: Sequence[LayerScore], name: str = "correlation") -> None:
    """Each score as a dot, and each layer's median as a line, by explainer and scorer.

    `name` is the name of the score in the axis label, here and below.
    """
    for number, (label, layer_scores) in enumerate(_group_scores(scores).items()):
        layers, values = np.array(layer_scores).T
        axes.scatter(layers + 0.12 * number, values, s=8, alpha=0.4, color=f"C{number}")
        distinct_layers = np.unique(layers)
        medians = [np.median(values[layers == layer]) for layer in distinct_layers]
        axes.plot(distinct_layers, medians, color=f"C{number}", label=f"{label}: median")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="layer", ylabel=f"score ({name})", title="Scores by layer")
    axes.legend()


def score_distribution(axes: Axes, scores: Sequence[LayerScore], name: str = "correlation") -> None:
    """A histogram of the scores for each explainer and scorer."""
    bins = np.linspace(-1, 1, 41).tolist()
    for label, layer_scores in _group_scores(scores).items():
        values = [value for _, value in layer_scores]
        axes.hist(values, bins=bins, alpha=0.55, label=f"{label} ({len(values):,})")
    axes.set(xlabel=f"score ({name})", ylabel="explanations", title="Distribution of scores")
    axes.legend()


def share_above(axes: Axes, scores: Sequence[LayerScore], name: str = "correlation") -> None:
    """The share of explained units that score above each value, as in Bills et al. (2023)."""
    for label, layer_scores in _group_scores(scores).items():
        values = np.sort([value for _, value in layer_scores])
        shares = 1 - np.arange(1, len(values) + 1) / len(values)
        axes.step(values, shares, where="post", label=f"{label} ({len(values):,})")
    axes.set(
        xlabel=f"score ({name})",
        ylabel="share of units above",
        title="Share of units above each score",
        ylim=(0, 1),
    )
    axes.legend()


def activation_histogram(axes: Axes, unit: Unit) -> None:
    """The activations of a unit's random and top records, with counts on a log scale."""
    for kind in ("random", "top"):
        values = [x.activations for x in unit.exemplars if x.kind == kind]
        if values:
            axes.hist(np.concatenate(values), bins=60, alpha=0.55, label=f"{kind} records", log=True)
    axes.set(xlabel="activation", ylabel="tokens", title=f"Activations of unit {unit.id}")
    axes.legend()


def save_figure(draw: Callable[[Axes], None], out: Path) -> list[Path]:
    """Draw one figure and write it as OUT.svg and OUT.png; return the files. Raises OSError."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    # Labels may hold any text, so $ begins no formula. Without the date and with a fixed salt equal figures
    # are equal files.
    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "neuroexplain"}):
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        draw(axes)
        axes.grid(alpha=0.25)
        files = [out.with_name(f"{out.name}.{suffix}") for suffix in ("svg", "png")]
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)
    return files


def _group_scores(scores: Sequence[LayerScore]) -> Mapping[str, list[tuple[int, float]]]:
    """(layer, score) of all scores, by explainer and scorer, in alphabetical order."""
    groups: dict[str, list[tuple[int, float]]] = {}
    for layer, explainer, scorer, value in scores:
        groups.setdefault(printable(f"{explainer}, {scorer}"), []).append((layer, value))
    return dict(sorted(groups.items()))
