"""Save prompts, explanations, predictions, scores, sessions and checks.

Each public function is one transaction. Saving an explanation or a prediction again replaces its row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select, tuple_, update

from neuroexplain.evidence import (
    TEXT_PARTS,
    Explanation,
    ExplanationResult,
    Prediction,
    Provenance,
    Score,
    Status,
    TextPart,
)
from neuroexplain.runs import Session, SimulatorCheck
from neuroexplain.scoring.codecs import CODECS
from neuroexplain.store import tables as t
from neuroexplain.store.dialect import upsert
from neuroexplain.store.engine import Store
from neuroexplain.store.leases import Leases
from neuroexplain.store.packing import pack_array, pack_background
from neuroexplain.store.rows import chunks
from neuroexplain.store.statements import ROWS_AT_ONCE, delete_many, insert_many, now, upsert_many
from neuroexplain.units import PREDICTED_KINDS


def save_prompt(store: Store, name: str, text: str) -> str:
    """Store a prompt file's text. Returns its SHA-256, by which explanations and predictions refer to it."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    with store.write() as connection:
        row = {"sha256": sha256, "name": name, "text": text}
        connection.execute(upsert(store.dialect, t.prompts).values(**row).on_conflict_do_nothing())
    return sha256


def save_explanation(store: Store, run_id: int, explanation: Explanation) -> Explanation:
    """Store one explanation: see save_explanations."""
    return save_explanations(store, run_id, [explanation])[0]


def save_explanations(store: Store, run_id: int, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Store explanations or failed attempts in place of earlier answers to the same requests.

    Returns them with their ids.
    """
    with store.write() as connection:
        return _save_explanations(connection, run_id, explanations)


def save_explained(
    store: Store, run_id: int, results: Sequence[ExplanationResult], leases: Leases | None = None
) -> list[ExplanationResult]:
    """Store explanations with their predictions and scores, all or none. Returns them with ids.

    Of an explanation that has an id, only `chosen` is written. What earlier commands chose for the same
    units is no longer chosen: see _unchoose. The leases on the results' sides end; of a side whose lease has
    not lasted until now nothing is stored.
    """
    with store.write() as connection:
        if leases is not None:
            held = leases.end(connection, {result.explanation.unit_side for result in results})
            results = [result for result in results if result.explanation.unit_side in held]
        explanations = [result.explanation for result in results]
        _unchoose(connection, run_id, [e for e in explanations if _is_choice(e)])
        _save_chosen(connection, [e for e in explanations if e.id is not None])
        new = iter(_save_explanations(connection, run_id, [e for e in explanations if e.id is None]))
        explanations = [next(new) if e.id is None else e for e in explanations]
        stored = [_with_id(result, e) for result, e in zip(results, explanations, strict=True)]
        predictions = [(new.prediction, new.scores) for result in stored for new in result.predictions]
        _save_predictions(connection, run_id, predictions)
    return stored


def save_session(store: Store, run_id: int, session: Session, session_id: int | None) -> int:
    """Store a command's work so far, or update it; return its id."""
    values = {"run_id": run_id, **asdict(session)}
    with store.write() as connection:
        if session_id is None:
            new = insert(t.sessions).values(**values).returning(t.sessions.c.id)
            return int(connection.execute(new).scalar_one())
        connection.execute(update(t.sessions).where(t.sessions.c.id == session_id).values(**values))
    return session_id


def save_checks(store: Store, run_id: int, checks: Sequence[SimulatorCheck]) -> None:
    """Store how well simulators did on known neurons, in place of earlier checks of the same ones."""
    rows = [{"run_id": run_id, **asdict(check)} for check in checks]
    with store.write() as connection:
        upsert_many(connection, t.simulator_checks, rows, ["run_id", "scorer", "scorer_model"])


def save_prediction(store: Store, run_id: int, prediction: Prediction, scores: Sequence[Score]) -> None:
    """Store one prediction and its scores: see save_predictions."""
    save_predictions(store, run_id, [(prediction, scores)])


def save_predictions(
    store: Store, run_id: int, predictions: Sequence[tuple[Prediction, Sequence[Score]]]
) -> None:
    """Store predictions with their scores, in place of earlier ones by the same scorer and model."""
    with store.write() as connection:
        _save_predictions(connection, run_id, predictions)


def _is_choice(explanation: Explanation) -> bool:
    """Whether a command chose it. A person's explanations stand beside those of the commands."""
    return explanation.chosen and explanation.status == Status.OK and not explanation.is_by_person


def _unchoose(connection: Connection, run_id: int, explanations: Sequence[Explanation]) -> None:
    """Set `chosen` to false for all stored explanations of the same unit, side, explainer and model.

    A unit has one chosen explanation for each side, explainer and model: that of the last command.
    """
    e = t.explanations.c
    units: dict[tuple[str, str, str, int], set[int]] = {}
    for explanation in explanations:
        unit, model = explanation.unit, explanation.provenance.model
        units.setdefault((explanation.explainer, model, explanation.side, unit.layer), set()).add(unit.index)
    for (explainer, model, side, layer), indices in units.items():
        for batch in chunks(sorted(indices), ROWS_AT_ONCE):
            by = e.explainer == explainer, e.model == model, e.side == side
            where = e.run_id == run_id, e.layer == layer, e.unit.in_(batch), *by
            connection.execute(update(t.explanations).where(*where, e.chosen).values(chosen=False))


def _save_chosen(connection: Connection, explanations: Sequence[Explanation]) -> None:
    """Write `chosen` of explanations that are stored already."""
    e = t.explanations.c
    for chosen in (True, False):
        ids = [explanation.id for explanation in explanations if explanation.chosen == chosen]
        for batch in chunks(ids, ROWS_AT_ONCE):
            where = e.id.in_(batch), e.chosen != chosen
            connection.execute(update(t.explanations).where(*where).values(chosen=chosen))


def _with_id(result: ExplanationResult, explanation: Explanation) -> ExplanationResult:
    """The result with the stored explanation, whose id its predictions get too."""
    assert explanation.id is not None
    predictions = tuple(
        replace(new, prediction=replace(new.prediction, explanation_id=explanation.id))
        for new in result.predictions
    )
    return replace(result, explanation=explanation, predictions=predictions)


def _save_explanations(
    connection: Connection, run_id: int, explanations: Sequence[Explanation]
) -> list[Explanation]:
    rows = [_explanation_row(run_id, explanation) for explanation in explanations]
    upsert_many(connection, t.explanations, rows, ["run_id", "layer", "unit", "request_key"])
    e = t.explanations.c
    ids: dict[tuple[int, int, str], int] = {}
    for batch in chunks(rows, ROWS_AT_ONCE):
        keys = [(row["layer"], row["unit"], row["request_key"]) for row in batch]
        columns = e.layer, e.unit, e.request_key
        query = select(*columns, e.id).where(e.run_id == run_id, tuple_(*columns).in_(keys))
        ids |= {(layer, unit, key): new_id for layer, unit, key, new_id in connection.execute(query)}
    return [
        replace(explanation, id=ids[row["layer"], row["unit"], row["request_key"]])
        for explanation, row in zip(explanations, rows, strict=True)
    ]


def _explanation_row(run_id: int, explanation: Explanation) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "layer": explanation.unit.layer,
        "unit": explanation.unit.index,
        "explainer": explanation.explainer,
        "candidate": explanation.candidate,
        "request_key": explanation.request_key,
        "chosen": explanation.chosen,
        "status": explanation.status,
        "text": explanation.text,
        "reason": explanation.reason,
        "reply": explanation.reply,
        "covers": None if explanation.covers is None else list(explanation.covers),
        "parts": None if explanation.parts is None else list(explanation.parts),
        "side": explanation.side,
        "rule": explanation.rule,
        "examples": None if explanation.examples is None else list(explanation.examples),
        **_provenance_row(explanation.provenance),
    }


def _save_predictions(
    connection: Connection, run_id: int, predictions: Sequence[tuple[Prediction, Sequence[Score]]]
) -> None:
    for part in TEXT_PARTS:
        of_part = [scored for scored in predictions if scored[0].part == part]
        if of_part:
            _save_predictions_of(connection, run_id, part, of_part)


def _save_predictions_of(
    connection: Connection,
    run_id: int,
    part: TextPart,
    predictions: Sequence[tuple[Prediction, Sequence[Score]]],
) -> None:
    """Save predictions from one part of explanations."""
    scores = t.SCORES[part]
    rows = [_prediction_row(run_id, prediction) for prediction, _ in predictions]
    upsert_many(connection, t.PREDICTIONS[part], rows, ["explanation_id", "scorer", "model"])
    delete_many(connection, scores, [_score_key(prediction) for prediction, _ in predictions])
    insert_many(connection, scores, _score_rows(run_id, predictions))


def _score_key(prediction: Prediction) -> dict[str, Any]:
    """The columns of `scores` that are the same for all scores of a prediction, and of no other."""
    by = {"scorer": prediction.scorer, "scorer_model": prediction.provenance.model}
    return {"explanation_id": prediction.explanation_id, **by}


def _score_rows(
    run_id: int, predictions: Sequence[tuple[Prediction, Sequence[Score]]]
) -> Iterator[dict[str, Any]]:
    for prediction, scores in predictions:
        unit = {"layer": prediction.unit.layer, "unit": prediction.unit.index}
        for score in scores:
            yield {"run_id": run_id, **unit, **_score_key(prediction), **asdict(score)}


def _prediction_row(run_id: int, prediction: Prediction) -> dict[str, Any]:
    """The records' details and controls are stored if every record has them."""
    codec, guesses = CODECS[prediction.codec], prediction.guesses
    records = [r for r in prediction.records if r.kind in PREDICTED_KINDS]
    details = [r.detail for r in records if r.detail is not None]
    controls = [r.control for r in records if r.control is not None]
    return _background_columns(prediction) | {
        "run_id": run_id,
        "explanation_id": prediction.explanation_id,
        "scorer": prediction.scorer,
        "status": prediction.status,
        "reason": prediction.reason,
        "reply": prediction.reply,
        "kinds": np.array([PREDICTED_KINDS.index(r.kind) for r in records], np.uint8),
        "ranks": np.array([r.rank for r in records], np.uint8),
        "firsts": np.array([r.first for r in records], np.uint8),
        "predicted": codec.pack(_concatenate([r.values for r in records])),
        "detail": codec.pack_detail(_concatenate(details))
        if records and len(details) == len(records)
        else None,
        "control": codec.pack(_concatenate(controls)) if records and len(controls) == len(records) else None,
        "control_explanation_id": prediction.control_explanation_id,
        "codec": prediction.codec,
        "n_read": prediction.n_read,
        "with_bills": prediction.with_bills,
        "has_report": prediction.has_report,
        "n_background": prediction.n_background,
        "n_hard": prediction.n_hard,
        "guesses": None if guesses is None else pack_array("guesses", np.array(guesses, np.float32)),
        **_provenance_row(prediction.provenance),
    }


def _background_columns(prediction: Prediction) -> dict[str, bytes | None]:
    """What was predicted of the background's records, likewise."""
    codec = CODECS[prediction.codec]
    records = [r for r in prediction.records if r.kind == "background"]
    details = [r.detail for r in records if r.detail is not None]
    controls = [r.control for r in records if r.control is not None]
    ranks, firsts = (np.array([getattr(r, name) for r in records], np.uint16) for name in ("rank", "first"))

    def pack(arrays: Sequence[NDArray[np.float32]], packer: Callable[..., bytes]) -> bytes | None:
        if not records or len(arrays) < len(records):
            return None
        return pack_background(ranks, firsts, packer(_concatenate(arrays)))

    return {
        "background": pack([r.values for r in records], codec.pack),
        "background_detail": pack(details, codec.pack_detail),
        "background_control": pack(controls, codec.pack),
    }


def _provenance_row(provenance: Provenance) -> dict[str, Any]:
    return {
        **asdict(provenance),
        "sampling": dict(provenance.sampling),
        "created_at": provenance.created_at or now(),
    }


def _concatenate(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
