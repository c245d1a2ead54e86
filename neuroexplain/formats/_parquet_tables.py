"""The tables of a Parquet export: their columns, how rows are written, and how they are read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import (
    Explanation,
    Prediction,
    Provenance,
    Score,
    Stats,
    Status,
    VocabularyEntry,
)
from neuroexplain.formats import _parquet_version_1 as version_1
from neuroexplain.units import RECORD_LENGTH

VERSION = 2
TABLES = (
    "neurons",
    "exemplars",
    "explanations",
    "scores",
    "predictions",
    "segments",
    "vocabulary",
    "prompts",
)
READINGS = {
    "promoted_ids": pa.list_(pa.uint32()),
    "suppressed_ids": pa.list_(pa.uint32()),
    "promoted_logits": pa.list_(pa.float32()),
    "suppressed_logits": pa.list_(pa.float32()),
}
PLACES = {"segments": np.uint32, "starts": np.uint8, "documents": np.int32, "token_offsets": np.int32}
AT_ONCE = 500  # rows of a table that are in memory
COLUMN_TYPES: dict[Any, Any] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    tuple[int, ...]: pa.list_(pa.int64()),
    tuple[str, ...]: pa.list_(pa.string()),
}
RECORDS = pa.list_(
    pa.struct(
        [("kind", pa.string()), ("rank", pa.int64()), ("first", pa.int64())]
        + [(name, pa.list_(pa.float32())) for name in ("values", "detail", "control")]
    )
)
LATER = ("created_at",)  # columns that earlier exports lack
T = TypeVar("T")


class DamagedFolder(NeuroexplainError):
    """An exported folder is not as it was written."""

    def __init__(self, file: Path, how: object) -> None:
        said = str(how).strip("'.\n")
        super().__init__(
            f"{file} is damaged: {said}. Nothing of it was imported. Copy or export the folder anew."
        )


def table_schema(table: str) -> pa.Schema:
    """A table's columns: the same in every file, also where all values of one are missing."""
    neuron = [("layer", pa.int64()), ("neuron", pa.int64())]
    scored = [("explanation_id", pa.int64()), ("scorer", pa.string()), ("scorer_model", pa.string())]
    placed = [(name, pa.from_numpy_dtype(dtype)) for name, dtype in PLACES.items()]
    activations = ("activations", pa.list_(pa.float32(), RECORD_LENGTH))
    columns: dict[str, list[Any]] = {
        "vocabulary": _columns(VocabularyEntry),
        "segments": [("segment", pa.int64()), ("token_ids", pa.list_(pa.int64()))],
        "prompts": [("sha256", pa.string()), ("name", pa.string()), ("text", pa.string())],
        "explanations": [*neuron, *_columns(Explanation), *_columns(Provenance)],
        "predictions": [*neuron, *_columns(Prediction), *_columns(Provenance), ("records", RECORDS)],
        "scores": [*neuron, *_columns(Score), *scored],
        "neurons": [*neuron, *_columns(Stats), *READINGS.items()],
        "exemplars": [
            *neuron,
            ("kind", pa.string()),
            ("rank", pa.int64()),
            *placed,
            ("activation", pa.float32()),
            activations,
        ],
    }
    fields = (one if isinstance(one, pa.Field) else pa.field(*one, nullable=False) for one in columns[table])
    return pa.schema(fields)


def _columns(kind: type) -> list[pa.Field]:
    """The fields of a type from types.py as columns; mappings are JSON; what has parts of its own is left out."""
    found = []
    for name, hint in get_type_hints(kind).items():
        inner = next((one for one in get_args(hint) if one in COLUMN_TYPES), hint)  # of `X | None`
        if get_origin(hint) is Literal or get_origin(hint) is Mapping or hint is Status:
            inner = str
        if inner in COLUMN_TYPES and name not in ("unit", "records"):
            found.append(pa.field(name, COLUMN_TYPES[inner], nullable=NoneType in get_args(hint)))
    return found


def write_rows(folder: Path, table: str, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as they come; no file where there are none."""
    schema, waiting = table_schema(table), iter(rows)
    some = list(islice(waiting, AT_ONCE))
    if not some:
        return
    with pq.ParquetWriter(folder / table / f"{name}.parquet", schema, compression="zstd") as file:
        while some:
            file.write_table(pa.Table.from_pylist(some, schema))
            some = list(islice(waiting, AT_ONCE))


def _checked(rows: pa.Table, table: str, limits: Mapping[str, range]) -> pa.Table:
    """The rows with their table's columns. Raises KeyError or ValueError for a column that is missing, or not what it was.

    Neurons may lack their statistics, and their vocabulary readings. A file without rows may have no columns either.
    """
    schema = table_schema(table)
    if not rows.num_rows:
        return schema.empty_table()
    for name in set(LATER) & set(schema.names) - set(rows.column_names):
        rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
    if table == "neurons":
        absent = [
            name
            for group in (Stats.__dataclass_fields__, READINGS)
            for name in group
            if not {*group} & {*rows.column_names}
        ]
        schema = pa.schema([one for one in schema if one.name not in absent])
    found = rows.select(schema.names).cast(schema)
    for name, column in zip(schema.names, found.columns, strict=True):
        is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        if is_list and pc.list_flatten(column).null_count:
            raise ValueError(f"values are missing in {name}")
        if name in limits and not all(end in limits[name] for end in pc.min_max(column).as_py().values()):
            raise ValueError(f"{name} is not always one of {limits[name].start} to {limits[name].stop - 1}")
    return found


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raises DamagedFolder where what a file holds cannot be read, or is not what its table is for."""
    try:
        yield
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException) as error:
        raise DamagedFolder(file, error) from error


def read_table(folder: Path, table: str, limits: Mapping[str, range], layer: int) -> tuple[Path, pa.Table]:
    """One layer's file, and what it holds."""
    file = folder / table / f"layer-{layer:03}.parquet"
    names = table_schema(table).names
    with reading(file), pq.ParquetFile(file) as opened:
        there = [name for name in opened.schema_arrow.names if name in names]
        return file, _checked(opened.read(there), table, {**limits, "layer": range(layer, layer + 1)})


def read_batches(
    folder: Path,
    table: str,
    make: Callable[[dict[str, Any]], T],
    limits: Mapping[str, range],
    layer: int | None = None,
) -> Iterator[list[T]]:
    """What is made of the rows of a table's files, or of one layer's, some at a time, in the order they were written."""
    if layer is not None:
        limits = {**limits, "layer": range(layer, layer + 1)}
    place = _folder_of(folder, table)
    for file in sorted(place.glob("*.parquet" if layer is None else f"layer-{layer:03}.parquet")):
        with reading(file), pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(AT_ONCE):
                rows = version_1.as_now(pa.Table.from_batches([batch]), table)
                yield [make(row) for row in _checked(rows, table, limits).to_pylist()]


def _folder_of(folder: Path, table: str) -> Path:
    """Where a table's files are, by the name that it has now or had in version 1."""
    old = folder / version_1.FOLDERS.get(table, table)
    return old if old.is_dir() else folder / table
