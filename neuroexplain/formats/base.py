"""The interface of a format: how a run is exported to a folder, and how a folder is imported.

A new format is a file in this folder with `FORMAT`, or another package's entry point in the group
`neuroexplain.formats`. No other file names it.
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
    """What the user tells about a folder that does not tell it itself."""

    layers: tuple[int, ...] | None = None  # None: all
    tokenizer: str = "meta-llama/Meta-Llama-3-8B"  # name on the Hugging Face hub, or folder
    activation: str = "act"
    trust_remote_code: bool = False  # whether code that comes with the tokenizer is run


class Format:
    """One format. It overrides `write` if it can be exported, and `read` if it can be imported."""

    name: ClassVar[str]
    about: ClassVar[str]  # a few words for the help
    holds_whole_runs: ClassVar[bool] = False  # True: a folder holds all units of a run; else chosen ones

    @property
    def is_written(self) -> bool:
        return type(self).write is not Format.write

    @property
    def is_read(self) -> bool:
        return type(self).read is not Format.read

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        """Export units of a run, in ascending order, to a folder that appears when it is complete.

        Raises NeuroexplainError if the folder exists or cannot be written, or if the format cannot hold the
        run.
        """
        raise NeuroexplainError(
            f"{self.name} can only be imported. These can be exported: {', '.join(written_formats())}."
        )

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        """Store the contents of a folder as a finished run. An import that was cut off goes on.

        Raises NeuroexplainError if the folder is not of this format.
        """
        raise NeuroexplainError(
            f"{self.name} can only be exported. These can be imported: {', '.join(read_formats())}."
        )


FORMATS: Registry[Format] = Registry("formats", "FORMAT", "format")


def written_formats() -> tuple[str, ...]:
    """The names of the formats that can be exported."""
    return tuple(name for name in FORMATS.names() if FORMATS.load(name).is_written)


def read_formats() -> tuple[str, ...]:
    """The names of the formats that can be imported."""
    return tuple(name for name in FORMATS.names() if FORMATS.load(name).is_read)
