"""Decode rows of the database into types of the domain, with one decoder a type.

A decoder raises StoreUnreadable, which names the row, if a value is cut off or does not fit its column.
numpy is imported in the decoders that need it, since `query` starts sooner without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

from neuroexplain.errors import StoreUnreadable
from neuroexplain.evidence import (
    SPLITS,
    Exemplar,
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    Segment,
    Status,
    StoredScore,
    TextPart,
)
from neuroexplain.runs import Run, SimulatorCheck
from neuroexplain.units import PREDICTED_KINDS, RECORD_LENGTH, SEGMENT_LENGTH, Side, Source, UnitId

IDS_AT_ONCE = 10_000  # values in one IN (...); SQLite takes 32,766
T = TypeVar("T")


@contextmanager
def readable_row(table: str, row: Any) -> Iterator[None]:
    """Wraps the decoding of a row: its errors become a StoreUnreadable that names the row."""
    try:
        yield
    except (
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:  # SQLite allows any type in a column
        names = [name for name in ("id", "run_id", "layer", "unit", "kind", "segment") if hasattr(row, name)]
        which = ", ".join(f"{name} {getattr(row, name)}" for name in names)
        raise StoreUnreadable(f"A row of {table} ({which}) cannot be read: {error}.") from error


def decode_status(table: str, row: Any) -> Status:
    with readable_row(table, row):
        return Status(row.status)


def decode_exemplars(
    row: Any, unit: UnitId, run: Run, segments: Mapping[int, Segment], samples: Sequence[SampleRow]
) -> Iterable[Exemplar]:
    """One unit's exemplars of one kind, in rank order.

    segments: those of the exemplars, by number. samples: the unit's, in the order of ranks.
    """
    from neuroexplain.store.packing import unpack_activations, unpack_array

    arrays = [
        unpack_array(name, getattr(row, name)).tolist()
        for name in ("segments", "starts", "documents", "token_offsets")
    ]
    peaks = unpack_activations(row.peaks, run.dtype).tolist()
    activations = unpack_activations(row.activations, run.dtype).reshape(len(peaks), RECORD_LENGTH)
    draws: list[tuple[Side | None, float | None]] = [(None, None)] * len(peaks)
    if row.kind == "sampled":
        draws = [(sample.side, size) for sample in samples for size in sample.sizes]
    places = zip(*arrays, peaks, draws, strict=True)
    for rank, (segment, start, document, token_offset, peak, (side, size)) in enumerate(places):
        token_ids = segments[segment].token_ids
        if start > len(token_ids) - RECORD_LENGTH:
            raise ValueError(f"there is no record at {start} of segment {segment}")
        yield Exemplar(
            unit=unit,
            kind=row.kind,
            rank=rank,
            segment=segment,
            start=start,
            document=document if document >= 0 else None,
            token_offset=token_offset if document >= 0 else None,
            activation=peak,
            token_ids=token_ids[start : start + RECORD_LENGTH],
            activations=activations[rank],
            stride=run.segment_stride,
            split=segments[segment].split,
            side=side,
            size=size,
        )


class SampleRow(NamedTuple):
    """One side's sampled records of a unit."""

    side: Side
    counts: list[int]  # of each split
    sizes: list[float]  # of each record
    thresholds: list[float]  # of each split
    is_sound: bool  # whether the thresholds are those of the checksum


def decode_sample(row: Any) -> SampleRow:
    """Raises StoreUnreadable if counts and sizes do not fit together."""
    from neuroexplain.store.packing import checksum_of, unpack_array

    with readable_row("samples", row):
        arrays = [
            unpack_array(name, getattr(row, name)).tolist() for name in ("counts", "sizes", "thresholds")
        ]
        counts, sizes, thresholds = arrays
        if len(counts) != len(SPLITS) or len(thresholds) != len(SPLITS) or sum(counts) != len(sizes):
            raise ValueError(f"{counts} records have {len(sizes)} sizes and {len(thresholds)} thresholds")
        return SampleRow(row.side, counts, sizes, thresholds, checksum_of(row.thresholds) == row.checksum)


def decode_segment(row: Any) -> Segment:
    """A segment with its token ids, [128]; [64] if only its last 64 are known, as in imported arrays."""
    from neuroexplain.store.packing import unpack_token_ids

    with readable_row("segments", row):
        token_ids = unpack_token_ids(row.token_ids)
        if len(token_ids) not in (SEGMENT_LENGTH, RECORD_LENGTH):
            raise ValueError(f"it holds {len(token_ids)} token ids")
        if row.split not in (None, *SPLITS):
            raise ValueError(f"there is no split {row.split}")
        return Segment(row.segment, token_ids, row.split)


def decode_run(row: Any, sources: tuple[Source, ...]) -> Run:
    with readable_row("runs", row):
        decoded = {
            "layers": tuple(map(int, decode_json(row.layers))),
            "config": dict(decode_json(row.config)),
            "versions": dict(decode_json(row.versions)),
            "rectified": bool(row.rectified),
            "barred_ids": tuple(map(int, decode_json(row.barred_ids))),
            "split_segments": dict(decode_json(row.split_segments)),
            "health": dict(decode_json(row.health)),
        }
        return Run(**fields_of(row, Run) | decoded | {"sources": sources})


def decode_explanation(row: Any) -> Explanation:
    with readable_row("explanations", row):
        provenance, status = decode_provenance(row), Status(row.status)
        covers = None if row.covers is None else tuple(decode_json(row.covers))
        parts = None if row.parts is None else tuple(decode_json(row.parts))
        examples = None if row.examples is None else tuple(decode_json(row.examples))
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
        rule=row.rule,
        examples=examples,
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
    if any(array is not None and array.shape != values.shape for array in (detail, control)):
        raise ValueError("its values, details and control differ in number")
    for i, (kind, rank, first) in enumerate(zip(*places, strict=True)):
        if kind >= len(PREDICTED_KINDS):
            raise ValueError(f"there is no kind {kind}")
        yield PredictedRecord(
            kind=PREDICTED_KINDS[kind],
            rank=rank,
            first=first,
            values=values[i],
            detail=None if detail is None else detail[i],
            control=None if control is None else control[i],
        )


def _decode_background(row: Any) -> Iterator[PredictedRecord]:
    """What was predicted of the background's records, in the order of ranks."""
    from neuroexplain.scoring.codecs import CODECS
    from neuroexplain.store.packing import unpack_background

    if row.background is None:
        return
    codec, (ranks, firsts, data) = CODECS[row.codec], unpack_background(row.background)
    values = codec.unpack(data, len(ranks))
    others: list[Any] = [None, None]
    for place, (packed, unpack) in enumerate(
        ((row.background_detail, codec.unpack_detail), (row.background_control, codec.unpack))
    ):
        if packed is not None:
            own_ranks, _, own_data = unpack_background(packed)
            others[place] = unpack(own_data, len(own_ranks))
            if own_ranks != ranks or others[place].shape != values.shape:
                raise ValueError("values, details and control of its background differ in number")
    detail, control = others
    for i, (rank, first) in enumerate(zip(ranks, firsts, strict=True)):
        yield PredictedRecord(
            kind="background",
            rank=rank,
            first=first,
            values=values[i],
            detail=None if detail is None else detail[i],
            control=None if control is None else control[i],
        )


def decode_prediction(row: Any, part: TextPart = "whole") -> Prediction:
    from neuroexplain.store.packing import unpack_array

    with readable_row("predictions", row):
        records = (*decode_predicted_records(row), *_decode_background(row))
        guesses = None if row.guesses is None else tuple(unpack_array("guesses", row.guesses).tolist())
        provenance, status = decode_provenance(row), Status(row.status)
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
        text=row.text,
        control_text=row.control_text,
        n_read=row.n_read,
        with_bills=None if row.with_bills is None else bool(row.with_bills),
        has_report=None if row.has_report is None else bool(row.has_report),
        part=part,
        n_background=row.n_background,
        n_hard=row.n_hard,
        guesses=guesses,
    )


def decode_score(row: Any) -> StoredScore:
    score = Score(**fields_of(row, Score) | {"status": decode_status("scores", row)})
    return StoredScore(UnitId(row.layer, row.unit), row.explanation_id, row.scorer, row.scorer_model, score)


def decode_nearest(row: Any) -> tuple[tuple[int, float], ...]:
    """(unit, cosine) of the latents nearest to that of a row of units; empty if none are stored."""
    from neuroexplain.store.packing import unpack_array

    if row.nearest_units is None:
        return ()
    with readable_row("units", row):
        units, cosines = (unpack_array(n, getattr(row, n)) for n in ("nearest_units", "nearest_cosines"))
        return tuple(zip(units.tolist(), cosines.tolist(), strict=True))


def decode_reading(row: Any, direction: Literal["promoted", "suppressed"]) -> tuple[tuple[int, float], ...]:
    """(token id, logit) of a vocabulary reading, strongest first."""
    from neuroexplain.store.packing import unpack_array

    columns = (f"{direction}_ids", f"{direction}_logits")
    with readable_row("vocabulary_readings", row):
        ids, logits = (unpack_array(name, getattr(row, name)).tolist() for name in columns)
        return tuple(zip(ids, logits, strict=True))


def decode_check(row: Any) -> SimulatorCheck:
    with readable_row("simulator_checks", row):
        return SimulatorCheck(**fields_of(row, SimulatorCheck) | {"kinds": dict(decode_json(row.kinds))})


def fields_of(row: Any, dataclass: Any) -> dict[str, Any]:
    """The row's values by name, for those fields of a dataclass that the row has."""
    return {name: getattr(row, name) for name in dataclass.__dataclass_fields__ if hasattr(row, name)}


def decode_json(value: Any) -> Any:
    """The array or object of a JSON column; PostgreSQL's driver has decoded it already."""
    return json.loads(value) if isinstance(value, str) else value


def sql_in(numbers: Iterable[int]) -> str:
    """The SQL of `IN (1,2,3)`, which holds for no row if there are no numbers."""
    return f"IN ({','.join(str(int(number)) for number in numbers) or 'NULL'})"


def chunks(values: Iterable[T], size: int = IDS_AT_ONCE) -> Iterator[list[T]]:
    """The values in lists of `size`; the last one may be shorter."""
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
