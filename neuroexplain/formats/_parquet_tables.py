"""The tables of a Parquet export: their columns, how rows are written, and how they are read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, Prediction, Provenance, Score, Stats, Status, VocabularyEntry
from neuroexplain.formats import _parquet_version_1 as version_1
from neuroexplain.store.rows import chunks
from neuroexplain.units import RECORD_LENGTH

VERSION = 2  # of the format; version 1 is converted by _parquet_version_1
TABLES = (
    "neurons",
    "exemplars",
    "samples",
    "background",
    "background_segments",
    "hard",
    "explanations",
    "scores",
    "predictions",
    "rule_scores",
    "rule_predictions",
    "segments",
    "vocabulary",
    "prompts",
)
READINGS = {  # columns of vocabulary readings
    "promoted_ids": pa.list_(pa.uint32()),
    "suppressed_ids": pa.list_(pa.uint32()),
    "promoted_logits": pa.list_(pa.float32()),
    "suppressed_logits": pa.list_(pa.float32()),
}
HISTOGRAM = {"histogram": pa.list_(pa.uint32())}  # of sparse units
NEAREST = {"nearest_units": pa.list_(pa.uint32()), "nearest_cosines": pa.list_(pa.float32())}  # of latents
# Columns of exemplars, named like the arrays of ExemplarArrays.
PLACES = {"segments": np.uint32, "starts": np.uint8, "documents": np.int32, "token_offsets": np.int32}
JOINED = ("text", "control_text")  # fields of predictions that stand with their explanations
NOT_STORED = (*JOINED, "part")  # the table tells the part
AT_ONCE = 500  # rows of a table that are in memory at a time
COLUMN_TYPES: dict[Any, Any] = {
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    bytes: pa.binary(),
    tuple[int, ...]: pa.list_(pa.int64()),
    tuple[float, ...]: pa.list_(pa.float64()),
    tuple[str, ...]: pa.list_(pa.string()),
}
RECORDS = pa.list_(  # a prediction's records
    pa.struct(
        [("kind", pa.string()), ("rank", pa.int64()), ("first", pa.int64())]
        + [(name, pa.list_(pa.float32())) for name in ("values", "detail", "control")]
    )
)
# Values where earlier exports lack a column.
NEW_COLUMNS = {
    "created_at": None,
    "data": None,
    "is_byte": False,
    "split": None,
    "size": None,
    "n_read": None,
    "with_bills": None,
    "has_report": None,
    "effective_records": None,
    "rule": None,
    "examples": None,
    "n_background": None,
    "guesses": None,
    "n_hard": None,
}
T = TypeVar("T")


class DamagedFolder(NeuroexplainError):
    """A file of an export is missing, has changed, or holds impossible values."""

    def __init__(self, file: Path, reason: object) -> None:
        text = str(reason).strip("'.\n")  # the text of a KeyError has quotes
        super().__init__(
            f"{file} is damaged: {text}. Nothing of it was imported. Copy or export the folder again."
        )


def table_schema(table: str) -> pa.Schema:
    """A table's columns, the same in every file, even if all values of a column are missing."""
    neuron = [("layer", pa.int64()), ("neuron", pa.int64())]
    scored = [("explanation_id", pa.int64()), ("scorer", pa.string()), ("scorer_model", pa.string())]
    placed = [(name, pa.from_numpy_dtype(dtype)) for name, dtype in PLACES.items()]
    activations = ("activations", pa.list_(pa.float32(), RECORD_LENGTH))
    predictions = [*neuron, *_columns(Prediction), *_columns(Provenance), ("records", RECORDS)]
    scores = [*neuron, *_columns(Score), *scored]
    columns: dict[str, list[Any]] = {
        "vocabulary": _columns(VocabularyEntry),
        "segments": [
            ("segment", pa.int64()),
            ("token_ids", pa.list_(pa.int64())),
            pa.field("split", pa.string()),
        ],
        "samples": [
            *neuron,
            ("side", pa.string()),
            ("split", pa.string()),
            ("n_records", pa.int64()),
            ("threshold", pa.float64()),
        ],
        "background": [
            *neuron,
            ("records", pa.list_(pa.uint16())),
            ("positions", pa.list_(pa.uint8())),
            ("activations", pa.list_(pa.float32())),
        ],
        "background_segments": [("layer", pa.int64()), ("segments", pa.list_(pa.uint32()))],
        "hard": [
            *neuron,
            ("side", pa.string()),
            ("segments", pa.list_(pa.uint32())),
            ("starts", pa.list_(pa.uint8())),
            ("reasons", pa.list_(pa.string())),
            ("others", pa.list_(pa.uint32())),
            ("activations", pa.list_(pa.float32())),
        ],
        "prompts": [("sha256", pa.string()), ("name", pa.string()), ("text", pa.string())],
        "explanations": [*neuron, *_columns(Explanation), *_columns(Provenance)],
        "predictions": predictions,
        "rule_predictions": predictions,
        "scores": scores,
        "rule_scores": scores,
        "neurons": [*neuron, *_columns(Stats), *READINGS.items(), *HISTOGRAM.items(), *NEAREST.items()],
        "exemplars": [
            *neuron,
            ("kind", pa.string()),
            ("rank", pa.int64()),
            *placed,
            ("activation", pa.float32()),
            pa.field("size", pa.float32()),
            activations,
        ],
    }
    return pa.schema(
        column if isinstance(column, pa.Field) else pa.field(*column, nullable=False)
        for column in columns[table]
    )


def _columns(kind: type) -> list[pa.Field]:
    """A domain type's fields as columns. Mappings are JSON; fields of other types are left out."""
    columns = []
    for name, hint in get_type_hints(kind).items():
        inner = next((arg for arg in get_args(hint) if arg in COLUMN_TYPES), hint)  # of `X | None`
        if get_origin(hint) is Literal or get_origin(hint) is Mapping or hint is Status:
            inner = str
        is_elsewhere = kind is Prediction and name in NOT_STORED
        if inner in COLUMN_TYPES and name not in ("unit", "records") and not is_elsewhere:
            columns.append(pa.field(name, COLUMN_TYPES[inner], nullable=NoneType in get_args(hint)))
    return columns


def layer_name(layer: int) -> str:
    """The name of a layer's files, without their ending."""
    return f"layer-{layer:03}"


def write_rows(folder: Path, table: str, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file, AT_ONCE rows at a time; no file if there are no rows."""
    schema, batches = table_schema(table), chunks(rows, AT_ONCE)
    first = next(batches, None)
    if first is None:
        return
    with pq.ParquetWriter(folder / table / f"{name}.parquet", schema, compression="zstd") as file:
        for batch in chain([first], batches):
            file.write_table(pa.Table.from_pylist(batch, schema))


def _checked(rows: pa.Table, table: str, limits: Mapping[str, range]) -> pa.Table:
    """The rows with their table's columns. `limits` gives the ranges of whole numbers, by column.

    Neurons may lack all columns of their statistics, of their vocabulary readings, of their nearest ones, and
    histograms. A file without rows may lack any column. Raises KeyError or ValueError for another missing
    column or impossible values.
    """
    schema = table_schema(table)
    if not rows.num_rows:
        return schema.empty_table()
    for name in NEW_COLUMNS.keys() & set(schema.names) - set(rows.column_names):
        column = pa.array([NEW_COLUMNS[name]] * rows.num_rows, schema.field(name).type)
        rows = rows.append_column(name, column)
    if table == "neurons":
        groups = ({*Stats.__dataclass_fields__}, {*READINGS}, {*HISTOGRAM}, {*NEAREST})
        absent = {name for group in groups if not group & {*rows.column_names} for name in group}
        schema = pa.schema([column for column in schema if column.name not in absent])
    checked = rows.select(schema.names).cast(schema)
    for name, column in zip(schema.names, checked.columns, strict=True):
        is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        if is_list and pc.list_flatten(column).null_count:
            raise ValueError(f"values are missing in {name}")
        if name in limits and not all(end in limits[name] for end in pc.min_max(column).as_py().values()):
            raise ValueError(f"{name} is not always in {limits[name].start} to {limits[name].stop - 1}")
    return checked


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Wraps the reading of a file: its errors become a DamagedFolder that names the file."""
    try:
        yield
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException) as error:
        raise DamagedFolder(file, error) from error


def read_table(folder: Path, table: str, limits: Mapping[str, range], layer: int) -> tuple[Path, pa.Table]:
    """One layer's file, and its rows. Raises DamagedFolder."""
    file = folder / table / f"{layer_name(layer)}.parquet"
    names = table_schema(table).names
    with reading(file), pq.ParquetFile(file) as opened:
        columns = [name for name in opened.schema_arrow.names if name in names]
        return file, _checked(opened.read(columns), table, {**limits, "layer": range(layer, layer + 1)})


def read_batches(
    folder: Path,
    table: str,
    decode: Callable[[dict[str, Any]], T],
    limits: Mapping[str, range],
    layer: int | None = None,
) -> Iterator[list[T]]:
    """The decoded rows of a table, or of one layer of it, in lists of at most AT_ONCE.

    They come in the order in which they were written. Raises DamagedFolder if a row cannot be decoded.
    """
    if layer is not None:
        limits = {**limits, "layer": range(layer, layer + 1)}
    files = _folder_of(folder, table)
    for file in sorted(files.glob("*.parquet" if layer is None else f"{layer_name(layer)}.parquet")):
        with reading(file), pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(AT_ONCE):
                rows = version_1.rows_as_now(pa.Table.from_batches([batch]), table)
                yield [decode(row) for row in _checked(rows, table, limits).to_pylist()]


def _folder_of(folder: Path, table: str) -> Path:
    """The folder of a table's files, by the name of this version or of version 1."""
    old = folder / version_1.FOLDERS.get(table, table)
    return old if old.is_dir() else folder / table
