"""What a pipeline tells while it works; the command line draws it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage is: `done` of `total` units. `note` is a line that a person should read, said once."""

    stage: str  # what is being done: "collecting", "explaining", ...
    done: int = 0
    total: int | None = None  # None: not known
    unit: str = ""  # segments, neurons, ...
    failed: int = 0
    note: str | None = None
    tokens: int = 0  # prompt tokens that LLMs have read so far
