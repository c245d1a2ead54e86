"""How many requests run at once is handed to those who make requests: this is its form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class RunMany(Protocol):
    """What `in_flight.map_in_flight` does on threads; another one may use other machines."""

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item], n: int
    ) -> Iterator[tuple[Item, Result]]:
        """Apply `work` to the items, at most n at a time; yields (item, result) as they finish."""
        ...


def run_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], n: int = 1
) -> Iterator[tuple[Item, Result]]:
    """One after the other, in order, in the caller's thread."""
    return ((item, work(item)) for item in items)
