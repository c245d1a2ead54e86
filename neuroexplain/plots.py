"""Scores or a unit -> figures (matplotlib)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroexplain.evidence import Unit
from neuroexplain.formatting import explained_by, printable
from neuroexplain.scoring.intruders import wilson_interval
from neuroexplain.status_words import status_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from neuroexplain.score_curves import ScoreCurve

LayerScore = tuple[int, str, str, float]  # layer, explainer, scorer, score
MOST_STEPS = 2_001  # of a curve


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


def share_above(axes: Axes, curves: Sequence[ScoreCurve], name: str = "correlation") -> None:
    """The share of units that score above each value, as in Bills et al. (2023), with a 95% interval.

    A unit that was tried and has no score is above no value. The interval is Wilson's, of each share alone.
    """
    scorers = {curve.scored_by for curve in curves}
    begin = min(score for curve in curves for score in curve.scores)
    for number, curve in enumerate(curves):
        values, shares = shares_above(curve.scores, curve.n, begin)
        low, high = np.array([wilson_interval(share, curve.n) for share in shares]).T
        axes.fill_between(values, low, high, step="post", color=f"C{number}", alpha=0.15, linewidth=0)
        by = "" if len(scorers) == 1 else f", scored by {explained_by(*curve.scored_by)}"
        axes.step(
            values, shares, where="post", color=f"C{number}", label=f"{curve.name}{by}\n{counts(curve)}"
        )
    by = f"; scored by {explained_by(*scorers.pop())}" if len(scorers) == 1 else ""
    axes.set(
        xlabel=f"score ({name}{by})",
        ylabel="share of units above",
        title="Share of units above each score",
        ylim=(0, 1),
    )
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))  # below, off the curves


def shares_above(
    scores: Sequence[float], n: int, begin: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(values, the share of n units that score above each), ascending from `begin`, below which no score is.

    Of many scores every so manyth one is a value.
    """
    values = np.concatenate([[begin], np.sort(np.asarray(scores, np.float64))])
    places = np.unique(np.linspace(0, len(scores), min(len(values), MOST_STEPS)).round().astype(int))
    return values[places], (len(scores) - places) / n


def counts(curve: ScoreCurve) -> str:
    """How many of a curve's units have a score, and why others have none: `98 of 100 units have a score`."""
    text = f"{len(curve.scores):,} of {curve.n:,} units have a score"
    rest = f"; {status_counts(curve.without)}" if curve.without else ""
    left_out = f"; {curve.n_not_scored:,} not given to the scorer, left out" if curve.n_not_scored else ""
    return text + rest + left_out


def scores_over_controls(
    axes: Axes, pairs: Mapping[str, Sequence[tuple[float, float]]], name: str = "correlation"
) -> None:
    """Each explanation's score over that of its control, by name; those above the line beat it."""
    values = [value for own in pairs.values() for pair in own for value in pair]
    ends = (min([*values, 0.0]) - 0.05, max([*values, 0.0]) + 0.05)
    axes.plot(ends, ends, color="0.6", linewidth=1)
    for label, own_pairs in pairs.items():
        own, controls = np.array(own_pairs).reshape(-1, 2).T
        n_above = int((own > controls).sum())
        axes.plot(
            controls, own, "o", alpha=0.7, label=f"{printable(label)}: {n_above} of {len(own)} above the line"
        )
    axes.set(
        xlabel=f"another neuron's explanation: {name}",
        ylabel=f"own explanation: {name}",
        title="Does an explanation fit its own neuron?",
        xlim=ends,
        ylim=ends,
        aspect="equal",
    )
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))


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
