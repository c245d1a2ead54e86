"""Results that several threads need at the same time and that are computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Computes a result once per key, however many threads ask for it, and keeps the last `size`.

    A failure is raised in all threads that wait for it and is not kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: dict[Hashable, Future[Result]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Result]) -> tuple[Result, bool]:
        """The result for the key, and whether this call computed it."""
        with self._lock:
            known = self._results.get(key)
            if known is None:
                future = self._results[key] = Future()
                if len(self._results) > self._size:
                    del self._results[next(iter(self._results))]
        if known is not None:
            return known.result(), False
        try:
            future.set_result(compute())
        except BaseException as error:
            with self._lock:
                self._results.pop(key, None)
            future.set_exception(error)
            raise
        return future.result(), True
