"""Objects -> figures (matplotlib): scores by layer, their distribution, the share above each, a neuron's activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuroexplain.evidence import Unit
from neuroexplain.formatting import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OneScore = tuple[int, str, str, float]  # layer, explainer, scorer, score


def scores_by_layer(axes: Axes, scores: Sequence[OneScore], name: str = "correlation") -> None:
    """Each score as a dot, and each layer's median as a line, by explainer and scorer. `name` says what the score is."""
    for number, (by, own) in enumerate(_by_name(scores).items()):
        layers, values = np.array([layer for layer, _ in own]), np.array([r for _, r in own])
        axes.scatter(layers + 0.12 * number, values, s=8, alpha=0.4, color=f"C{number}")
        at = np.unique(layers)
        axes.plot(
            at,
            [np.median(values[layers == layer]) for layer in at],
            color=f"C{number}",
            label=f"{by}: median",
        )
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="layer", ylabel=f"score ({name})", title="Scores by layer")
    axes.legend()


def score_distribution(axes: Axes, scores: Sequence[OneScore], name: str = "correlation") -> None:
    """Histograms of the scores, LLM and baseline."""
    for by, own in _by_name(scores).items():
        axes.hist(
            [r for _, r in own],
            bins=np.linspace(-1, 1, 41).tolist(),
            alpha=0.55,
            label=f"{by} ({len(own):,})",
        )
    axes.set(xlabel=f"score ({name})", ylabel="explanations", title="Distribution of scores")
    axes.legend()


def share_above(axes: Axes, scores: Sequence[OneScore], name: str = "correlation") -> None:
    """The share of explained units that score above each value, as in Bills et al. (2023)."""
    for by, own in _by_name(scores).items():
        values = np.sort([r for _, r in own])
        axes.step(
            values,
            1 - np.arange(1, len(values) + 1) / len(values),
            where="post",
            label=f"{by} ({len(own):,})",
        )
    axes.set(
        xlabel=f"score ({name})",
        ylabel="share of units above",
        title="Share of units above each score",
        ylim=(0, 1),
    )
    axes.legend()


def activation_histogram(axes: Axes, neuron: Unit) -> None:
    """The activations of a neuron's random and top records, log counts."""
    for kind in ("random", "top"):
        values = [x.activations for x in neuron.exemplars if x.kind == kind]
        if values:
            axes.hist(np.concatenate(values), bins=60, alpha=0.55, label=f"{kind} records", log=True)
    axes.set(xlabel="activation", ylabel="tokens", title=f"Activations of neuron {neuron.id}")
    axes.legend()


def save_figure(draw: Callable[[Axes], None], out: Path) -> list[Path]:
    """Draw one figure and write it as OUT.svg and OUT.png; returns the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "neuroexplain"}):
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        draw(axes)
        axes.grid(alpha=0.25)
        files = [out.with_name(f"{out.name}.{suffix}") for suffix in ("svg", "png")]
        for file in files:
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)
    return files


def _by_name(scores: Sequence[OneScore]) -> Mapping[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for layer, explainer, scorer, r in scores:
        found.setdefault(printable(f"{explainer}, {scorer}"), []).append((layer, r))
    return dict(sorted(found.items()))
