"""Save explanations, predictions and scores. Each function is one transaction; doing it twice leaves what doing it once does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_, update

from neuroexplain.evidence import Explained, Explanation, Prediction, Provenance, Score, Status
from neuroexplain.runs import Session
from neuroexplain.scoring.codecs import CODECS
from neuroexplain.store import tables as t
from neuroexplain.store.dialect import upsert
from neuroexplain.store.engine import Store
from neuroexplain.store.statements import batches, insert_many, now, upsert_many
from neuroexplain.units import KINDS


def save_prompt(store: Store, name: str, text: str) -> str:
    """Keep a prompt file's text; returns its sha256, which explanations and simulations refer to."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    with store.write() as connection:
        row = {"sha256": sha256, "name": name, "text": text}
        connection.execute(upsert(store.dialect, t.prompts).values(**row).on_conflict_do_nothing())
    return sha256


def save_explanation(store: Store, run_id: int, explanation: Explanation) -> Explanation:
    """Store one explanation: see save_explanations."""
    return save_explanations(store, run_id, [explanation])[0]


def save_explanations(store: Store, run_id: int, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Store explanations or failed attempts, in place of earlier answers to the same requests. Returns them with their ids."""
    with store.write() as connection:
        return _save_explanations(connection, store, run_id, explanations)


def save_explained(store: Store, run_id: int, made: Sequence[Explained]) -> list[Explained]:
    """Store explanations with their simulations and scores, all of them or none. Returns them with their ids.

    Of an explanation that is stored already only `chosen` is written. What an earlier command chose of the same neurons, by the
    same explainer and model, is chosen no more: a neuron has one chosen explanation of each. What people wrote stays.
    """
    stored = [one.explanation for one in made if one.explanation.id is not None]
    with store.write() as connection:
        _choose_none(
            connection,
            run_id,
            [
                e
                for one in made
                if (e := one.explanation).chosen and e.status == Status.OK and e.explainer != "human"
            ],
        )
        for chosen in (True, False):
            ids = [e.id for e in stored if e.chosen == chosen]
            for some in batches(ids):
                is_one = t.explanations.c.id.in_(some), t.explanations.c.chosen != chosen
                connection.execute(update(t.explanations).where(*is_one).values(chosen=chosen))
        new = iter(
            _save_explanations(
                connection, store, run_id, [e for one in made if (e := one.explanation).id is None]
            )
        )
        found = []
        for one in made:
            explanation = one.explanation if one.explanation.id is not None else next(new)
            prediction = one.prediction
            if prediction is not None and explanation.id is not None:
                prediction = replace(prediction, explanation_id=explanation.id)
            found.append(replace(one, explanation=explanation, prediction=prediction))
        _save_predictions(
            connection, store, run_id, [(x.prediction, x.scores) for x in found if x.prediction is not None]
        )
    return found


def _choose_none(connection: Connection, run_id: int, explanations: Sequence[Explanation]) -> None:
    """Mark nothing as chosen that is of their units, sides, explainers and models."""
    e = t.explanations.c
    same: dict[tuple[str, str, str, int], set[int]] = {}
    for one in explanations:
        same.setdefault((one.explainer, one.provenance.model, one.side, one.unit.layer), set()).add(
            one.unit.index
        )
    for (explainer, model, side, layer), units in same.items():
        for some in batches(sorted(units)):
            by = e.explainer == explainer, e.model == model, e.side == side
            where = e.run_id == run_id, e.layer == layer, e.unit.in_(some), *by
            connection.execute(update(t.explanations).where(*where, e.chosen).values(chosen=False))


def save_session(store: Store, run_id: int, session: Session, session_id: int | None) -> int:
    """Store what a command has done so far, or bring it up to date; returns its id."""
    values = {"run_id": run_id, **asdict(session)}
    with store.write() as connection:
        if session_id is None:
            return int(
                connection.execute(
                    insert(t.sessions).values(**values).returning(t.sessions.c.id)
                ).scalar_one()
            )
        connection.execute(update(t.sessions).where(t.sessions.c.id == session_id).values(**values))
    return session_id


def _save_explanations(
    connection: Connection, store: Store, run_id: int, explanations: Sequence[Explanation]
) -> list[Explanation]:
    rows = [
        {
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
            **_provenance_row(explanation.provenance),
        }
        for explanation in explanations
    ]
    key = ["run_id", "layer", "unit", "request_key"]
    found: dict[tuple[int, int, str], int] = {}
    e = t.explanations.c
    if rows:
        upsert_many(connection, store, t.explanations, rows, key)
    for some in batches(rows):
        keys = tuple_(e.layer, e.unit, e.request_key).in_(
            [(r["layer"], r["unit"], r["request_key"]) for r in some]
        )
        for row in connection.execute(
            select(e.layer, e.unit, e.request_key, e.id).where(e.run_id == run_id, keys)
        ):
            found[row.layer, row.unit, row.request_key] = row.id
    return [
        replace(explanation, id=found[row["layer"], row["unit"], row["request_key"]])
        for explanation, row in zip(explanations, rows, strict=True)
    ]


def save_prediction(store: Store, run_id: int, prediction: Prediction, scores: Sequence[Score]) -> None:
    """Store one simulation and its scores: see save_simulations."""
    save_predictions(store, run_id, [(prediction, scores)])


def save_predictions(store: Store, run_id: int, made: Sequence[tuple[Prediction, Sequence[Score]]]) -> None:
    """Store simulations, each with its scores, in place of earlier ones by the same simulator and model."""
    with store.write() as connection:
        _save_predictions(connection, store, run_id, made)


def _save_predictions(
    connection: Connection, store: Store, run_id: int, made: Sequence[tuple[Prediction, Sequence[Score]]]
) -> None:
    if not made:
        return
    whose = [
        {"explanation_id": one.explanation_id, "scorer": one.scorer, "scorer_model": one.provenance.model}
        for one, _ in made
    ]
    places = ({"run_id": run_id, "layer": one.unit.layer, "unit": one.unit.index} for one, _ in made)
    scores = [
        {**place, **mine, **asdict(score)}
        for place, mine, (_, computed) in zip(places, whose, made, strict=True)
        for score in computed
    ]
    rows = [_prediction_row(run_id, one) for one, _ in made]
    old = [{f"b_{name}": value for name, value in mine.items()} for mine in whose]
    upsert_many(connection, store, t.predictions, rows, ["explanation_id", "scorer", "model"])
    connection.execute(
        delete(t.scores).where(*(t.scores.c[name] == bindparam(f"b_{name}") for name in whose[0])), old
    )
    insert_many(connection, insert(t.scores), scores)


def _prediction_row(run_id: int, prediction: Prediction) -> dict[str, Any]:
    records, codec = prediction.records, CODECS[prediction.codec]
    details = [r.detail for r in records if r.detail is not None]
    controls = [r.control for r in records if r.control is not None]
    return {
        "run_id": run_id,
        "explanation_id": prediction.explanation_id,
        "scorer": prediction.scorer,
        "status": prediction.status,
        "reason": prediction.reason,
        "reply": prediction.reply,
        "kinds": np.array([KINDS.index(r.kind) for r in records], np.uint8),
        "ranks": np.array([r.rank for r in records], np.uint8),
        "firsts": np.array([r.first for r in records], np.uint8),
        "predicted": codec.pack(_joined([r.values for r in records])),
        "detail": codec.pack_detail(_joined(details)) if records and len(details) == len(records) else None,
        "control": codec.pack(_joined(controls)) if records and len(controls) == len(records) else None,
        "control_explanation_id": prediction.control_explanation_id,
        "codec": prediction.codec,
        **_provenance_row(prediction.provenance),
    }


def _provenance_row(provenance: Provenance) -> dict[str, Any]:
    return {
        **asdict(provenance),
        "sampling": dict(provenance.sampling),
        "created_at": provenance.created_at or now(),
    }


def _joined(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
