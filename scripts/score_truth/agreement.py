"""How scorers agree with one another and with the truth: rank correlations of their scores (pure)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoredPair:
    """A unit and an explanation with the score by one scorer and model."""

    unit: str  # its name
    place: int  # of the explanation among the unit's; 0 is the true one
    scorer: str
    model: str
    value: float | None  # of the scorer's main metric on `report`; None if it is undefined
    prompt_tokens: int  # sent
    computed_tokens: int | None  # of them; None if a server does not tell
    seconds: float  # of a processor

    @property
    def key(self) -> tuple[str, int]:
        return self.unit, self.place


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """The ranks from 0, equal values sharing the mean of theirs."""
    array = np.asarray(values, np.float64)
    less = (array[:, None] > array[None, :]).sum(axis=1)
    equal = (array[:, None] == array[None, :]).sum(axis=1)
    shared: NDArray[np.float64] = less + (equal - 1) / 2
    return shared


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; None if a side is constant or there are fewer than three pairs."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def true_beats_false(values: Mapping[tuple[str, int], float]) -> tuple[float, int, int, int] | None:
    """How often the true explanation of a unit has a higher score than a false one; equal counts as a half.

    (that share, units whose true one beats all false ones, units, comparisons); None without a comparison.
    """
    by_unit: dict[str, dict[int, float]] = defaultdict(dict)
    for (unit, place), value in values.items():
        by_unit[unit][place] = value
    shares, n_won = [], 0
    for of_unit in by_unit.values():
        false = [value for place, value in of_unit.items() if place]
        if 0 in of_unit and false:
            own = [(of_unit[0] > value) + (of_unit[0] == value) / 2 for value in false]
            shares.append(own)
            n_won += all(share == 1 for share in own)
    if not shares:
        return None
    every = [share for own in shares for share in own]
    return float(np.mean(every)), n_won, len(shares), len(every)


def agreement(pairs: Iterable[ScoredPair]) -> dict[str, Any]:
    """Of each scorer cost and truth, and of each two the rank correlation over what both scored."""
    by_scorer: dict[str, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        by_scorer[pair.scorer].append(pair)
    values = {
        name: {pair.key: pair.value for pair in own if pair.value is not None}
        for name, own in by_scorer.items()
    }
    scorers = {}
    for name, own in by_scorer.items():
        defined = values[name]
        truth = true_beats_false(defined)
        scorers[name] = {
            "n": len(own),
            "undefined": len(own) - len(defined),
            "prompt_tokens": float(np.mean([pair.prompt_tokens for pair in own])),
            "computed_tokens": _mean([x for pair in own if (x := pair.computed_tokens) is not None]),
            "seconds": float(np.mean([pair.seconds for pair in own])),
            "mean_true": _mean([value for (_, place), value in defined.items() if place == 0]),
            "mean_false": _mean([value for (_, place), value in defined.items() if place]),
            "true_above_false": None if truth is None else truth[0],
            "wins": None if truth is None else truth[1],
            "units": None if truth is None else truth[2],
            "with_truth": rank_correlation(list(defined.values()), [place == 0 for _, place in defined]),
        }
    return {"scorers": scorers, "correlations": _correlations(values)}


def _correlations(values: Mapping[str, Mapping[tuple[str, int], float]]) -> dict[str, dict[str, Any]]:
    """Spearman's correlation of each two scorers, with the number of pairs that both scored."""
    matrix: dict[str, dict[str, Any]] = {}
    for first, own in values.items():
        for second, other in values.items():
            keys = [key for key in own if key in other]
            rho = rank_correlation([own[key] for key in keys], [other[key] for key in keys])
            matrix.setdefault(first, {})[second] = {"rho": rho, "n": len(keys)}
    return matrix


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def as_text(results: Mapping[str, Any]) -> str:
    """The results as two tables."""
    names = list(results["scorers"])
    head = (
        f"{'':12}{'n':>4}{'undefined':>10}{'true>false':>11}{'wins':>9}{'with truth':>11}{'true':>7}"
        f"{'false':>7}{'tokens':>8}{'computed':>9}{'seconds':>8}"
    )
    lines = [head]
    for name, own in results["scorers"].items():
        wins = "-" if own["wins"] is None else f"{own['wins']} of {own['units']}"
        figures = [own[key] for key in ("true_above_false", "with_truth", "mean_true", "mean_false")]
        above, with_truth, true, false = ("-" if x is None else f"{x:.2f}" for x in figures)
        lines.append(
            f"{name:12}{own['n']:4}{own['undefined']:10}{above:>11}{wins:>9}{with_truth:>11}{true:>7}"
            f"{false:>7}{own['prompt_tokens']:8.0f}{own['computed_tokens'] or 0:9.0f}{own['seconds']:8.1f}"
        )
    lines += ["", f"{'':12}" + "".join(f"{name:>12}" for name in names)]
    for first in names:
        row = (results["correlations"][first][second] for second in names)
        cells = (("-" if x["rho"] is None else f"{x['rho']:.2f}") + f" ({x['n']})" for x in row)
        lines.append(f"{first:12}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
