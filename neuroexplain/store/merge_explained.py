"""Merge the explanations, predictions and scores of one database's run into the same run of another.

Rule. A row is known by what was asked: an explanation by its unit and request, a prediction by its
explanation, scorer and model, scores by their prediction. Of two rows the fuller one stays
(`explanation_rank`, `prediction_rank`), the stored one of equals. So merging again changes nothing, and
parts of different units give the same content in any order. An explanation that has a text never gets
another one, since predictions rest on it: if two databases have different answers to one request, the stored
one stays with its predictions, and is counted. Which explanation of a side is chosen, the newer of both
tells (`ExplainedRows.versions`).

All columns travel, whatever they are (copy_rows.py); ids are given anew, references follow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

from sqlalchemy import Connection, text

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import HUMAN, TEXT_PARTS, Status, TextPart
from neuroexplain.store import tables as t
from neuroexplain.store.copy_rows import RowMap, as_maps, insert_rows, update_rows
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import PREDICTION_TABLES, SCORE_TABLES
from neuroexplain.store.reader import Reader, reader_of
from neuroexplain.store.rows import chunks, decode_json, sql_in
from neuroexplain.store.save_hard import find_other_hard, hard_rows_of, merge_hard
from neuroexplain.store.statements import delete_many
from neuroexplain.units import UnitId

UNITS_AT_ONCE = 500  # of one transaction
Key: TypeAlias = tuple[int, int, str]  # layer, unit, request: an explanation, in any database
Side: TypeAlias = tuple[int, int, str, str, str]  # layer, unit, side, explainer, model
KEPT_COLUMNS = ("id", "run_id", "chosen")  # of a stored explanation that a fuller one replaces


@dataclass(frozen=True)
class MergedUnits:
    """What merging did so far with a part."""

    n_done: int  # units
    n_units: int
    n_different: int = 0  # explanations that have another text here: they were kept


@dataclass(frozen=True)
class ExplainedRows:
    """The rows of some units."""

    explanations: list[dict[str, Any]]
    predictions: Mapping[TextPart, list[dict[str, Any]]]  # from whole explanations, and from their rules
    scores: Mapping[TextPart, list[dict[str, Any]]]

    def control_ids(self) -> set[int]:
        """The explanations that predictions were compared with."""
        rows = (row for part in TEXT_PARTS for row in self.predictions[part])
        return {row["control_explanation_id"] for row in rows} - {None}

    def sides(self) -> dict[Side, list[dict[str, Any]]]:
        """The explanations of each side of a unit by one explainer and model. A person's own are in none."""
        sides: dict[Side, list[dict[str, Any]]] = {}
        for row in self.explanations:
            if row["explainer"] != HUMAN:
                side = row["layer"], row["unit"], row["side"], row["explainer"], row["model"]
                sides.setdefault(side, []).append(row)
        return sides

    def versions(self) -> dict[Side, tuple[Any, ...]]:
        """How far each side's explanations have come: the newer of two versions says which is chosen."""
        reported = {row["explanation_id"] for row in self.predictions["whole"] if row["has_report"]}
        return {
            side: (
                max(row["created_at"] for row in own),
                sum(row["status"] == Status.OK for row in own),
                sum(row["id"] in reported for row in own),
            )
            for side, own in self.sides().items()
        }


def merge_explained(part: Store, part_run: int, into: Store, run_id: int) -> Iterator[MergedUnits]:
    """Merge one part, some units a transaction."""
    _merge_whole_tables(part, part_run, into, run_id)
    units = list_tried_units(part, part_run)
    done, n_different = 0, 0
    for layer, batch in unit_batches(units):
        with part.read() as reader:
            rows = read_explained(reader, part_run, layer, batch)
            with into.write() as connection:
                merge_hard(connection, reader, part_run, run_id, layer, batch)
                n_different += _merge_units(connection, reader, rows, run_id, layer, batch)
        done += len(batch)
        yield MergedUnits(done, len(units), n_different)


def find_other_records(part: Store, part_run: int, into: Store, run_id: int) -> Iterator[UnitId]:
    """The explained units of the part whose records differ between the two databases.

    Records of look-alikes may lack in either.
    """
    for layer, batch in unit_batches(list_tried_units(part, part_run)):
        with part.read() as reader:
            here = _records_of(reader, part_run, layer, batch)
            hard_here = hard_rows_of(reader, part_run, layer, batch)
        with into.read() as reader:
            there = _records_of(reader, run_id, layer, batch)
            hard = find_other_hard(hard_here, hard_rows_of(reader, run_id, layer, batch))
        different = (unit for unit in batch if here.get(unit) != there.get(unit) or unit in hard)
        yield from (UnitId(layer, unit) for unit in different)


def list_tried_units(store: Store, run_id: int) -> list[UnitId]:
    """The run's units that have an explanation or a failed attempt, in ascending order."""
    sql = "SELECT DISTINCT layer, unit FROM explanations WHERE run_id = :run ORDER BY layer, unit"
    with store.read() as reader:
        return [UnitId(*row) for row in reader.rows(sql, run=run_id)]


def unit_batches(units: Sequence[UnitId]) -> Iterator[tuple[int, list[int]]]:
    """Ascending units as (layer, some of its units)."""
    for layer, of_layer in groupby(units, key=lambda unit: unit.layer):
        for batch in chunks((unit.index for unit in of_layer), UNITS_AT_ONCE):
            yield layer, batch


def read_explained(reader: Reader, run_id: int, layer: int, units: Collection[int]) -> ExplainedRows:
    """All that was explained, predicted and scored of these units, in the order of ids."""
    where = f"run_id = :run AND layer = :layer AND unit {sql_in(units)}"
    explanations = as_maps(
        reader, f"SELECT * FROM explanations WHERE {where} ORDER BY id", run=run_id, layer=layer
    )
    of_these = f"explanation_id {sql_in(row['id'] for row in explanations)} ORDER BY id"
    predictions, scores = (
        {part: as_maps(reader, f"SELECT * FROM {table} WHERE {of_these}") for part, table in tables.items()}
        for tables in (PREDICTION_TABLES, SCORE_TABLES)
    )
    return ExplainedRows(explanations, predictions, scores)


def key_of(row: RowMap) -> Key:
    return row["layer"], row["unit"], row["request_key"]


def explanation_rank(row: RowMap) -> tuple[Any, ...]:
    """Of two answers to one request that with the higher rank stays: a usable one, then the later attempt."""
    return row["status"] == Status.OK, not Status(row["status"]).failed, row["created_at"]


def prediction_rank(row: RowMap) -> tuple[Any, ...]:
    """Of two predictions that with the higher rank stays: usable, with more records, with its control.

    A failed control, which has a reason, counts more than one that was not tried.
    """
    is_usable = row["status"] == Status.OK
    control = 2 if row["control_explanation_id"] is not None else int(bool(is_usable and row["reason"]))
    read = row["n_read"] or 0, bool(row["with_bills"]), bool(row["has_report"])
    n_records = row["n_hard"] is not None, len(row["ranks"])
    return is_usable, *read, *n_records, control, "" if is_usable else row["created_at"]


def _merge_whole_tables(part: Store, part_run: int, into: Store, run_id: int) -> None:
    """Prompts, sessions and checks of simulators: rows that `into` lacks; of checks the newer one."""
    with part.read() as reader:
        prompts = as_maps(reader, "SELECT * FROM prompts")
        sessions = as_maps(reader, "SELECT * FROM sessions WHERE run_id = :run ORDER BY id", run=part_run)
        checks = as_maps(reader, "SELECT * FROM simulator_checks WHERE run_id = :run", run=part_run)
    with into.write() as connection:
        insert_rows(connection, t.prompts, prompts, skip_existing=True)
        reader = reader_of(connection)
        stored = as_maps(reader, "SELECT * FROM sessions WHERE run_id = :run", run=run_id)
        known = {_without_ids(row) for row in stored}
        new = ({**row, "run_id": run_id} for row in sessions if _without_ids(row) not in known)
        insert_rows(connection, t.sessions, new)
        of_check = "run_id = :run AND scorer = :scorer AND scorer_model = :scorer_model"
        for row in checks:
            drop = f"DELETE FROM simulator_checks WHERE {of_check} AND created_at < :created_at"
            values = {name: row[name] for name in ("scorer", "scorer_model", "created_at")}
            connection.execute(text(drop), values | {"run": run_id})
        rows = ({**row, "run_id": run_id} for row in checks)
        insert_rows(connection, t.simulator_checks, rows, skip_existing=True)


def _merge_units(
    connection: Connection,
    part: Reader,
    rows: ExplainedRows,
    run_id: int,
    layer: int,
    units: Collection[int],
) -> int:
    """Merge the rows of some units. Returns how many explanations have another text in the target."""
    target = reader_of(connection)
    stored = read_explained(target, run_id, layer, units)
    by_key = {key_of(row): row for row in stored.explanations}
    new, fuller, n_different = [], [], 0
    for row in rows.explanations:
        other = by_key.get(key_of(row))
        if other is None:
            new.append({**row, "run_id": run_id})
        elif other["status"] == Status.OK:
            n_different += row["status"] == Status.OK and hypotheses_of(row) != hypotheses_of(other)
        elif explanation_rank(row) > explanation_rank(other):
            fuller.append({**row, **{name: other[name] for name in KEPT_COLUMNS}})
    insert_rows(connection, t.explanations, new)
    update_rows(connection, t.explanations, fuller)
    merged = read_explained(target, run_id, layer, units)
    _merge_choices(connection, rows, stored, merged)
    ids = _target_ids(connection, part, rows, run_id)
    for text_part in TEXT_PARTS:
        _merge_predictions(connection, text_part, rows, merged, ids, run_id)
    return n_different


def _merge_choices(
    connection: Connection, rows: ExplainedRows, stored: ExplainedRows, merged: ExplainedRows
) -> None:
    """Let the newer version of each side say which of its explanations is chosen."""
    new, old = rows.versions(), stored.versions()
    chosen_new, chosen_old = (
        {key_of(row) for row in x.explanations if row["chosen"]} for x in (rows, stored)
    )
    changed: dict[bool, list[int]] = {True: [], False: []}
    for side, own in merged.sides().items():
        is_newer = side in new and (side not in old or new[side] > old[side])
        chosen = chosen_new if is_newer else chosen_old
        for row in own:
            is_chosen = key_of(row) in chosen
            if bool(row["chosen"]) != is_chosen:
                changed[is_chosen].append(row["id"])
    for is_chosen, ids in changed.items():
        for batch in chunks(ids):
            sql = f"UPDATE explanations SET chosen = :chosen WHERE id {sql_in(batch)}"
            connection.execute(text(sql), {"chosen": is_chosen})


def _merge_predictions(
    connection: Connection,
    text_part: TextPart,
    rows: ExplainedRows,
    merged: ExplainedRows,
    ids: Mapping[int, int],
    run_id: int,
) -> None:
    """Write the predictions that are new or fuller, with their scores, under the target's ids.

    ids: the target's ids of explanations, see _target_ids.
    """
    predictions, score_table = t.PREDICTIONS[text_part], t.SCORES[text_part]
    stored = {_prediction_key(row): row for row in merged.predictions[text_part]}
    new, fuller = [], []
    for row in rows.predictions[text_part]:
        if row["explanation_id"] not in ids:
            continue
        own = {**row, "run_id": run_id, "explanation_id": ids[row["explanation_id"]]}
        other = stored.get(_prediction_key(own))
        if other is not None and prediction_rank(row) <= prediction_rank(other):
            continue
        own["control_explanation_id"] = _control_id(row, ids)
        if other is None:
            new.append(own)
        else:
            fuller.append({**own, "id": other["id"]})
    insert_rows(connection, predictions, new)
    update_rows(connection, predictions, fuller)
    written = {_prediction_key(row) for row in (*new, *fuller)}
    key = "explanation_id", "scorer", "scorer_model"
    delete_many(
        connection, score_table, [dict(zip(key, _prediction_key(row), strict=True)) for row in fuller]
    )
    scores = (
        {**row, "run_id": run_id, "explanation_id": ids[row["explanation_id"]]}
        | {"control_explanation_id": _control_id(row, ids)}
        for row in rows.scores[text_part]
        if (ids.get(row["explanation_id"]), row["scorer"], row["scorer_model"]) in written
    )
    insert_rows(connection, score_table, scores)


def _target_ids(connection: Connection, part: Reader, rows: ExplainedRows, run_id: int) -> dict[int, int]:
    """The target's ids of the part's explanations and of their controls, where the texts are the same."""
    own = {row["id"]: row for row in rows.explanations}
    controls = rows.control_ids() - own.keys()
    for batch in chunks(sorted(controls)):
        sql = f"SELECT * FROM explanations WHERE id {sql_in(batch)}"
        own |= {row["id"]: row for row in as_maps(part, sql)}
    units = sorted({UnitId(row["layer"], row["unit"]) for row in own.values()})
    target = reader_of(connection)
    stored: dict[Key, dict[str, Any]] = {}
    for layer, batch in unit_batches(units):
        where = f"run_id = :run AND layer = :layer AND unit {sql_in(batch)}"
        sql = f"SELECT id, layer, unit, request_key, text, parts, rule FROM explanations WHERE {where}"
        stored |= {key_of(row): row for row in as_maps(target, sql, run=run_id, layer=layer)}
    return {
        explanation_id: stored[key_of(row)]["id"]
        for explanation_id, row in own.items()
        if key_of(row) in stored and hypotheses_of(row) == hypotheses_of(stored[key_of(row)])
    }


def _control_id(row: RowMap, ids: Mapping[int, int]) -> int | None:
    control = row["control_explanation_id"]
    if control is not None and control not in ids:
        raise NeuroexplainError(
            f"Explanation {row['explanation_id']} of the part was compared with another unit's explanation, "
            f"{control}, which is missing or reads otherwise where it is merged into.\n"
            "Merge parts that were explained with --shard, and make the controls afterwards:  "
            "neuroexplain score --controls"
        )
    return None if control is None else ids[control]


def _prediction_key(row: RowMap) -> tuple[int, str, str]:
    return row["explanation_id"], row["scorer"], row["model"]


def hypotheses_of(row: RowMap) -> tuple[Any, ...]:
    """What is simulated of an explanation: its text, its rule, and the parts of a union."""
    return row["text"], row["rule"], *(() if row["parts"] is None else decode_json(row["parts"]))


def _without_ids(row: RowMap) -> tuple[Any, ...]:
    return tuple(value for name, value in row.items() if name not in ("id", "run_id"))


def _records_of(reader: Reader, run_id: int, layer: int, units: Collection[int]) -> dict[int, list[Any]]:
    """Each unit's rows of records, to be compared."""
    where = f"run_id = :run AND layer = :layer AND unit {sql_in(units)}"
    records: dict[int, list[Any]] = {}
    for table, order in (("exemplars", "kind"), ("samples", "side")):
        sql = f"SELECT * FROM {table} WHERE {where} ORDER BY unit, {order}"
        for row in as_maps(reader, sql, run=run_id, layer=layer):
            records.setdefault(row["unit"], []).append((table, _without_ids(row)))
    return records
