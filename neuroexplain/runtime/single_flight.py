"""Results that several threads need at the same time and that are computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
Flight = Future[Sequence[Any]]  # what one call computes for its keys, in their order


class SingleFlight(Generic[Result]):
    """Computes a result once per key, however many threads ask for it, and keeps the last `size`.

    A failure is raised in all threads that wait for it and is not kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._places: dict[
            Any, tuple[Flight, int]
        ] = {}  # of each key: the flight, and where its result stands
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
        own: list[Key] = []
        flight: Flight = Future()
        with self._lock:
            for key in keys:
                if key not in self._places:
                    self._places[key] = flight, len(own)
                    own.append(key)
            places = [self._places[key] for key in keys]
            for key in list(islice(self._places, max(0, len(self._places) - self._size))):
                del self._places[key]
        if own:
            try:
                results = compute(own)
                if len(results) != len(own):
                    raise ValueError(f"{len(own)} keys have {len(results)} results")
            except BaseException as error:
                with self._lock:
                    for key in own:
                        if self._places.get(key, (None,))[0] is flight:
                            del self._places[key]
                flight.set_exception(error)
                raise
            flight.set_result(results)
        landed = {flight: flight.result() for flight in {flight for flight, _ in places}}
        return [landed[flight][place] for flight, place in places], own
