"""Save what was found. Every function is one transaction, and doing it twice leaves what doing it once does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_, update

from neuroexplain.store import tables as t
from neuroexplain.store.dialect import upsert
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import WIDTHS, pack_activations, pack_token_ids
from neuroexplain.store.read import read_segment_ids
from neuroexplain.types import (
    CROP_LENGTH,
    KINDS,
    PEAK_INDEX,
    CollectedLayer,
    Explained,
    Explanation,
    Provenance,
    Score,
    Segment,
    Session,
    Simulation,
    VocabularyEntry,
)

ROWS_AT_ONCE = 5_000
Row = TypeVar("Row")


def now() -> str:
    """The time as ISO 8601 in UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def create_run(store: Store, fields: Mapping[str, Any]) -> int:
    """Begin a run with status `running`; `fields` are those of types.Run that are known. Returns its id."""
    with store.write() as connection:
        values = {"status": "running", "started_at": now(), **fields}
        return int(connection.execute(insert(t.runs).values(**values).returning(t.runs.c.id)).scalar_one())


def finish_run(store: Store, run_id: int, *, n_segments: int, n_documents: int, n_tokens: int) -> None:
    """Drop the segments that no exemplar refers to, and mark the run finished."""
    with store.write() as connection:
        used: set[int] = set()
        for (blob,) in connection.execute(select(t.exemplars.c.segments).where(t.exemplars.c.run_id == run_id)):
            used.update(blob.tolist())
        stored = connection.execute(select(t.segments.c.segment).where(t.segments.c.run_id == run_id)).scalars().all()
        unused = [{"b_segment": segment} for segment in stored if segment not in used]
        if unused:
            one = delete(t.segments).where(t.segments.c.run_id == run_id, t.segments.c.segment == bindparam("b_segment"))
            connection.execute(one, unused)
        values = {"n_segments": n_segments, "n_documents": n_documents, "n_tokens": n_tokens}
        connection.execute(update(t.runs).where(t.runs.c.id == run_id).values(status="finished", finished_at=now(), **values))


def delete_run(store: Store, run_id: int) -> None:
    """Remove a run and all that belongs to it."""
    with store.write() as connection:
        for table in reversed(t.metadata.sorted_tables):
            if "run_id" in table.c:
                connection.execute(delete(table).where(table.c.run_id == run_id))
        connection.execute(delete(t.runs).where(t.runs.c.id == run_id))


def save_vocabulary(store: Store, run_id: int, entries: Iterable[VocabularyEntry]) -> None:
    rows = ({"run_id": run_id, **asdict(entry)} for entry in entries)
    with store.write() as connection:
        connection.execute(delete(t.tokens).where(t.tokens.c.run_id == run_id))
        _insert_many(connection, insert(t.tokens), rows)


def save_segments(store: Store, run_id: int, segments: Iterable[Segment]) -> None:
    rows = ({"run_id": run_id, "segment": s.segment, "token_ids": pack_token_ids(s.token_ids)} for s in segments)
    with store.write() as connection:
        _insert_many(connection, upsert(store.dialect, t.segments).on_conflict_do_nothing(), rows)


def save_collected_layer(store: Store, run_id: int, found: CollectedLayer) -> None:
    """Store a layer's neurons, exemplars, peak tokens and vocabulary readings. Its segments must be stored already."""
    with store.write() as connection:
        dtype = connection.execute(select(t.runs.c.dtype).where(t.runs.c.id == run_id)).scalar_one()
        for table in (t.neurons, t.exemplars, t.peak_tokens, t.vocabulary_readings):
            connection.execute(delete(table).where(table.c.run_id == run_id, table.c.layer == found.layer))
        _insert_many(connection, insert(t.neurons), _neuron_rows(run_id, found))
        _insert_many(connection, insert(t.exemplars), _exemplar_rows(run_id, found, dtype))
        _insert_many(connection, insert(t.peak_tokens), _peak_token_rows(connection, run_id, found))
        _insert_many(connection, insert(t.vocabulary_readings), _vocabulary_rows(run_id, found))


def save_prompt(store: Store, name: str, text: str) -> str:
    """Keep a prompt file's text; returns its sha256, which explanations and simulations refer to."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    with store.write() as connection:
        row = {"sha256": sha256, "name": name, "text": text}
        connection.execute(upsert(store.dialect, t.prompts).values(**row).on_conflict_do_nothing())
    return sha256


def request_key(explanation: Explanation) -> str:
    """What was asked, as a hash: the same request for the same neuron has one row, however often it is made."""
    p = explanation.provenance
    asked: list[Any] = [
        explanation.explainer,
        p.model,
        p.model_revision,
        p.prompt_sha256,
        dict(p.sampling),
        explanation.candidate,
    ]
    if explanation.explainer == "human":
        asked.append(explanation.text)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def save_explanation(store: Store, run_id: int, explanation: Explanation) -> Explanation:
    """Store one explanation: see save_explanations."""
    return save_explanations(store, run_id, [explanation])[0]


def save_explanations(store: Store, run_id: int, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Store explanations or failed attempts, in place of earlier answers to the same requests. Returns them with their ids."""
    with store.write() as connection:
        return _save_explanations(connection, store, run_id, explanations)


def save_explained(store: Store, run_id: int, made: Sequence[Explained]) -> list[Explained]:
    """Store explanations with their simulations and scores, all of them or none. Returns them with their ids.

    Of an explanation that is stored already only `chosen` is written.
    """
    stored = [one.explanation for one in made if one.explanation.id is not None]
    with store.write() as connection:
        for chosen in (True, False):
            ids = [e.id for e in stored if e.chosen == chosen]
            for some in _batches(ids):
                is_one = t.explanations.c.id.in_(some), t.explanations.c.chosen != chosen
                connection.execute(update(t.explanations).where(*is_one).values(chosen=chosen))
        new = iter(_save_explanations(connection, store, run_id, [e for one in made if (e := one.explanation).id is None]))
        found = []
        for one in made:
            explanation = one.explanation if one.explanation.id is not None else next(new)
            simulation = one.simulation
            if simulation is not None and explanation.id is not None:
                simulation = replace(simulation, explanation_id=explanation.id)
            found.append(replace(one, explanation=explanation, simulation=simulation))
        _save_simulations(connection, store, run_id, [(x.simulation, x.scores) for x in found if x.simulation is not None])
    return found


def save_session(store: Store, run_id: int, session: Session, session_id: int | None) -> int:
    """Store what a command has done so far, or bring it up to date; returns its id."""
    values = {"run_id": run_id, **asdict(session)}
    with store.write() as connection:
        if session_id is None:
            return int(connection.execute(insert(t.sessions).values(**values).returning(t.sessions.c.id)).scalar_one())
        connection.execute(update(t.sessions).where(t.sessions.c.id == session_id).values(**values))
    return session_id


def _save_explanations(
    connection: Connection, store: Store, run_id: int, explanations: Sequence[Explanation]
) -> list[Explanation]:
    rows = [
        {
            "run_id": run_id,
            "layer": explanation.neuron.layer,
            "neuron": explanation.neuron.neuron,
            "explainer": explanation.explainer,
            "candidate": explanation.candidate,
            "request_key": request_key(explanation),
            "chosen": explanation.chosen,
            "status": explanation.status,
            "text": explanation.text,
            "reason": explanation.reason,
            "reply": explanation.reply,
            "covers": None if explanation.covers is None else list(explanation.covers),
            "parts": None if explanation.parts is None else list(explanation.parts),
            **_provenance_row(explanation.provenance),
        }
        for explanation in explanations
    ]
    key = ["run_id", "layer", "neuron", "request_key"]
    found: dict[tuple[int, int, str], int] = {}
    e = t.explanations.c
    if rows:
        _upsert_many(connection, store, t.explanations, rows, key)
    for some in _batches(rows):
        keys = tuple_(e.layer, e.neuron, e.request_key).in_([(r["layer"], r["neuron"], r["request_key"]) for r in some])
        for row in connection.execute(select(e.layer, e.neuron, e.request_key, e.id).where(e.run_id == run_id, keys)):
            found[row.layer, row.neuron, row.request_key] = row.id
    return [
        replace(explanation, id=found[row["layer"], row["neuron"], row["request_key"]])
        for explanation, row in zip(explanations, rows, strict=True)
    ]


def as_stored(simulation: Simulation) -> Simulation:
    """The simulation with its levels rounded to float16, as the store keeps them: what scores are computed from."""
    rounded = (
        replace(
            r,
            expected_levels=_round(r.expected_levels),
            digit_mass=None if r.digit_mass is None else _round(r.digit_mass),
            other_levels=None if r.other_levels is None else _round(r.other_levels),
        )
        for r in simulation.records
    )
    return replace(simulation, records=tuple(rounded))


def save_simulation(store: Store, run_id: int, simulation: Simulation, scores: Sequence[Score]) -> None:
    """Store one simulation and its scores: see save_simulations."""
    save_simulations(store, run_id, [(simulation, scores)])


def save_simulations(store: Store, run_id: int, made: Sequence[tuple[Simulation, Sequence[Score]]]) -> None:
    """Store simulations, each with its scores, in place of earlier ones by the same simulator and model."""
    with store.write() as connection:
        _save_simulations(connection, store, run_id, made)


def _save_simulations(
    connection: Connection, store: Store, run_id: int, made: Sequence[tuple[Simulation, Sequence[Score]]]
) -> None:
    if not made:
        return
    whose = [
        {"explanation_id": one.explanation_id, "simulator": one.simulator, "simulator_model": one.provenance.model}
        for one, _ in made
    ]
    places = ({"run_id": run_id, "layer": one.neuron.layer, "neuron": one.neuron.neuron} for one, _ in made)
    scores = [
        {**place, **mine, **asdict(score)}
        for place, mine, (_, found) in zip(places, whose, made, strict=True)
        for score in found
    ]
    rows = [_simulation_row(run_id, one) for one, _ in made]
    old = [{f"b_{name}": value for name, value in mine.items()} for mine in whose]
    _upsert_many(connection, store, t.simulations, rows, ["explanation_id", "simulator", "model"])
    connection.execute(delete(t.scores).where(*(t.scores.c[name] == bindparam(f"b_{name}") for name in whose[0])), old)
    _insert_many(connection, insert(t.scores), scores)


def _simulation_row(run_id: int, simulation: Simulation) -> dict[str, Any]:
    records = simulation.records
    masses = [r.digit_mass for r in records if r.digit_mass is not None]
    others = [r.other_levels for r in records if r.other_levels is not None]
    return {
        "run_id": run_id,
        "explanation_id": simulation.explanation_id,
        "simulator": simulation.simulator,
        "status": simulation.status,
        "reason": simulation.reason,
        "reply": simulation.reply,
        "kinds": np.array([KINDS.index(r.kind) for r in records], np.uint8),
        "ranks": np.array([r.rank for r in records], np.uint8),
        "firsts": np.array([r.first for r in records], np.uint8),
        "expected_levels": _joined([r.expected_levels for r in records]),
        "digit_mass": _joined(masses) if records and len(masses) == len(records) else None,
        "other_levels": _joined(others) if records and len(others) == len(records) else None,
        "other_explanation_id": simulation.other_explanation_id,
        **_provenance_row(simulation.provenance),
    }


def _insert_many(connection: Connection, statement: Any, rows: Iterable[Mapping[str, Any]]) -> None:
    for batch in _batches(rows):
        connection.execute(statement, batch)


def _upsert_many(connection: Connection, store: Store, table: Any, rows: Sequence[Mapping[str, Any]], key: list[str]) -> None:
    statement = upsert(store.dialect, table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in key}
    _insert_many(connection, statement.on_conflict_do_update(index_elements=key, set_=changed), rows)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    waiting = iter(rows)
    while batch := list(islice(waiting, ROWS_AT_ONCE)):
        yield batch


def _provenance_row(provenance: Provenance) -> dict[str, Any]:
    return {**asdict(provenance), "sampling": dict(provenance.sampling), "created_at": now()}


def _joined(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)


def _round(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    assert len(values) == CROP_LENGTH
    return values.astype("<f2").astype(np.float32)


def _neuron_rows(run_id: int, found: CollectedLayer) -> Iterable[dict[str, Any]]:
    top = found.exemplars.get("top")
    names = ("mean", "std", "min", "max", "share_positive")
    columns = {name: None if found.stats is None else getattr(found.stats, name).tolist() for name in names}
    for n in range(len(next(iter(found.exemplars.values())).counts)):
        strongest = float(top.peaks[n, 0]) if top is not None and top.counts[n] else None
        dead = top is not None and (strongest is None or strongest <= 0)
        yield {
            "run_id": run_id,
            "layer": found.layer,
            "neuron": n,
            "status": "dead" if dead else "ok",
            **{name: None if values is None else values[n] for name, values in columns.items()},
            "max_activation": strongest,
        }


def _exemplar_rows(run_id: int, found: CollectedLayer, dtype: str) -> Iterable[dict[str, Any]]:
    width = WIDTHS[dtype]
    for kind, arrays in found.exemplars.items():
        k = arrays.segments.shape[1]
        peaks = pack_activations(np.where(np.arange(k) < arrays.counts[:, None], arrays.peaks, 0), dtype)
        acts = pack_activations(arrays.activations, dtype)
        for n, count in enumerate(arrays.counts.tolist()):
            if not count:
                continue
            at, acts_at = n * k * width, n * k * 64 * width
            yield {
                "run_id": run_id,
                "layer": found.layer,
                "neuron": n,
                "kind": kind,
                "segments": arrays.segments[n, :count],
                "starts": arrays.starts[n, :count],
                "documents": arrays.documents[n, :count],
                "token_offsets": arrays.token_offsets[n, :count],
                "peaks": peaks[at : at + count * width],
                "activations": acts[acts_at : acts_at + count * 64 * width],
            }


def _peak_token_rows(connection: Connection, run_id: int, found: CollectedLayer) -> list[dict[str, Any]]:
    top = found.exemplars.get("top")
    if top is None:
        return []
    used = top.counts_mask()
    neurons = used.nonzero()[0]
    peaks = top.peak_token_ids
    if peaks is None:
        segments, back = np.unique(top.segments[used], return_inverse=True)
        ids = read_segment_ids(connection, run_id, set(segments.tolist()))
        table = np.stack([ids[int(segment)] for segment in segments]) if len(segments) else np.zeros((0, 128), np.uint32)
        tokens = table[back.reshape(-1), top.starts[used].astype(np.int64) + PEAK_INDEX]
    else:
        tokens = peaks[used]
    # By token, as the table is ordered: neighbours go to the same page.
    pairs, counts = np.unique(np.stack([tokens.astype(np.int64), neurons]), axis=1, return_counts=True)
    return [
        {"run_id": run_id, "token_id": token, "layer": found.layer, "neuron": n, "count": times}
        for token, n, times in zip(*pairs.tolist(), counts.tolist(), strict=True)
    ]


def _vocabulary_rows(run_id: int, found: CollectedLayer) -> Iterable[dict[str, Any]]:
    v = found.vocabulary
    if v is None:
        return
    for n in range(len(v.promoted_ids)):
        yield {
            "run_id": run_id,
            "layer": found.layer,
            "neuron": n,
            "promoted_ids": v.promoted_ids[n],
            "promoted_logits": v.promoted_logits[n],
            "suppressed_ids": v.suppressed_ids[n],
            "suppressed_logits": v.suppressed_logits[n],
        }
