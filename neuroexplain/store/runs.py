"""Read runs, with their sessions, checks of simulators, and numbers of units and explanations."""

from __future__ import annotations

from collections.abc import Mapping

from neuroexplain.errors import NotInStore
from neuroexplain.runs import Run, Session, SimulatorCheck
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import decode_check, decode_run, fields_of
from neuroexplain.units import Source


def list_runs(store: Store) -> list[Run]:
    """All runs, oldest first, with unfinished ones."""
    with store.read() as reader:
        sources: dict[int, list[Source]] = {}
        for row in reader.rows("SELECT * FROM sources ORDER BY run_id, layer"):
            sources.setdefault(row.run_id, []).append(Source(**fields_of(row, Source)))
        return [
            decode_run(row, tuple(sources.get(row.id, ())))
            for row in reader.rows("SELECT * FROM runs ORDER BY id")
        ]


def load_run(store: Store, run_id: int | None = None) -> Run:
    """A finished run; without an id, the latest. Raises NotInStore if there is none."""
    runs = list_runs(store)
    finished = [run for run in runs if run.status == "finished"]
    if run_id is None:
        if not finished:
            unfinished = f" ({len(runs)} unfinished)" if runs else ""
            raise NotInStore(
                f"{store.name} holds no finished run{unfinished}.\n"
                f"Collect one:  neuroexplain collect --db {store.name} ..."
            )
        return finished[-1]
    run = next((run for run in finished if run.id == run_id), None)
    if run is None:
        ids = ", ".join(str(run.id) for run in finished) or "none"
        raise NotInStore(
            f"There is no finished run {run_id} in {store.name}: its finished runs are {ids}.\n"
            f"See them:  neuroexplain runs --db {store.name}"
        )
    return run


def count_units(store: Store, run_id: int) -> Mapping[str, int]:
    """The number of the run's units by status."""
    with store.read() as reader:
        rows = reader.rows(
            "SELECT status, count(*) FROM units WHERE run_id = :run GROUP BY status", run=run_id
        )
    return {row[0]: row[1] for row in rows}


def count_explanations(store: Store, run_id: int) -> list[tuple[str, str, str, int]]:
    """(explainer, model, status, number of explanations), in ascending order."""
    columns = "explainer, model, status"
    sql = f"SELECT {columns}, count(*) FROM explanations WHERE run_id = :run"
    with store.read() as reader:
        rows = reader.rows(f"{sql} GROUP BY {columns} ORDER BY {columns}", run=run_id)
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def count_scores(store: Store, run_id: int) -> int:
    """The number of the run's scores, of all scorers, metrics and splits."""
    with store.read() as reader:
        n: int = reader.value("SELECT count(*) FROM scores WHERE run_id = :run", run=run_id)
    return n


def list_sessions(store: Store, run_id: int) -> list[Session]:
    """The sessions of `explain` and `score` on this run, oldest first."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM sessions WHERE run_id = :run ORDER BY id", run=run_id)
    return [Session(**fields_of(row, Session)) for row in rows]


def list_checks(store: Store, run_id: int) -> list[SimulatorCheck]:
    """How well simulators did on known neurons, those of this run, by scorer and model."""
    sql = "SELECT * FROM simulator_checks WHERE run_id = :run ORDER BY scorer, scorer_model"
    with store.read() as reader:
        rows = reader.rows(sql, run=run_id)
    return [decode_check(row) for row in rows]


def load_prompt(store: Store, sha256: str) -> tuple[str, str]:
    """Name and text of a stored prompt file. Raises NotInStore if no prompt has this hash."""
    with store.read() as reader:
        row = reader.row("SELECT name, text FROM prompts WHERE sha256 = :sha256", sha256=sha256)
    if row is None:
        raise NotInStore(f"There is no prompt with the hash {sha256} in {store.name}.")
    return row.name, row.text
