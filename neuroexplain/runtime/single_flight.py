"""Results that several threads need at the same time and that are computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Computes a result once per key, however many threads ask for it, and keeps the last `size`.

    A failure is raised in all threads that wait for it and is not kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: dict[Any, Future[Result]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Result]) -> tuple[Result, bool]:
        """The result for the key, and whether this call computed it."""
        results, computed = self.get_many([key], lambda _: [compute()])
        return results[0], bool(computed)

    def get_many(
        self, keys: Sequence[Key], compute: Callable[[list[Key]], Sequence[Result]]
    ) -> tuple[list[Result], list[Key]]:
        """The result for each key, and the keys that this call computed: those that nobody asked for before.

        compute gets these keys, each once, and returns their results in their order.
        """
        futures: list[Future[Result]] = []
        own: dict[Key, Future[Result]] = {}
        with self._lock:
            for key in keys:
                if key not in self._results:
                    self._results[key] = own[key] = Future()
                futures.append(self._results[key])
            for key in list(islice(self._results, max(0, len(self._results) - self._size))):
                del self._results[key]
        if own:
            try:
                for future, result in zip(own.values(), compute(list(own)), strict=True):
                    future.set_result(result)
            except BaseException as error:
                with self._lock:
                    for key in own:
                        self._results.pop(key, None)
                for future in own.values():
                    if not future.done():
                        future.set_exception(error)
                raise
        return [future.result() for future in futures], list(own)
