"""What a run yields while it works; the command line draws it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is: `done` of `total`. A `note` is a line for the reader, printed once."""

    stage: str  # "collecting", "explaining", ...
    done: int = 0
    total: int | None = None  # None: not known
    unit: str = ""  # what is counted: segments, neurons, ...
    failed: int = 0
    note: str | None = None
    tokens: int = 0  # prompt tokens that LLMs have read so far
    servers: tuple[int, int] | None = None  # of a list of servers: those that answer, and all
