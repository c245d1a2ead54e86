"""What one process does of the work on a run, while others may work on the same.

Where several processes write to one database, each takes some sides of units at a time, by leases
(store/leases.py), and reads again what is stored of them: another process may have finished them meanwhile.
The sides that others have are tried again, until they are finished or their leases have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from neuroexplain.runtime.result_writer import ResultWriter
from neuroexplain.runtime.run_many import RunMany
from neuroexplain.store.leases import Leases
from neuroexplain.store.rows import chunks
from neuroexplain.units import UnitSide

Task = TypeVar("Task")
Result = TypeVar("Result")
SIDES_AT_ONCE = 16  # claimed in one statement
WAIT = 1.0  # seconds, when others have all that is left


@dataclass(frozen=True)
class Pending(Generic[Task]):
    """A task on a side of a unit that is still to do."""

    key: Hashable  # tells it from the side's other tasks
    side: UnitSide
    load: Callable[[], Task]  # reads what the work needs


class Share(Generic[Task]):
    """The pending tasks of a command, as far as this process does them.

    read_again: the pending tasks on some sides, by what is stored now.
    """

    def __init__(
        self,
        leases: Leases | None,
        pending: Sequence[Pending[Task]],
        read_again: Callable[[Collection[UnitSide]], Sequence[Pending[Task]]],
    ) -> None:
        self._leases, self._pending, self._read_again = leases, pending, read_again
        self.n_elsewhere = 0  # tasks that other processes have done
        self._left: list[Pending[Task]] = []  # for the next round
        self._note: str | None = None

    def run(
        self, run_many: RunMany, work: Callable[[Task], Result], n: int, writer: ResultWriter
    ) -> Iterator[Result | None]:
        """Do the tasks, n at a time; yields their results, which are to be given to the writer.

        Yields None each second while other processes have all that is left.
        """
        is_waiting = False
        for tasks in self._rounds():
            if tasks is not None:
                for _, result in run_many(work, tasks, n):
                    is_waiting = False
                    yield result
                writer.flush()  # which ends the leases
                continue
            if not is_waiting:
                self._note = f"Waiting for other processes, which have the {len(self._left):,} that are left."
                is_waiting = True
            yield None
            time.sleep(WAIT)

    def take_note(self) -> str | None:
        """A line for the reader, once."""
        note, self._note = self._note, None
        return note

    def _rounds(self) -> Iterator[Iterator[Task] | None]:
        """Tasks to do now, round after round, or None to wait; without leases there is one round."""
        if self._leases is None:
            yield (pending.load() for pending in self._pending)
            return
        self._left = list(self._pending)
        while self._left:
            tasks, self._left = self._left, []
            given: dict[UnitSide, Pending[Task]] = {}
            yield self._claimed(self._leases, tasks, given)
            lost = [given[side] for side in self._leases.take_lost() if side in given]
            self.n_elsewhere -= len(lost)  # they were counted when they were done
            self._left += lost
            if len(self._left) == len(tasks):
                yield None

    def _claimed(
        self, leases: Leases, tasks: Sequence[Pending[Task]], given: dict[UnitSide, Pending[Task]]
    ) -> Iterator[Task]:
        """Those of the tasks whose sides can be claimed, one a side, and that nobody has done meanwhile."""
        for batch in chunks(tasks, SIDES_AT_ONCE):
            first = {pending.side: pending for pending in reversed(batch) if pending.side not in given}
            claimed = leases.claim(first.keys())
            now_pending = {pending.key: pending for pending in self._read_again(claimed)} if claimed else {}
            leases.release({side for side in claimed if first[side].key not in now_pending})
            for pending in batch:
                if pending.side not in claimed or first[pending.side] is not pending:
                    self._left.append(pending)
                elif pending.key not in now_pending:
                    self.n_elsewhere += 1
                else:
                    given[pending.side] = pending
                    yield now_pending[pending.key].load()
