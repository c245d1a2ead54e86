"""Estimates beside true values -> bias, error, coverage, and how much each metric falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from score_truth.explanations import CHECKS

Falls = dict[tuple[str, str], list[tuple[float, float]]]  # by metric and check: (loss, true loss)


LEAST_LOSS = 0.1  # of its value, from which on a true score counts as one that falls


@dataclass(frozen=True)
class Estimate:
    """One score beside its true value over the corpus."""

    group: str
    value: float
    low: float | None
    high: float | None
    truth: float
    is_made: bool  # whether it is of a unit that was made by a rule


def add_falls(
    falls: Falls,
    scores: Mapping[str, Mapping[str, float]],
    true_scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Add each metric's loss and the true loss, as shares of the concept's own value."""
    for check in CHECKS:
        if check not in scores or "concept" not in scores:
            continue
        for metric, before in scores["concept"].items():
            after = scores[check].get(metric)
            name = metric if metric in true_scores["concept"] else "correlation, population"
            true_before, true_after = true_scores["concept"][name], true_scores[check][name]
            if after is not None and before > 0 and true_before > 0:
                falls[metric, check].append(
                    ((before - after) / before, (true_before - true_after) / true_before)
                )


def sanity(falls: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> dict[str, Any]:
    """For each metric and check: the share of units whose score falls, and the loss beside the true one.

    `falls_as_truth` is the share of those whose true score falls by a tenth or more.
    """
    results: dict[str, Any] = {}
    for (metric, check), pairs in falls.items():
        lost, truth = np.array(pairs).T
        results.setdefault(metric, {})[check] = {
            "falls": float((lost > 0).mean()),
            "falls_as_truth": float((lost[truth > LEAST_LOSS] > 0).mean())
            if (truth > LEAST_LOSS).any()
            else None,
            "mean_loss": float(lost.mean()),
            "mean_true_loss": float(truth.mean()),
            "median_loss": float(np.median(lost)),
            "median_true_loss": float(np.median(truth)),
            "share_of_true_loss": float(np.median(lost) / np.median(truth)) if np.median(truth) else None,
            "n": len(pairs),
        }
    return results


def summary(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Bias, root mean square error and coverage of the interval."""
    if not estimates:
        return {"bias": None, "rmse": None, "coverage": None, "n": 0}
    errors = np.array([e.value - e.truth for e in estimates])
    covered = [e.low <= e.truth <= e.high for e in estimates if e.low is not None and e.high is not None]
    return {
        "bias": float(errors.mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "coverage": float(np.mean(covered)) if covered else None,
        "n": len(estimates),
    }
