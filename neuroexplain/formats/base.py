"""What a format must say: how a run is written for others to read, and how it is read again.

A new format is a file here with `FORMAT`, or a package's entry point in the group `neuroexplain.formats`. No other file
names it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from neuroexplain.errors import NeuroexplainError
from neuroexplain.registry import Registry
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.units import UnitId


@dataclass(frozen=True)
class ReadOptions:
    """What a person may say of data that does not say it itself."""

    layers: tuple[int, ...] | None = None  # None: all
    tokenizer: str = "meta-llama/Meta-Llama-3-8B"  # hub name or folder
    activation: str = "act"


class Format:
    """One format. A format that can be written overrides `write`, one that can be read overrides `read`."""

    name: ClassVar[str]
    about: ClassVar[str]  # in a few words
    holds_whole_runs: ClassVar[bool] = (
        False  # whether a folder holds all units of a run, or those that are named
    )

    @property
    def is_written(self) -> bool:
        return type(self).write is not Format.write

    @property
    def is_read(self) -> bool:
        return type(self).read is not Format.read

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        """Write units of a run, which are in ascending order, to a folder that appears when it is whole.

        Raises NeuroexplainError where it exists or cannot be written, or where the format cannot hold the run.
        """
        raise NeuroexplainError(f"{self.name} is only read. Written are {', '.join(written_formats())}.")

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        """Store what a folder holds as a finished run. An import that was cut off goes on.

        Raises NeuroexplainError where the folder does not hold this format.
        """
        raise NeuroexplainError(f"{self.name} is only written. Read are {', '.join(read_formats())}.")


FORMATS: Registry[Format] = Registry("formats", "FORMAT", "format")


def written_formats() -> tuple[str, ...]:
    """The names of the formats that can be exported."""
    return tuple(name for name in FORMATS.names() if FORMATS.load(name).is_written)


def read_formats() -> tuple[str, ...]:
    """The names of the formats that can be imported."""
    return tuple(name for name in FORMATS.names() if FORMATS.load(name).is_read)
