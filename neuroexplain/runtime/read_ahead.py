"""The next items, prepared in a thread while the caller works on the current one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Iterates over `items` in a thread, at most `ahead` items before the caller.

    An exception of `items` is raised in the caller. The thread ends when the iteration ends, for whatever
    reason, and never keeps the process alive.
    """

    def __init__(self, items: Iterable[Item], ahead: int = 2) -> None:
        self.waited = 0.0  # seconds that the caller has waited for items
        self._items, self._ahead = items, ahead

    def __iter__(self) -> Iterator[Item]:
        ready: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        room = threading.Semaphore(self._ahead)
        stopping = threading.Event()

        def run() -> None:
            try:
                source = iter(self._items)
                while room.acquire() and not stopping.is_set():
                    ready.put((next(source), None))
            except BaseException as error:  # noqa: BLE001  (raised again in the caller; StopIteration ends it)
                ready.put((None, error))

        threading.Thread(target=run, daemon=True).start()
        try:
            while True:
                began = time.monotonic()
                item, error = ready.get()
                self.waited += time.monotonic() - began
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                room.release()
                yield item  # type: ignore[misc]
        finally:
            stopping.set()
            room.release()
