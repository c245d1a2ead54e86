"""What a run yields while it works; the command line draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: `done` of `total`. A `note` is a line for the reader, printed once."""

    stage: str  # "collecting", "explaining", ...
    done: int = 0
    total: int | None = None  # None: not known
    unit: str = ""  # what is counted: segments, neurons, ...
    failures: Mapping[str, int] = field(default_factory=dict)  # of what is done, by status
    note: str | None = None
    tokens: int = 0  # prompt tokens that LLMs have read so far
    servers: tuple[int, int] | None = None  # of a list of servers: those that answer, and all

    @property
    def n_failed(self) -> int:
        return sum(self.failures.values())
