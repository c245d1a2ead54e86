"""Store what units do on the records of their look-alikes, and merge it from another database."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection

from neuroexplain.arrays import HardRecords
from neuroexplain.store import tables as t
from neuroexplain.store.copy_rows import as_maps, insert_rows
from neuroexplain.store.engine import Store
from neuroexplain.store.hard import COLUMNS
from neuroexplain.store.packing import checksum_of, pack_activations, pack_array
from neuroexplain.store.reader import Reader
from neuroexplain.store.rows import sql_in
from neuroexplain.store.statements import Row, insert_tuples
from neuroexplain.units import UnitSide


def save_hard(store: Store, run_id: int, dtype: str, measured: Mapping[UnitSide, HardRecords]) -> None:
    """Store what was measured in one transaction; a side that is stored already keeps its row.

    dtype: the run's. Raises ValueError if an activation is not one of its values.
    """
    rows = (_row(run_id, side, records, dtype) for side, records in measured.items())
    with store.write() as connection:
        insert_tuples(connection, t.hard_records, rows, skip_existing=True)


def _row(run_id: int, unit_side: UnitSide, records: HardRecords, dtype: str) -> Row:
    unit, side = unit_side
    blobs = [pack_array(name, getattr(records, name)) for name in COLUMNS]
    blobs.append(pack_activations(records.activations, dtype))
    return run_id, unit.layer, unit.index, side, *blobs, checksum_of(b"".join(blobs))


def merge_hard(
    connection: Connection, part: Reader, part_run: int, run_id: int, layer: int, units: Collection[int]
) -> None:
    """Copy what a part measured of some units of a layer; a side that is stored already keeps its row."""
    rows = hard_rows_of(part, part_run, layer, units).values()
    insert_rows(connection, t.hard_records, ({**row, "run_id": run_id} for row in rows), skip_existing=True)


def find_other_hard(part: Mapping[Any, Any], stored: Mapping[Any, Any]) -> set[int]:
    """The units of which two databases measured different values. Both: of hard_rows_of."""
    both = part.keys() & stored.keys()
    return {key[0] for key in both if part[key]["checksum"] != stored[key]["checksum"]}


def hard_rows_of(
    reader: Reader, run_id: int, layer: int, units: Collection[int]
) -> dict[tuple[int, str], dict[str, Any]]:
    """The rows of some units, by unit and side."""
    where = f"run_id = :run AND layer = :layer AND unit {sql_in(units)}"
    rows = as_maps(reader, f"SELECT * FROM hard_records WHERE {where}", run=run_id, layer=layer)
    return {(row["unit"], row["side"]): row for row in rows}
