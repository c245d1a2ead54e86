"""What is read: units, their sources, and the lengths of what is kept of them. No numpy, torch or SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # numpy is not imported to look at rows of text: `query` starts quickly
    pass

SEGMENT_LENGTH = 128  # tokens that the subject reads at once
RECORD_LENGTH = 64  # tokens of a record
PEAK_INDEX = 32  # the peak's place in a top or bottom record: 32 tokens before it, 31 after
RANDOM_START = 64  # a random record is tokens 64..127 of its segment
CROP_LENGTH = 32  # tokens of a record that a simulator sees and is scored on

Kind = Literal["top", "bottom", "random"]
Sign = Literal["positive", "negative", "both"]
Side = Literal["positive", "negative"]
KINDS: tuple[Kind, ...] = ("top", "bottom", "random")
STRONGEST: Mapping[Side, Kind] = {
    "positive": "top",
    "negative": "bottom",
}  # the records where a side is strongest


@dataclass(frozen=True, order=True, slots=True)
class UnitId:
    """One unit of a layer's source within a run, both counted from 0; written `15:16`."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> UnitId:
        """Read `15:16`. Raises ValueError for anything else."""
        match = re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\s*", text, re.ASCII)
        if match is None:
            raise ValueError(f"a unit is written LAYER:UNIT, like 15:16; found {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run reads the units of one layer."""

    layer: int
    kind: str  # mlp, heads, residual: a name of sources.base.SOURCES
    module: (
        str | None
    )  # path from the subject's base model; None where arrays were imported that do not say it
    side: Literal["input", "output"]  # of the module
    width: int  # units
    dtype: str  # of activations
    group_size: int | None = (
        None  # units that belong together, as the dimensions of a head; None: they do not
    )
    encoder: str | None = (
        None  # the dictionary that makes units of what is read; None: what is read are the units
    )

    def is_like(self, other: Source) -> bool:
        """Whether both read the same units, whatever the dtype; a module that is not known may be any."""
        is_module_alike = None in (self.module, other.module) or self.module == other.module
        return is_module_alike and replace(self, module=None, dtype="") == replace(
            other, module=None, dtype=""
        )

    def label(self, index: int) -> str:
        """How a unit is called within its layer: `16`; of groups, group and place: `3.40`."""
        return (
            str(index) if self.group_size is None else f"{index // self.group_size}.{index % self.group_size}"
        )


def ranges_text(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> 0-2,5"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(str(n) for n in part) for part in parts)
