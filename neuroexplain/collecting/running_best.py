"""The running best of many rows at once: each row keeps its candidates with the largest keys (pure).

Each row (a unit, or a unit's share of a split) has `spare` slots more than the candidates that it keeps. A
candidate above the row's last kept key is written into a free slot and stays there. When a row has no free
slot left, its keys are sorted, everything beyond what it keeps is dropped, and those slots are free again.
Windows, the records' 64 activations, are nine tenths of the memory. They never move: they are written once
and read at the end, so they can lie in the host's memory while all else is on a GPU.

What else is kept of a candidate, and how equal keys or duplicates are told apart, is a subclass's: TopK
(top_k.py) and Sample (sample.py).

Rejected: sorting and moving windows at every batch took 18% of the forward pass, when this took 9%
(docs/benchmarks.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.units import RECORD_LENGTH

EMPTY = torch.iinfo(torch.int64).min  # the key of an unused slot: below every candidate's

State = TypeVar("State", bound="RunningBest")

# (rows of the batch, rows of the state, their slots), each [n_admitted]
Admitted = tuple[Int[Tensor, "n_admitted"], Int[Tensor, "n_admitted"], Int[Tensor, "n_admitted"]]


class RunningBest(ABC):
    """Each row's candidates so far, in no order: the best are among them.

    kept: how many candidates a row keeps, the same for all rows or a pattern that repeats.
    """

    spare: int = 16  # slots of each row beyond what it keeps; checkpoints have this shape
    tensors: ClassVar[tuple[str, ...]] = ("kept", "keys", "windows", "free", "n_free", "least")

    def __init__(
        self,
        n_rows: int,
        kept: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        windows_device: torch.device | None = None,
    ) -> None:
        """A state without records. The windows lie on `windows_device`, by default on `device`."""
        slots = max(kept) + self.spare
        pattern = torch.tensor(kept, dtype=torch.int64, device=device)
        self.kept = pattern.repeat(n_rows // len(kept))  # [rows]
        self.keys = torch.full((n_rows, slots), EMPTY, dtype=torch.int64, device=device)
        # Written now, since a system gives memory when it is first written: rare units fill their slots
        # late, and a run that does not fit should fail at its start.
        home = windows_device or device
        self.windows = torch.empty((n_rows, slots, RECORD_LENGTH), dtype=dtype, device=home).zero_()
        free = torch.arange(slots - 1, min(kept) - 1, -1, dtype=torch.int16, device=device)
        # The first n_free are free; candidates take the last of these.
        self.free = free.expand(n_rows, slots - min(kept)).contiguous()
        self.n_free = slots - self.kept
        # What a candidate's key must be above: the last kept key when the row was last sorted.
        self.least = torch.full((n_rows,), EMPTY, dtype=torch.int64, device=device)

    def narrow(self: State, rows: slice) -> State:
        """The state of some rows. It shares memory with this one: folding into it folds into this one."""
        if (rows.start, rows.stop) == (0, len(self.keys)):
            return self
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        for name in self.tensors:
            setattr(part, name, getattr(self, name)[rows])
        return part

    @abstractmethod
    def rank(self, rows: Int[Tensor, "n"] | slice) -> tuple[Int[Tensor, "n slots"], Int[Tensor, "n slots"]]:
        """(keys, slots) of these rows, best first; EMPTY keys come last."""
        ...

    def make_room(self, rows: Int[Tensor, "n"]) -> None:
        """Keep the best records of these rows and free all other slots."""
        ranked, order = self.rank(rows)
        n_slots, kept = ranked.shape[1], self.kept[rows]
        ranked = ranked.masked_fill(torch.arange(n_slots, device=kept.device) >= kept[:, None], EMPTY)
        self.keys[rows] = torch.empty_like(ranked).scatter_(1, order, ranked)
        self.free[rows] = order.flip(1)[:, : self.free.shape[1]].to(self.free.dtype)
        self.n_free[rows] = n_slots - kept
        self.least[rows] = self.least_above(ranked.gather(1, kept[:, None] - 1)[:, 0])

    def least_above(self, last: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """What a candidate's key must be above, by the last kept key; EMPTY stays EMPTY."""
        return last

    def admit(self, keys: Int[Tensor, "batch width"], rows: Int[Tensor, "batch width"]) -> Iterator[Admitted]:
        """Find slots for a batch's candidates, some of its segments at a time. Their keys are written.

        rows: the row of the state to which each key belongs. What else is kept of a candidate is for the
        caller to write before the next step.
        """
        batch_row, place = (keys > self.least[rows]).nonzero(as_tuple=True)
        if not len(batch_row):
            return
        row, key = rows[batch_row, place], keys[batch_row, place]
        # `spare` segments at a time always find room. Later in a run whole batches do.
        step = len(keys) if int(self._count(row).max()) <= self.spare else self.spare
        for first in range(0, len(keys), step):
            if step < len(keys):
                part = ((batch_row >= first) & (batch_row < first + step)).nonzero()[:, 0]
                admitted = self._find_slots(batch_row[part], row[part], key[part])
            else:
                admitted = self._find_slots(batch_row, row, key)
            if len(admitted[0]):
                yield admitted

    def _find_slots(
        self, batch_row: Int[Tensor, "n"], row: Int[Tensor, "n"], key: Int[Tensor, "n"]
    ) -> Admitted:
        """Take a slot for each candidate that is above its row's least, of a row `spare` at most."""
        crowded = (self._count(row) > self.n_free).nonzero()[:, 0]
        if len(crowded):
            self.make_room(crowded)
            above = (key > self.least[row]).nonzero()[:, 0]
            batch_row, row, key = batch_row[above], row[above], key[above]
        counts = self._count(row)
        by_row = row.argsort(stable=True)
        batch_row, row, key = batch_row[by_row], row[by_row], key[by_row]
        firsts = counts.cumsum(dim=0) - counts  # where each row's candidates begin
        number = torch.arange(len(row), device=row.device) - firsts[row]  # among those of its row, from 0
        slot = self.free[row, self.n_free[row] - 1 - number].long()
        self.n_free -= counts
        self.keys[row, slot] = key
        return batch_row, row, slot

    def _count(self, row: Int[Tensor, "n"]) -> Int[Tensor, "rows"]:
        """How many candidates each row has."""
        return torch.zeros_like(self.n_free).scatter_add_(0, row, torch.ones_like(row))

    def write_windows(
        self, row: Int[Tensor, "n"], slot: Int[Tensor, "n"], windows: Float[Tensor, "n record"]
    ) -> None:
        """Write the candidates' activations."""
        home = self.windows.device
        self.windows[row.to(home), slot.to(home)] = windows.to(home)

    def state(self) -> dict[str, Tensor]:
        """Its tensors, for a checkpoint; they share its memory."""
        return {name: getattr(self, name) for name in self.tensors}
