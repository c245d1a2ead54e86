"""Explanations, predictions and scores as rows of a Parquet table, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from neuroexplain.evidence import (
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Segment,
    Status,
    StoredScore,
)
from neuroexplain.scoring.codecs import CODECS, Codec
from neuroexplain.units import CROP_LENGTH, KINDS, RECORD_LENGTH, SEGMENT_LENGTH, UnitId


def neuron_row(neuron: UnitId) -> dict[str, int]:
    return {"layer": neuron.layer, "neuron": neuron.index}


def score_row(stored: StoredScore) -> dict[str, Any]:
    whose = {name: getattr(stored, name) for name in ("explanation_id", "scorer", "scorer_model")}
    return neuron_row(stored.unit) | asdict(stored.score) | whose


def explanation_row(one: Any) -> dict[str, Any]:
    row = {
        name: getattr(one, name)
        for name in one.__dataclass_fields__
        if name not in ("unit", "provenance", "records")
    }
    provenance = asdict(one.provenance) | {"sampling": json.dumps(dict(one.provenance.sampling))}
    return neuron_row(one.unit) | row | provenance


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    def listed(values: Any) -> list[float | None] | None:
        return None if values is None else [None if np.isnan(v) else float(v) for v in values]

    names = ("values", "detail", "control")
    records = [
        {
            "kind": r.kind,
            "rank": r.rank,
            "first": r.first,
            **{name: listed(getattr(r, name)) for name in names},
        }
        for r in prediction.records
    ]
    return explanation_row(prediction) | {"records": records}


def segment_of(row: Mapping[str, Any]) -> Segment:
    ids = np.array(row["token_ids"], np.int64)
    if len(ids) not in (SEGMENT_LENGTH, RECORD_LENGTH) or ids.min() < 0 or ids.max() >= 1 << 24:
        raise ValueError(f"segment {row['segment']} does not hold {SEGMENT_LENGTH} token ids of 0 to 2^24")
    return Segment(row["segment"], ids.astype(np.uint32))


def provenance_of(row: Mapping[str, Any], prompts: Collection[str | None]) -> Provenance:
    values = {name: row[name] for name in Provenance.__dataclass_fields__}
    sampling = json.loads(values["sampling"])
    if not isinstance(sampling, dict):
        raise ValueError("sampling is not an object")
    if values["prompt_sha256"] not in prompts:
        raise ValueError(f"the prompt {values['prompt_sha256']} is missing")
    return Provenance(**(values | {"sampling": sampling}))


def explanation_of(row: Mapping[str, Any], prompts: Collection[str | None]) -> Explanation:
    names = set(Explanation.__dataclass_fields__) - {"unit", "provenance"}
    values: dict[str, Any] = {
        name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names
    }
    if values["status"] == Status.OK and values["text"] is None:
        raise ValueError(f"explanation {values['id']} has no text")
    values["status"] = Status(values["status"])
    return Explanation(
        unit=UnitId(row["layer"], row["neuron"]), provenance=provenance_of(row, prompts), **values
    )


def prediction_of(row: Mapping[str, Any], prompts: Collection[str | None]) -> Prediction:
    names = set(Prediction.__dataclass_fields__) - {"unit", "provenance", "records"}
    if row["codec"] not in CODECS:
        raise ValueError(f"there is no codec {row['codec']}")
    records = tuple(record_of(record, CODECS[row["codec"]]) for record in row["records"])
    if len({len(r.values) for r in records}) > 1:
        raise ValueError("predicted records are of different lengths")
    return Prediction(
        unit=UnitId(row["layer"], row["neuron"]),
        provenance=provenance_of(row, prompts),
        records=records,
        **{name: row[name] for name in names} | {"status": Status(row["status"])},
    )


def record_of(row: Mapping[str, Any], codec: Codec) -> PredictedRecord:
    values, detail, control = (
        None
        if (numbers := row[name]) is None
        else np.array([np.nan if v is None else v for v in numbers], np.float32)
        for name in ("values", "detail", "control")
    )
    n = 0 if values is None else len(values)
    is_placed = (
        row["kind"] in KINDS and row["rank"] in range(256) and row["first"] in range(RECORD_LENGTH - n + 1)
    )
    is_whole = values is not None and n > 0 and all(x is None or len(x) == n for x in (detail, control))
    is_whole &= not codec.in_steps or n == CROP_LENGTH  # levels are of a crop
    most = float(np.finfo(codec.dtype).max)
    is_finite = not any(x is not None and (np.abs(x) > most).any() for x in (values, control))
    is_mass = not codec.in_steps or detail is None or bool(((detail >= 0) & (detail <= 1)).all())
    if not (is_placed and is_whole and is_finite and is_mass):
        raise ValueError(
            f"the predicted record {row['kind']} {row['rank']} does not hold what its scorer predicts"
        )
    assert values is not None
    return PredictedRecord(row["kind"], row["rank"], row["first"], values, detail, control)
