"""Change or damage an export."""

import json

import pyarrow as pa
import pyarrow.parquet as pq


def change_run_json(folder, *without, **changed):
    """Change values of run.json, or leave out some."""
    contents = json.loads((folder / "run.json").read_text()) | changed
    (folder / "run.json").write_text(
        json.dumps({name: value for name, value in contents.items() if name not in without})
    )


def change_table(folder, table, damage):
    """Damage a table's first file.

    `damage` is a function of the rows, new values for the first row, a way to take rows, or a column to drop.
    """
    (file, *_) = sorted((folder / table).glob("*.parquet"))
    rows = pq.read_table(file)
    if callable(damage):
        rows = damage(rows)
    elif isinstance(damage, dict):
        for name, value in damage.items():
            kind = pa.string() if name == "created_at" else rows.schema.field(name).type
            kind = pa.list_(pa.float32()) if name == "activations" else kind
            column = pa.array(
                [value, *rows[name].to_pylist()[1:]], kind if not isinstance(value, int) else pa.int64()
            )
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        return
    else:
        n = rows.num_rows
        taken = {
            "half": range(n // 2),
            "none": range(0),
            "backwards": range(n)[::-1],
            "twice": [*range(n), *range(n)],
        }
        rows = (
            rows.take(pa.array(taken[damage], pa.int64())) if damage in taken else rows.drop_columns([damage])
        )
    pq.write_table(rows, file)
