"""Rows of the database -> types of the domain, one decoder a type.

A decoder raises StoreUnreadable, naming the row, where a value is cut off or is not what its column is for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from neuroexplain.arrays import ExemplarArrays
from neuroexplain.errors import StoreUnreadable
from neuroexplain.evidence import (
    Exemplar,
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    Status,
    StoredScore,
)
from neuroexplain.runs import Run
from neuroexplain.units import KINDS, RECORD_LENGTH, SEGMENT_LENGTH, Source, UnitId

IDS_AT_ONCE = 10_000  # values in one IN (...): SQLite takes 32,766


@contextmanager
def readable_row(table: str, row: Any) -> Iterator[None]:
    """Reading a row. Raises StoreUnreadable, naming it, where its values are cut off or not what its columns are for.

    SQLite keeps any type in any column, hence TypeError.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        names = [name for name in ("id", "run_id", "layer", "unit", "kind", "segment") if hasattr(row, name)]
        which = ", ".join(f"{name} {getattr(row, name)}" for name in names)
        raise StoreUnreadable(f"A row of {table} ({which}) cannot be read: {error}.") from error


def decode_status(table: str, row: Any) -> Status:
    with readable_row(table, row):
        return Status(row.status)


def decode_segment_ids(row: Any) -> Any:
    """A segment's token ids: 128, or the last 64 of them where no more is known."""
    from neuroexplain.store.packing import unpack_token_ids

    with readable_row("segments", row):
        token_ids = unpack_token_ids(row.token_ids)
        if len(token_ids) not in (SEGMENT_LENGTH, RECORD_LENGTH):
            raise ValueError(f"it holds {len(token_ids)} token ids")
        return token_ids


def decode_exemplar_arrays(rows: Iterable[Any], width: int, dtype: str) -> ExemplarArrays:
    import numpy as np

    from neuroexplain.store.packing import unpack_activations, unpack_array

    found = {row.unit: row for row in rows}
    counts = np.array([len(found[n].starts) if n in found else 0 for n in range(width)])  # a byte each
    k = int(counts.max())
    arrays = {
        name: np.full((width, k), fill, kind)
        for name, fill, kind in (
            ("segments", 0, np.uint32),
            ("starts", 0, np.uint8),
            ("documents", -1, np.int32),
            ("token_offsets", 0, np.int32),
            ("peaks", 0, np.float32),
        )
    }
    activations = np.zeros((width, k, RECORD_LENGTH), np.float32)
    for n, row in found.items():
        with readable_row("exemplars", row):
            for name in ("segments", "starts", "documents", "token_offsets"):
                arrays[name][n, : counts[n]] = unpack_array(name, getattr(row, name)).reshape(counts[n])
            arrays["peaks"][n, : counts[n]] = unpack_activations(row.peaks, dtype).reshape(counts[n])
            activations[n, : counts[n]] = unpack_activations(row.activations, dtype).reshape(
                counts[n], RECORD_LENGTH
            )
    return ExemplarArrays(counts, **arrays, activations=activations)


def decode_exemplars(row: Any, neuron: UnitId, run: Run, ids: Mapping[int, Any]) -> Iterable[Exemplar]:
    from neuroexplain.store.packing import unpack_activations, unpack_array

    arrays = [
        unpack_array(name, getattr(row, name)).tolist()
        for name in ("segments", "starts", "documents", "token_offsets")
    ]
    peaks = unpack_activations(row.peaks, run.dtype).tolist()
    activations = unpack_activations(row.activations, run.dtype).reshape(len(peaks), RECORD_LENGTH)
    for rank, (segment, start, document, token_offset, peak) in enumerate(zip(*arrays, peaks, strict=True)):
        if start > len(ids[segment]) - RECORD_LENGTH:
            raise ValueError(f"there is no record at {start} of segment {segment}")
        yield Exemplar(
            unit=neuron,
            kind=row.kind,
            rank=rank,
            segment=segment,
            start=start,
            document=document if document >= 0 else None,
            token_offset=token_offset if document >= 0 else None,
            activation=peak,
            token_ids=ids[segment][start : start + RECORD_LENGTH],
            activations=activations[rank],
            stride=run.segment_stride,
        )


def decode_run(row: Any, sources: tuple[Source, ...]) -> Run:
    with readable_row("runs", row):
        decoded = {
            "layers": tuple(map(int, decode_json(row.layers))),
            "config": dict(decode_json(row.config)),
        }
        return Run(
            **fields_of(row, Run)
            | decoded
            | {
                "versions": dict(decode_json(row.versions)),
                "sources": sources,
                "rectified": bool(row.rectified),
            }
        )


def decode_explanation(row: Any) -> Explanation:
    with readable_row("explanations", row):
        provenance, status = decode_provenance(row), Status(row.status)
        covers, parts = (
            None if listed is None else tuple(decode_json(listed)) for listed in (row.covers, row.parts)
        )
    return Explanation(
        unit=UnitId(row.layer, row.unit),
        explainer=row.explainer,
        status=status,
        text=row.text,
        provenance=provenance,
        candidate=row.candidate,
        chosen=bool(row.chosen),
        reason=row.reason,
        reply=row.reply,
        covers=covers,
        parts=parts,
        id=row.id,
        side=row.side,
    )


def decode_provenance(row: Any) -> Provenance:
    return Provenance(**fields_of(row, Provenance) | {"sampling": dict(decode_json(row.sampling))})


def decode_predicted_records(row: Any) -> Iterator[PredictedRecord]:
    from neuroexplain.scoring.codecs import CODECS
    from neuroexplain.store.packing import unpack_array

    places = [unpack_array(name, getattr(row, name)).tolist() for name in ("kinds", "ranks", "firsts")]
    codec, n = CODECS[row.codec], len(places[0])
    values = codec.unpack(row.predicted, n)
    detail = None if row.detail is None else codec.unpack_detail(row.detail, n)
    control = None if row.control is None else codec.unpack(row.control, n)
    if any(beside is not None and beside.shape != values.shape for beside in (detail, control)):
        raise ValueError("its values, details and control differ in number")
    for i, (kind, rank, first) in enumerate(zip(*places, strict=True)):
        if kind >= len(KINDS):
            raise ValueError(f"there is no kind {kind}")
        yield PredictedRecord(
            kind=KINDS[kind],
            rank=rank,
            first=first,
            values=values[i],
            detail=None if detail is None else detail[i],
            control=None if control is None else control[i],
        )


def decode_prediction(row: Any) -> Prediction:
    with readable_row("predictions", row):
        records, provenance, status = (
            tuple(decode_predicted_records(row)),
            decode_provenance(row),
            Status(row.status),
        )
    return Prediction(
        explanation_id=row.explanation_id,
        unit=UnitId(row.layer, row.unit),
        scorer=row.scorer,
        status=status,
        records=records,
        provenance=provenance,
        reason=row.reason,
        reply=row.reply,
        control_explanation_id=row.control_explanation_id,
        id=row.id,
        codec=row.codec,
    )


def decode_score(row: Any) -> StoredScore:
    score = Score(**fields_of(row, Score) | {"status": decode_status("scores", row)})
    return StoredScore(UnitId(row.layer, row.unit), row.explanation_id, row.scorer, row.scorer_model, score)


def decode_reading(reading: Any, which: str) -> tuple[tuple[int, float], ...]:
    from neuroexplain.store.packing import unpack_array

    columns = (f"{which}_ids", f"{which}_logits")
    with readable_row("vocabulary_readings", reading):
        return tuple(
            zip(*(unpack_array(name, getattr(reading, name)).tolist() for name in columns), strict=True)
        )


def fields_of(row: Any, of: Any) -> dict[str, Any]:
    """The row's values for the fields of a dataclass that it has."""
    return {name: getattr(row, name) for name in of.__dataclass_fields__ if hasattr(row, name)}


def decode_json(value: Any) -> Any:
    """What a JSON column holds: an array or an object, which PostgreSQL's driver reads by itself."""
    return json.loads(value) if isinstance(value, str) else value


def sql_in(numbers: Iterable[int]) -> str:
    return f"IN ({','.join(str(int(number)) for number in numbers) or 'NULL'})"


def chunks(values: list[int]) -> Iterable[list[int]]:
    waiting = iter(values)
    while some := list(islice(waiting, IDS_AT_ONCE)):
        yield some
