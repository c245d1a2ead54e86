"""Parquet exports of the first version: what their tables are called, and their rows as this version has them.

There a score had one row with several metrics, and a prediction was a simulation.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

FOLDERS = {"predictions": "simulations"}
RENAMED = {
    "simulator": "scorer",
    "simulator_model": "scorer_model",
    "other_explanation_id": "control_explanation_id",
}
METRICS = ("r_squared", "absolute_deviation_explained")  # beside the correlation, which always has its row
OF_CORRELATION = ("ci_low", "ci_high", "ci_reason", "control", "control_explanation_id", "control_reason")
RECORD = {"expected_levels": "values", "digit_mass": "detail", "other_levels": "control"}


def as_now(rows: pa.Table, table: str) -> pa.Table:
    """A table's rows with the columns of this version; unchanged where they have them already."""
    if "simulator" in rows.column_names:
        rows = rows.rename_columns([RENAMED.get(name, name) for name in rows.column_names])
        rows = _scores(rows) if table == "scores" else _predictions(rows)
    if table == "explanations" and "side" not in rows.column_names:
        rows = rows.append_column("side", pa.array(["positive"] * rows.num_rows, pa.string()))
    return rows


def _scores(rows: pa.Table) -> pa.Table:
    """A row for each metric that has a value, and for the correlation in any case."""
    made: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        row |= {"subset": row.pop("kind"), "metric": "correlation", "value": row.pop("correlation")}
        row |= {"control": row.pop("other_correlation"), "control_reason": row.pop("other_reason")}
        row.pop("calibration_reason", None)
        others = {metric: row.pop(metric) for metric in METRICS}
        made.append(row)
        made += [
            {
                **row,
                **dict.fromkeys(OF_CORRELATION),
                "metric": metric,
                "value": value,
                "status": "ok",
                "reason": None,
            }
            for metric, value in others.items()
            if value is not None
        ]
    return pa.Table.from_pylist(made)


def _predictions(rows: pa.Table) -> pa.Table:
    made = [
        {
            **row,
            "codec": "levels",
            "records": [
                {RECORD.get(name, name): value for name, value in record.items()} for record in row["records"]
            ],
        }
        for row in rows.to_pylist()
    ]
    return pa.Table.from_pylist(made)
