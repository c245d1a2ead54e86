"""A unit's records as a page draws them, and sections of a page that are drawn when a reader opens them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from neuroexplain.evidence import Exemplar, PredictedRecord, Prediction
from neuroexplain.formatting import group_by_strength, stands_for
from neuroexplain.runs import UnitPage
from neuroexplain.web.tokens import draw_tokens

SPLITS = {
    "explain": "kept for explainers",
    "select": "kept for choosing",
    "report": "kept for the score",
}


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record as a page draws it."""

    name: str  # kind and rank
    drawn: str  # how many segments it stands for; empty if its draw is not known
    activation: str  # at the peak
    split: str
    place: str  # in the corpus: document and token, or segment
    tokens: Markup  # by draw_tokens
    heading: str = ""  # of the group that begins with this record; empty within a group


@dataclass(frozen=True, slots=True)
class LazySection:
    """A section of a unit's page with records.

    The records come with the page if its address names the section. Otherwise they are fetched when a reader
    opens the section.
    """

    id: str
    title: str
    note: str  # a sentence on what the records are
    state: str  # NAME=VALUE in the address of a page on which the section is open
    records: tuple[RecordView, ...] | None  # None: not drawn yet
    source: str  # address of the records' HTML
    link: str  # address of the page with the section open, for readers without JavaScript


def record_views(page: UnitPage, kind: str) -> tuple[RecordView, ...]:
    """A unit's records of one kind, in rank order.

    Records that were drawn with a known probability are in groups by the strength of their peaks.
    """
    strongest = _strongest(page)
    records = [record for record in page.unit.exemplars if record.kind == kind]
    if not any(page.probability(record) is not None for record in records):
        return tuple(_record_view(page, record, strongest) for record in records)
    views: list[RecordView] = []
    for side in dict.fromkeys(record.side for record in records):
        prefix = f"{side} side, " if side is not None and len(page.run.sides) > 1 else ""
        for group in group_by_strength([record for record in records if record.side == side]):
            first, *rest = (_record_view(page, record, strongest) for record in group.records)
            views += [replace(first, heading=prefix + group.title), *rest]
    return tuple(views)


def simulated_views(page: UnitPage, prediction: Prediction) -> tuple[RecordView, ...]:
    """The records that were simulated, true over simulated, in the order of kinds and ranks.

    The largest level of the prediction gets the simulated row's strongest colour.
    """
    strongest = _strongest(page)
    predictions = {record.key: record for record in prediction.records}
    levels = [record.values[~np.isnan(record.values)] for record in prediction.records]
    top_level = max((float(values.max()) for values in levels if len(values)), default=0.0)
    return tuple(
        _record_view(page, record, strongest, predictions[record.key], top_level)
        for record in page.unit.exemplars
        if record.key in predictions
    )


def simulations(page: UnitPage) -> tuple[Prediction, ...]:
    """The predictions that have a level for each token; others cannot be drawn under tokens."""
    return tuple(p for p in page.predictions if p.records and p.id is not None and p.codec == "levels")


def find_simulation(page: UnitPage, prediction_id: int) -> Prediction | None:
    return next((prediction for prediction in simulations(page) if prediction.id == prediction_id), None)


def _strongest(page: UnitPage) -> float:
    """The largest magnitude of a record's peak: the value with the strongest colour."""
    return max((abs(record.activation) for record in page.unit.exemplars), default=0.0)


def _drawn_text(page: UnitPage, record: Exemplar) -> str:
    """How many segments a record stands for; of a random one of a run with two sides, for each of them."""
    probability = page.probability(record)
    if probability is None:
        return ""
    second = page.probability(record, "negative") if record.kind == "random" else None
    if second is None or len(page.run.sides) == 1:
        return stands_for(probability)
    return f"{stands_for(probability)}, on the negative side {stands_for(second).removeprefix('stands ')}"


def _record_view(
    page: UnitPage,
    record: Exemplar,
    strongest: float,
    prediction: PredictedRecord | None = None,
    top_level: float = 0.0,
) -> RecordView:
    tokens = [page.tokens[token_id] for token_id in record.token_ids.tolist()]
    place = f"segment {record.segment}"
    if record.document is not None:
        place = f"document {record.document}, token {record.token_offset}"
    return RecordView(
        name=f"{record.kind} {record.rank}",
        drawn=_drawn_text(page, record),
        activation=f"{record.activation:.4g}",
        split=SPLITS.get(page.splits[record.key] or "", "in no split"),
        place=place,
        tokens=draw_tokens(
            page.texts(record),
            record.activations,
            strongest,
            special=[token.special for token in tokens],
            prediction=prediction,
            top_level=top_level,
        ),
    )
