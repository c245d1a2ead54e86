"""Convert Parquet exports of version 1: their run, the folders of their tables, and their rows.

In version 1 a score had one row with several metrics, a prediction was called a simulation, and all units
were MLP neurons of one width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

FOLDERS = {"predictions": "simulations"}
COLUMNS = {
    "simulator": "scorer",
    "simulator_model": "scorer_model",
    "other_explanation_id": "control_explanation_id",
}
RECORD_FIELDS = {"expected_levels": "values", "digit_mass": "detail", "other_levels": "control"}
OTHER_METRICS = ("r_squared", "absolute_deviation_explained")  # than the correlation
CORRELATION_ONLY = ("ci_low", "ci_high", "ci_reason", "control", "control_explanation_id", "control_reason")


def run_fields_as_now(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of run.json that version 1 lacks or has in another form.

    The activation tells whether neurons were read at the input or at the output of their module. Raises
    ValueError if `d_mlp` is not a width.
    """
    width, layers, config = fields.get("d_mlp"), fields.get("layers"), fields.get("config")
    is_width = type(width) is int and 0 < width < 1 << 31
    if not is_width or not isinstance(layers, list) or not isinstance(config, dict):
        raise ValueError(f"d_mlp is {json.dumps(width)[:60]}")
    source = {
        "kind": "mlp",
        "module": None,
        "side": "output" if fields.get("activation") == "act" else "input",
        "width": width,
        "dtype": fields.get("dtype"),
        "group_size": None,
        "encoder": None,
    }
    is_collected = "model" in config  # not imported: the same `collect` command then finds this run
    return {
        "sources": [{"layer": layer, **source} for layer in layers],
        "rectified": False,
        "config": {**config, "source": "mlp"} if is_collected else config,
    }


def rows_as_now(rows: pa.Table, table: str) -> pa.Table:
    """A table's rows with the columns of this version; rows that have them are returned unchanged."""
    if "simulator" in rows.column_names:
        rows = rows.rename_columns([COLUMNS.get(name, name) for name in rows.column_names])
        rows = _scores(rows) if table == "scores" else _predictions(rows)
    if table == "explanations" and "side" not in rows.column_names:
        rows = rows.append_column("side", pa.array(["positive"] * rows.num_rows, pa.string()))
    return rows


def _scores(rows: pa.Table) -> pa.Table:
    """A row for the correlation of each row, and one for each other metric that has a value."""
    scores: list[dict[str, Any]] = []
    for row in rows.to_pylist():
        row |= {"subset": row.pop("kind"), "metric": "correlation", "value": row.pop("correlation")}
        row |= {"control": row.pop("other_correlation"), "control_reason": row.pop("other_reason")}
        row.pop("calibration_reason", None)
        other_values = {metric: row.pop(metric) for metric in OTHER_METRICS}
        scores.append(row)
        other = row | dict.fromkeys(CORRELATION_ONLY) | {"status": "ok", "reason": None}
        for metric, value in other_values.items():
            if value is not None:
                scores.append(other | {"metric": metric, "value": value})
    return pa.Table.from_pylist(scores)


def _predictions(rows: pa.Table) -> pa.Table:
    predictions = []
    for row in rows.to_pylist():
        records = [
            {RECORD_FIELDS.get(name, name): value for name, value in record.items()}
            for record in row["records"]
        ]
        predictions.append(row | {"codec": "levels", "records": records})
    return pa.Table.from_pylist(predictions)
