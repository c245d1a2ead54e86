"""The measured records of look-alikes as rows of a Parquet table, and back: a row for each side of a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.arrays import HardRecords
from neuroexplain.formats._parquet_tables import DamagedFolder, read_batches
from neuroexplain.runs import Run
from neuroexplain.scoring.look_alikes import MOST_MEASURED, REASONS
from neuroexplain.store.engine import Store
from neuroexplain.store.hard import load_hard_rows
from neuroexplain.store.packing import pack_activations
from neuroexplain.store.save_hard import save_hard
from neuroexplain.units import RECORD_LENGTH, SEGMENT_LENGTH, UnitId, UnitSide

ARRAYS = {"segments": np.uint32, "starts": np.uint8, "others": np.uint32, "activations": np.float32}


def hard_rows(store: Store, run: Run, layer: int) -> Iterator[dict[str, Any]]:
    """A row for each side of a layer's units that was measured."""
    for row in load_hard_rows(store, run, layer):
        arrays = {name: getattr(row.records, name).reshape(-1).tolist() for name in ARRAYS}
        reasons = [REASONS[reason] for reason in row.records.reasons.tolist()]
        yield {"layer": layer, "neuron": row.unit.index, "side": row.side, "reasons": reasons, **arrays}


def import_hard(
    store: Store,
    run_id: int,
    folder: Path,
    run: Run,
    layer: int,
    limits: Mapping[str, range],
    segments: NDArray[np.int64],
) -> None:
    """Store what was measured of a layer. segments: the numbers of those that are stored, ascending.

    Raises DamagedFolder for impossible values.
    """
    decode = partial(_records_of, run=run, layer=layer, segments=segments)
    measured: dict[UnitSide, HardRecords] = {}
    for batch in read_batches(folder, "hard", decode, {"neuron": limits["neuron"]}, layer):
        for side, records in batch:
            if side in measured:
                raise DamagedFolder(folder / "hard", f"unit {side[0]} is there twice")
            measured[side] = records
    save_hard(store, run_id, run.dtype, measured)


def _records_of(
    row: Mapping[str, Any], run: Run, layer: int, segments: NDArray[np.int64]
) -> tuple[UnitSide, HardRecords]:
    """One side's records. Raises ValueError for impossible values."""
    arrays = {name: np.array(row[name], dtype) for name, dtype in ARRAYS.items()}
    n, name = len(arrays["segments"]), f"unit {layer}:{row['neuron']}"
    activations = arrays["activations"]
    if {len(arrays["starts"]), len(arrays["others"]), len(row["reasons"])} != {n} or n > MOST_MEASURED:
        raise ValueError(f"segments, starts, reasons and others of {name} differ in number")
    if len(activations) != n * RECORD_LENGTH or not np.isfinite(activations).all():
        raise ValueError(f"{name} has not {RECORD_LENGTH} finite activations for each record")
    if row["side"] not in run.sides or not set(row["reasons"]) <= set(REASONS):
        raise ValueError(f"{name} has an unknown side or reason")
    if not np.isin(arrays["segments"], segments).all():
        raise ValueError(f"records of {name} are of segments that are missing")
    if (arrays["starts"] > SEGMENT_LENGTH - RECORD_LENGTH).any() or (
        arrays["others"] >= run.width(layer)
    ).any():
        raise ValueError(f"a record of {name} is outside of its segment, or of no unit")
    pack_activations(activations, run.dtype)  # raises for what is no value of the dtype
    arrays["activations"] = activations.reshape(n, RECORD_LENGTH)
    reasons = np.array([REASONS.index(reason) for reason in row["reasons"]], np.uint8)
    return (UnitId(layer, row["neuron"]), row["side"]), HardRecords(**arrays, reasons=reasons)
