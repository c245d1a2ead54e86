"""The column types of the tables, and the columns that several tables have."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Column, Float, ForeignKey, Integer, LargeBinary, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from neuroexplain.store.packing import pack_array, unpack_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates, which no database can hold


class PackedArray(TypeDecorator[Any]):
    """A one-dimensional array in a blob. Its dtype is that of the column's name in packing.DTYPES."""

    impl = LargeBinary
    cache_ok = True

    def __init__(self, column: str) -> None:
        super().__init__()
        self.column = column

    def process_bind_param(self, value: NDArray[Any] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else pack_array(self.column, value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> NDArray[Any] | None:
        return None if value is None else unpack_array(self.column, value)


def packed(name: str) -> Column[Any]:
    return Column(name, PackedArray(name), nullable=False)


class SafeText(TypeDecorator[str]):
    """Text of a corpus or an LLM, stored as safe_text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else safe_text(value)


def safe_text(text: str) -> str:
    """The text with NUL and lone surrogates replaced by U+FFFD."""
    return UNSTORABLE.sub("\ufffd", text)


def bound_value(dialect: Dialect, column: Column[Any], value: Any) -> Any:
    """A value of Python as a driver takes it for this column; JSON as text."""
    if value is None:
        return None
    if isinstance(column.type, JSON):
        return json.dumps(value)
    if isinstance(column.type, PackedArray | SafeText):
        return column.type.process_bind_param(value, dialect)
    return value


def of_run() -> Column[int]:
    return Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


def key_of_layer() -> list[Column[Any]]:
    """The run and the layer, in the primary key."""
    run = Column("run_id", Integer, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    return [run, Column("layer", Integer, primary_key=True, autoincrement=False)]


def key_of_unit() -> list[Column[Any]]:
    """The run, the layer and the unit, in the primary key."""
    return [*key_of_layer(), Column("unit", Integer, primary_key=True, autoincrement=False)]


def of_provenance() -> list[Column[Any]]:
    return [
        Column("engine", String(16), nullable=False),
        Column("engine_version", SafeText),
        Column("model", SafeText, nullable=False),
        Column("model_revision", SafeText),
        Column("prompt_sha256", String(64), ForeignKey("prompts.sha256")),
        Column("sampling", JSON, nullable=False),
        Column("prompt_tokens", Integer, nullable=False),
        Column("completion_tokens", Integer, nullable=False),
        Column("seconds", Float, nullable=False),
        Column("created_at", String(32), nullable=False),
    ]
