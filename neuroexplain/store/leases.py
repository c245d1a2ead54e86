"""PostgreSQL: leases on sides of units, so that several processes explain one run together.

A process works on a side of a unit only while it has the lease on it, and stores what it found only if it
still has it. Leases end by the clock of the server, after LEASE_SECONDS; a thread renews those of a living
process. If it is killed or stopped, others take its sides over when its leases have ended.

Everything locks the rows in the order of their key, so that no two transactions wait for each other. What is
stored and the end of its leases are one transaction: whoever gets a lease next sees what was stored. The
server breaks a transaction off that stands still, since a stopped process would hold its locks for ever.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, text

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.engine import Store
from neuroexplain.units import UnitId, UnitSide

LEASE_SECONDS = 60.0
RENEWALS = 4  # in the time of a lease
STANDSTILL_SECONDS = 60.0  # of a transaction, and of one of its statements
END = "clock_timestamp() + make_interval(secs => :seconds)"
SIDES = (
    "unnest(CAST(:layers AS integer[]), CAST(:units AS integer[]), CAST(:sides AS text[]))"
    " AS s(layer, unit, side)"
)
CLAIM = f"""
INSERT INTO leases (run_id, layer, unit, side, holder, expires_at)
SELECT :run, layer, unit, side, :holder, {END} FROM {SIDES} ORDER BY layer, unit, side
ON CONFLICT (run_id, layer, unit, side) DO UPDATE
SET holder = excluded.holder, expires_at = excluded.expires_at WHERE leases.expires_at < clock_timestamp()
RETURNING layer, unit, side"""
LIMIT = "SELECT set_config('idle_in_transaction_session_timeout', :limit, true)"
LIMIT_STATEMENTS = "SELECT set_config('statement_timeout', :limit, true)"  # COPY waits for the process
OWN = "run_id = :run AND holder = :holder"
IN_ORDER = "ORDER BY layer, unit, side FOR UPDATE"
LOCK = f"""
SELECT layer, unit, side, expires_at > clock_timestamp() AS is_held
FROM leases JOIN {SIDES} USING (layer, unit, side) WHERE {OWN} ORDER BY layer, unit, side
FOR UPDATE OF leases"""
RENEW = f"""
WITH own AS (SELECT layer, unit, side FROM leases WHERE {OWN} AND expires_at > clock_timestamp() {IN_ORDER})
UPDATE leases SET expires_at = {END} FROM own
WHERE leases.run_id = :run AND (leases.layer, leases.unit, leases.side) = (own.layer, own.unit, own.side)"""
END_SOME = f"""
DELETE FROM leases USING {SIDES}
WHERE {OWN} AND (leases.layer, leases.unit, leases.side) = (s.layer, s.unit, s.side)"""
END_ALL = f"""
WITH own AS (SELECT layer, unit, side FROM leases WHERE {OWN} {IN_ORDER})
DELETE FROM leases USING own
WHERE leases.run_id = :run AND (leases.layer, leases.unit, leases.side) = (own.layer, own.unit, own.side)"""


class Leases:
    """The leases of one process on sides of a run's units."""

    def __init__(self, store: Store, run_id: int) -> None:
        self._store = store
        process = f"{os.getpid()} on {socket.gethostname()}"[:40]
        self._own: dict[str, Any] = {"run": run_id, "holder": f"{process} {secrets.token_hex(8)}"}
        self._lost: set[UnitSide] = set()

    def claim(self, sides: Collection[UnitSide]) -> set[UnitSide]:
        """Those of the sides on which this process has a lease now."""
        with self._store.write() as connection:
            connection.execute(text(LIMIT), {"limit": f"{STANDSTILL_SECONDS}s"})
            return {_side_of(row) for row in connection.execute(text(CLAIM), self._values(sides))}

    def end(self, connection: Connection, sides: Collection[UnitSide]) -> set[UnitSide]:
        """End the leases on these sides with the transaction.

        Returns those that have lasted until now; no other process gets them before the transaction ends.
        """
        for sql in (LIMIT, LIMIT_STATEMENTS):
            connection.execute(text(sql), {"limit": f"{STANDSTILL_SECONDS}s"})
        values = self._values(sides)
        held = {_side_of(row) for row in connection.execute(text(LOCK), values) if row.is_held}
        connection.execute(text(END_SOME), values)
        self._lost |= set(sides) - held
        return held

    def release(self, sides: Collection[UnitSide]) -> None:
        """End the leases on sides of which nothing is to be stored."""
        if sides:
            with self._store.write() as connection:
                self.end(connection, sides)

    def take_lost(self) -> set[UnitSide]:
        """The sides whose leases did not last, since the last call."""
        lost, self._lost = self._lost, set()
        return lost

    def renew(self) -> None:
        """Let the leases that have not ended last LEASE_SECONDS from now."""
        with self._store.write() as connection:
            connection.execute(text(RENEW), self._own | {"seconds": LEASE_SECONDS})

    def release_all(self) -> None:
        with self._store.write() as connection:
            connection.execute(text(END_ALL), self._own)

    def _values(self, sides: Collection[UnitSide]) -> dict[str, Any]:
        ordered = sorted(sides)
        return self._own | {
            "seconds": LEASE_SECONDS,
            "layers": [unit.layer for unit, _ in ordered],
            "units": [unit.index for unit, _ in ordered],
            "sides": [side for _, side in ordered],
        }


@contextmanager
def open_leases(store: Store, run_id: int) -> Iterator[Leases | None]:
    """Leases that are renewed until the end. None on SQLite, where one process writes a run."""
    if store.dialect != "postgresql":
        yield None
        return
    leases, ended = Leases(store, run_id), threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / RENEWALS):
            with suppress(NeuroexplainError):  # the server does not answer: the leases may end meanwhile
                leases.renew()

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield leases
    finally:
        ended.set()
        thread.join()
        leases.release_all()


def _side_of(row: Any) -> UnitSide:
    return UnitId(row.layer, row.unit), row.side
