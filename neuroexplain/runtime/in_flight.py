"""Many requests at once, in threads that never keep the process alive."""

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

    `items` is read in the caller's thread, 2 n ahead, so it may read a database. With n = 1 everything happens there, in
    order. An exception of `work` is raised here. Left early, it starts nothing more and waits for nothing.
    """
    if n == 1:
        yield from ((item, work(item)) for item in items)
        return
    asked: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    answered: queue.SimpleQueue[tuple[Item, Result | None, BaseException | None]] = queue.SimpleQueue()
    stopping = threading.Event()

    def run() -> None:
        while (item := asked.get()) is not None and not stopping.is_set():
            try:
                answered.put((item, work(item), None))
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                answered.put((item, None, error))

    source = iter(items)
    waiting = started = 0
    try:
        while True:
            for item in islice(source, 2 * n - waiting):
                asked.put(item)
                waiting += 1
                if started < min(n, waiting):
                    threading.Thread(target=run, daemon=True).start()
                    started += 1
            if not waiting:
                return
            item, result, error = answered.get()
            waiting -= 1
            if error is not None:
                raise error
            yield item, result  # type: ignore[misc]
    finally:
        stopping.set()
        for _ in range(started):
            asked.put(None)
