"""What could not be explained or scored, and why."""

from __future__ import annotations

from collections.abc import Collection

from neuroexplain.evidence import NOT_FAILED, POPULATION, TEXT_PARTS, Failure, Status
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import PREDICTION_TABLES, SCORE_TABLES
from neuroexplain.store.rows import sql_in
from neuroexplain.units import UnitId


def list_failures(
    store: Store,
    run: Run,
    metrics: Collection[str],
    layers: Collection[int] | None,
    limit: int,
    offset: int = 0,
) -> list[Failure]:
    """Explanations that failed and main scores that are undefined, in the order of units.

    `offset` of them are skipped. `metrics` are the scorers' main ones: a prediction that failed is an
    undefined score of such a metric, with its status, reason and reply. Those of rules alone are among them.
    """
    failures = f"SELECT * FROM ({_failures(run, metrics, layers)}) AS failures"
    sql = f"{failures} ORDER BY layer, unit, id, what LIMIT :n OFFSET :first"
    values = {"run": run.id, "n": limit, "first": offset, **_values(run, metrics)}
    with store.read() as reader:
        rows = reader.rows(sql, **values)
    return [
        Failure(UnitId(row.layer, row.unit), row.what, Status(row.status), row.reason, row.reply)
        for row in rows
    ]


def count_failures(store: Store, run: Run, metrics: Collection[str]) -> dict[str, int]:
    """The number of the failures that list_failures has, by status, the most frequent first."""
    failures = _failures(run, metrics, None)
    sql = f"SELECT status, count(*) AS n FROM ({failures}) AS failures GROUP BY status"
    with store.read() as reader:
        rows = reader.rows(f"{sql} ORDER BY n DESC, status", run=run.id, **_values(run, metrics))
    return {row.status: row.n for row in rows}


def _subsets(run: Run) -> list[str]:
    """The records whose scores are main ones: a judge's are of the population in any run."""
    return list(dict.fromkeys((*run.headline.subsets, POPULATION)))


def _values(run: Run, metrics: Collection[str]) -> dict[str, str]:
    """The values of the `:names` in _failures."""
    subsets = {f"subset_{n}": subset for n, subset in enumerate(_subsets(run))}
    return subsets | {f"metric_{n}": metric for n, metric in enumerate(metrics)}


def _failures(run: Run, metrics: Collection[str], layers: Collection[int] | None) -> str:
    """Failed explanations, and undefined main scores with the replies of failed predictions."""
    subsets = ", ".join(f":subset_{n}" for n in range(len(_subsets(run))))
    names = ", ".join(f":metric_{n}" for n in range(len(metrics)))
    fine = ", ".join(f"'{status}'" for status in NOT_FAILED)
    of_layers = "" if layers is None else f" AND e.layer {sql_in(layers)}"
    parts = [
        "SELECT e.layer, e.unit, e.id, e.explainer AS what, e.status, e.reason, e.reply FROM explanations e "
        f"WHERE e.run_id = :run AND e.status NOT IN ({fine}){of_layers}"
    ]
    for part in TEXT_PARTS:
        what = "s.scorer" if part == "whole" else "s.scorer || ', rule'"
        of_score = "p.explanation_id = s.explanation_id AND p.scorer = s.scorer AND p.model = s.scorer_model"
        parts.append(
            f"SELECT e.layer, e.unit, e.id, {what} AS what, s.status, s.reason, p.reply "
            f"FROM {SCORE_TABLES[part]} s JOIN explanations e ON e.id = s.explanation_id "
            f"LEFT JOIN {PREDICTION_TABLES[part]} p ON {of_score} "
            f"WHERE s.run_id = :run AND s.metric IN ({names}) AND s.subset IN ({subsets}) "
            f"AND s.split = 'report' AND s.value IS NULL AND s.status NOT IN ({fine}){of_layers}"
        )
    return " UNION ALL ".join(parts)
