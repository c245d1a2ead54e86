"""Many requests at once, in threads that never keep the process alive.

Daemon threads and not a pool: Python joins a pool's threads at exit, so Ctrl-C would wait for the server.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_flight(
    work: Callable[[Item], Result], items: Iterable[Item], n: int
) -> Iterator[tuple[Item, Result]]:
    """Apply `work` to the items, at most n at a time; yields (item, result) as they finish.

    `items` is read in the caller's thread, at most 2 n items ahead, so it may read a database. With n = 1
    everything happens in the caller's thread, in order. An exception of `work` is raised in the caller. A
    caller that leaves the iteration early waits for nothing, and no further item is started.
    """
    if n == 1:
        yield from ((item, work(item)) for item in items)
        return
    todo: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[Item, Result | None, BaseException | None]] = queue.SimpleQueue()
    stopping = threading.Event()

    def run() -> None:
        while (item := todo.get()) is not None and not stopping.is_set():
            try:
                finished.put((item, work(item), None))
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                finished.put((item, None, error))

    source = iter(items)
    n_waiting = n_threads = 0
    try:
        while True:
            for item in islice(source, 2 * n - n_waiting):
                todo.put(item)
                n_waiting += 1
                if n_threads < min(n, n_waiting):
                    threading.Thread(target=run, daemon=True).start()
                    n_threads += 1
            if not n_waiting:
                return
            item, result, error = finished.get()
            n_waiting -= 1
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
    finally:
        stopping.set()
        for _ in range(n_threads):
            todo.put(None)
