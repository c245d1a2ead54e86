"""Read runs, what they hold in numbers, and what commands did to them."""

from __future__ import annotations

from collections.abc import Mapping

from neuroexplain.errors import NotInStore
from neuroexplain.runs import Run, Session
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import decode_run, fields_of
from neuroexplain.units import Source


def list_runs(store: Store) -> list[Run]:
    """All runs, oldest first, unfinished ones too."""
    with store.read() as reader:
        sources: dict[int, list[Source]] = {}
        for row in reader.rows("SELECT * FROM sources ORDER BY run_id, layer"):
            sources.setdefault(row.run_id, []).append(Source(**fields_of(row, Source)))
        return [
            decode_run(row, tuple(sources.get(row.id, ())))
            for row in reader.rows("SELECT * FROM runs ORDER BY id")
        ]


def load_run(store: Store, run_id: int | None = None) -> Run:
    """A finished run; without an id, the latest."""
    runs = list_runs(store)
    finished = [run for run in runs if run.status == "finished"]
    if run_id is None:
        if not finished:
            unfinished = f" ({len(runs)} unfinished)" if runs else ""
            raise NotInStore(
                f"{store.name} holds no finished run{unfinished}.\nCollect one:  neuroexplain collect --db {store.name} ..."
            )
        return finished[-1]
    found = next((run for run in finished if run.id == run_id), None)
    if found is None:
        ids = ", ".join(str(run.id) for run in finished) or "none"
        raise NotInStore(
            f"There is no finished run {run_id} in {store.name}: it holds {ids}.\n"
            f"See them:  neuroexplain runs --db {store.name}"
        )
    return found


def count_units(store: Store, run_id: int) -> Mapping[str, int]:
    """Neurons of the run by status."""
    with store.read() as reader:
        rows = reader.rows(
            "SELECT status, count(*) FROM units WHERE run_id = :run GROUP BY status", run=run_id
        )
    return {row[0]: row[1] for row in rows}


def count_explanations(store: Store, run_id: int) -> list[tuple[str, str, str, int]]:
    """(explainer, model, status, how many), in that order."""
    what = "explainer, model, status"
    with store.read() as reader:
        rows = reader.rows(
            f"SELECT {what}, count(*) FROM explanations WHERE run_id = :run GROUP BY {what} ORDER BY {what}",
            run=run_id,
        )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def list_sessions(store: Store, run_id: int) -> list[Session]:
    """What the commands that explained and scored this run did, oldest first."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM sessions WHERE run_id = :run ORDER BY id", run=run_id)
    return [Session(**fields_of(row, Session)) for row in rows]


def load_prompt(store: Store, sha256: str) -> tuple[str, str]:
    """Name and text of a stored prompt file."""
    with store.read() as reader:
        row = reader.row("SELECT name, text FROM prompts WHERE sha256 = :sha256", sha256=sha256)
    if row is None:
        raise NotInStore(f"No prompt with the hash {sha256} in {store.name}.")
    return row.name, row.text
