"""Explanations, predictions and scores as rows of a Parquet table, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import MOST_BACKGROUND, MOST_RECORDS
from neuroexplain.evidence import (
    SPLITS,
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Segment,
    Status,
    StoredScore,
    TextPart,
)
from neuroexplain.formats._parquet_tables import NOT_STORED
from neuroexplain.scoring.codecs import CODECS, Codec
from neuroexplain.units import CROP_LENGTH, PREDICTED_KINDS, RECORD_LENGTH, SEGMENT_LENGTH, UnitId

MOST_RANKS = MOST_BACKGROUND + MOST_RECORDS + 1  # of a background, which begins with random records
Array: TypeAlias = NDArray[np.float32]


def score_row(stored: StoredScore) -> dict[str, Any]:
    names = ("explanation_id", "scorer", "scorer_model")
    return _unit_columns(stored.unit) | asdict(stored.score) | {name: getattr(stored, name) for name in names}


def explanation_row(explanation: Explanation) -> dict[str, Any]:
    return _common_columns(explanation)


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    return _common_columns(prediction) | {"records": [_record_row(record) for record in prediction.records]}


def _common_columns(stored: Explanation | Prediction) -> dict[str, Any]:
    """The columns of explanations and predictions: unit, fields of plain types, and provenance."""
    names = [name for name in stored.__dataclass_fields__ if name not in ("unit", "provenance", "records")]
    provenance = asdict(stored.provenance) | {"sampling": json.dumps(dict(stored.provenance.sampling))}
    return _unit_columns(stored.unit) | {name: getattr(stored, name) for name in names} | provenance


def _unit_columns(unit: UnitId) -> dict[str, int]:
    return {"layer": unit.layer, "neuron": unit.index}


def _record_row(record: PredictedRecord) -> dict[str, Any]:
    arrays = {name: _without_nan(getattr(record, name)) for name in ("values", "detail", "control")}
    return {"kind": record.kind, "rank": record.rank, "first": record.first, **arrays}


def _without_nan(values: Any) -> list[float | None] | None:
    return None if values is None else [None if np.isnan(value) else float(value) for value in values]


def segment_of(row: Mapping[str, Any]) -> Segment:
    """Raises ValueError if a segment does not hold 128 or 64 token ids below 2^24."""
    ids = np.array(row["token_ids"], np.int64)
    if len(ids) not in (SEGMENT_LENGTH, RECORD_LENGTH) or ids.min() < 0 or ids.max() >= 1 << 24:
        raise ValueError(f"segment {row['segment']} does not hold {SEGMENT_LENGTH} token ids of 0 to 2^24")
    if row["split"] not in (None, *SPLITS):
        raise ValueError(f"segment {row['segment']} has no split {row['split']!r}")
    return Segment(row["segment"], ids.astype(np.uint32), row["split"])


def explanation_of(row: Mapping[str, Any], prompts: Collection[str | None]) -> Explanation:
    """Raises ValueError for an impossible value, or a prompt that is not one of `prompts`."""
    names = set(Explanation.__dataclass_fields__) - {"unit", "provenance"}
    values: dict[str, Any] = {
        name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names
    }
    if values["status"] == Status.OK and values["text"] is None:
        raise ValueError(f"explanation {values['id']} has no text")
    values["status"] = Status(values["status"])
    return Explanation(
        unit=UnitId(row["layer"], row["neuron"]), provenance=_provenance_of(row, prompts), **values
    )


def prediction_of(
    row: Mapping[str, Any], prompts: Collection[str | None], part: TextPart = "whole"
) -> Prediction:
    """Raises ValueError as explanation_of does, and for an unknown codec."""
    names = set(Prediction.__dataclass_fields__) - {"unit", "provenance", "records", *NOT_STORED}
    codec = CODECS.get(row["codec"])
    if codec is None:
        raise ValueError(f"there is no codec {row['codec']}")
    records = tuple(_record_of(record, codec) for record in row["records"])
    if len({len(record.values) for record in records}) > 1:
        raise ValueError("predicted records are of different lengths")
    guesses = None if row["guesses"] is None else tuple(row["guesses"])
    if guesses is not None and not all(math.isfinite(guess) and guess >= 0 for guess in guesses):
        raise ValueError("a guess is not finite or below 0")
    if row["n_background"] is not None and row["n_background"] not in range(1, MOST_RANKS):
        raise ValueError(f"{row['n_background']} records of a background cannot be read")
    if row["n_read"] is not None and row["n_read"] not in range(1, 256):
        raise ValueError(f"{row['n_read']} records of a split cannot be read")
    if row["n_hard"] is not None and row["n_hard"] not in range(256):
        raise ValueError(f"{row['n_hard']} hard negatives cannot be read")
    return Prediction(
        unit=UnitId(row["layer"], row["neuron"]),
        provenance=_provenance_of(row, prompts),
        records=records,
        part=part,
        **{name: row[name] for name in names} | {"status": Status(row["status"]), "guesses": guesses},
    )


def _provenance_of(row: Mapping[str, Any], prompts: Collection[str | None]) -> Provenance:
    values = {name: row[name] for name in Provenance.__dataclass_fields__}
    sampling = json.loads(values["sampling"])
    if not isinstance(sampling, dict):
        raise ValueError("sampling is not an object")
    if values["prompt_sha256"] not in prompts:
        raise ValueError(f"the prompt {values['prompt_sha256']} is missing")
    return Provenance(**(values | {"sampling": sampling}))


def _record_of(row: Mapping[str, Any], codec: Codec) -> PredictedRecord:
    values, detail, control = (_array_of(row[name]) for name in ("values", "detail", "control"))
    if values is None or not _is_possible(row, codec, values, detail, control):
        raise ValueError(f"the predicted record {row['kind']} {row['rank']} holds impossible values")
    return PredictedRecord(row["kind"], row["rank"], row["first"], values, detail, control)


def _array_of(values: Sequence[float | None] | None) -> Array | None:
    return None if values is None else np.array([np.nan if v is None else v for v in values], np.float32)


def _is_possible(
    row: Mapping[str, Any], codec: Codec, values: Array, detail: Array | None, control: Array | None
) -> bool:
    """Whether the record exists and its values fit their codec."""
    n, greatest = len(values), float(np.finfo(codec.dtype).max)
    is_mass = codec.detail_is_mass
    return (
        row["kind"] in (*PREDICTED_KINDS, "background")
        and row["rank"] in range(256 if row["kind"] in PREDICTED_KINDS else MOST_RANKS)
        and row["first"] in range(RECORD_LENGTH - n + 1)
        and n > 0
        and all(array is None or len(array) == n for array in (detail, control))
        and (not is_mass or n == CROP_LENGTH)  # levels are predicted for a crop
        and not any(array is not None and (np.abs(array) > greatest).any() for array in (values, control))
        and (not is_mass or detail is None or bool(((detail >= 0) & (detail <= 1)).all()))
        and (codec.n_of_window in (None, n) and _are_possible(codec, values, detail, control))
    )


def _are_possible(codec: Codec, *arrays: Array | None) -> bool:
    """Whether what has bounds is missing or inside them."""
    if codec.bounds is None:
        return True
    low, high = codec.bounds
    return not any(array is not None and ((array < low) | (array > high)).any() for array in arrays)
