"""What is read: units, their sources, and the lengths of what is kept of them. No numpy, torch or SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

SEGMENT_LENGTH = 128  # tokens that the subject reads at once
RECORD_LENGTH = 64  # tokens of a record
MAX_INTEGER = 2**31 - 1  # of a layer, a unit or an id: integers of the database have 32 bits
PEAK_INDEX = 32  # the peak's place in a top or bottom record: 32 tokens before it, 31 after
RANDOM_START = 64  # a random or sampled record is tokens 64..127 of its segment
CROP_LENGTH = 32  # tokens of a record that a simulator sees and is scored on

Kind = Literal["top", "bottom", "random", "sampled", "background", "hard"]
Sign = Literal["positive", "negative", "both"]
Side = Literal["positive", "negative"]
# Kinds of exemplars; the store keeps a kind's place. The records of a background, and hard ones, stand apart.
KINDS: tuple[Kind, ...] = ("top", "bottom", "random", "sampled")
PREDICTED_KINDS: tuple[Kind, ...] = (*KINDS, "hard")  # of the records of a prediction, but for a background
SIDES: Mapping[Sign, tuple[Side, ...]] = {
    "positive": ("positive",),
    "negative": ("negative",),
    "both": ("positive", "negative"),
}
STRONGEST: Mapping[Side, Kind] = {"positive": "top", "negative": "bottom"}  # a side's strongest records


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


UnitSide: TypeAlias = tuple[UnitId, Side]  # what is explained


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run reads the units of one layer."""

    layer: int
    kind: str  # mlp, heads, residual: a name of sources.base.SOURCES
    module: str | None  # path from the subject's base model; None if imported data does not tell
    side: Literal["input", "output"]  # of the module
    width: int  # number of units
    dtype: str  # of activations
    group_size: int | None = None  # units of a group, such as the dimensions of a head; None: no groups
    encoder: str | None = None  # dictionary whose latents are the units; None: the values read are the units

    @property
    def dictionary(self) -> str | None:
        """The dictionary's name as it was given, of an absolute path the last two parts; None without one."""
        if self.encoder is None:
            return None
        name = self.encoder.rpartition("?")[0] or self.encoder
        return "/".join(name.rstrip("/").split("/")[-2:]) if name.startswith("/") else name

    def is_like(self, other: Source) -> bool:
        """Whether both read the same units, of any dtype. An unknown module is taken to be the same."""
        is_module_alike = None in (self.module, other.module) or self.module == other.module
        bare, bare_other = (replace(source, module=None, dtype="") for source in (self, other))
        return is_module_alike and bare == bare_other

    def label(self, index: int) -> str:
        """A unit's name within its layer: `16`, or group and place `3.40` if the source has groups."""
        if self.group_size is None:
            return str(index)
        group, place = divmod(index, self.group_size)
        return f"{group}.{place}"


def ranges_text(numbers: Iterable[int]) -> str:
    """The numbers as ranges in ascending order: 0, 1, 2, 5 -> `0-2,5`."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, ends)) for ends in ranges)
