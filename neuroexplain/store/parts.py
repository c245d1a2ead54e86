"""Parts of explaining: small files that hold explanations and scores, while the records stay in one database.

A part has its run's row under the same id, and what was explained before of its own units under the same ids,
so that nothing is asked twice and `merge` puts it back. It has no records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import TEXT_PARTS
from neuroexplain.runs import Run
from neuroexplain.store import tables as t
from neuroexplain.store.copy_rows import as_maps, insert_rows, insert_run, insert_with_ids
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.merge_explained import list_tried_units, read_explained, unit_batches
from neuroexplain.store.rows import chunks, sql_in
from neuroexplain.store.runs import list_runs
from neuroexplain.units import UnitId


@contextmanager
def open_part(
    file: str, records: Store, run: Run, units: Collection[UnitId], controls: Collection[int] = ()
) -> Iterator[Store]:
    """Open a part, or begin it with what `records` holds of these units and the explanations of these ids.

    Raises NeuroexplainError if the file is a part of another run, or lacks one of the explanations.
    """
    if "://" in file:
        raise NeuroexplainError(f"--part {file} is no file. Name a file, like --part part2.db")
    with open_store(file, create=True) as part:
        if not list_runs(part):
            with part.write() as connection:
                _begin(connection, records, run, units, controls)
        check_part(part, run)
        missing = set(controls) - _stored_ids(part, run.id, controls)
        if missing:
            raise NeuroexplainError(
                f"{file} was begun before explanation {min(missing)}, which it needs. "
                "Name a new file:  --part FILE"
            )
        yield part


def check_part(part: Store, run: Run) -> None:
    """Raise NeuroexplainError unless the part is one of this run."""
    own = list_runs(part)
    if len(own) != 1 or own[0].id != run.id or not is_same_run(own[0], run):
        raise NeuroexplainError(
            f"{part.name} is no part of this run: it holds another collection. Name a new file:  --part FILE"
        )


def is_same_run(a: Run, b: Run) -> bool:
    """Whether two rows are copies of one run's row."""
    return (a.subject, a.started_at, a.finished_at, a.config) == (
        b.subject,
        b.started_at,
        b.finished_at,
        b.config,
    )


def _begin(
    connection: Connection, records: Store, run: Run, units: Collection[UnitId], controls: Collection[int]
) -> None:
    """The first rows of a part, in one transaction."""
    insert_run(connection, records, run, id=run.id)
    with records.read() as reader:
        insert_rows(
            connection, t.sources, as_maps(reader, "SELECT * FROM sources WHERE run_id = :run", run=run.id)
        )
        insert_rows(connection, t.prompts, as_maps(reader, "SELECT * FROM prompts"))
        for layer, batch in unit_batches(sorted(set(units) & set(list_tried_units(records, run.id)))):
            rows = read_explained(reader, run.id, layer, batch)
            needed = rows.control_ids()
            insert_with_ids(connection, t.explanations, rows.explanations)
            _copy_explanations(connection, records, needed)
            for part in TEXT_PARTS:
                insert_with_ids(connection, t.PREDICTIONS[part], rows.predictions[part])
                insert_with_ids(connection, t.SCORES[part], rows.scores[part])
    _copy_explanations(connection, records, controls)


def _copy_explanations(connection: Connection, records: Store, ids: Collection[int]) -> None:
    with records.read() as reader:
        for batch in chunks(sorted(ids)):
            rows = as_maps(reader, f"SELECT * FROM explanations WHERE id {sql_in(batch)}")
            insert_with_ids(connection, t.explanations, rows)


def _stored_ids(part: Store, run_id: int, ids: Collection[int]) -> set[int]:
    stored: set[int] = set()
    with part.read() as reader:
        for batch in chunks(sorted(ids)):
            sql = f"SELECT id FROM explanations WHERE run_id = :run AND id {sql_in(batch)}"
            stored |= set(reader.column(sql, run=run_id))
    return stored
