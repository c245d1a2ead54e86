"""Layers, units, positions and parts as a person types them (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from neuroexplain.errors import NeuroexplainError
from neuroexplain.stable_hash import stable_hash
from neuroexplain.units import UnitId

MOST_NAMED = 10_000_000  # numbers of one range: more is a typing mistake, and would fill the memory
LAYER_FORMS = "15, 3-5 or 0,3-5"
UNIT_FORMS = "15:16, 15:0-99 or 15:0-99,20:7"
GROUP_FORMS = "15:3.40 or 15:3.0-63"


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `15`, `3-5` or `0,3-5` to layers in ascending order, each once."""
    layers: set[int] = set()
    for part in _parts(text):
        layers.update(_parse_range(part, text, "layers", LAYER_FORMS))
    return tuple(sorted(layers))


def parse_units(text: str, group_sizes: Mapping[int, int | None] | None = None) -> tuple[UnitId, ...]:
    """Read `15:16`, `15:0-99` or `15:0-99,20:7` to units in ascending order, each once.

    group_sizes holds the size of each layer's groups, such as heads. With them `15:3.40` and `15:3.0-63` name
    units of layer 15's fourth group.
    """
    units: set[UnitId] = set()
    for part in _parts(text):
        layer_text, colon, numbers = part.partition(":")
        if not colon or re.fullmatch(r"\d{1,9}", layer_text.strip(), re.ASCII) is None:
            raise NeuroexplainError(f"Cannot read the units {text!r}: write them like {UNIT_FORMS}")
        layer = int(layer_text)
        if "." in numbers:
            indices = _parse_grouped(numbers, text, layer, (group_sizes or {}).get(layer))
        else:
            indices = iter(_parse_range(numbers, text, "units", UNIT_FORMS))
        units.update(UnitId(layer, index) for index in indices)
    return tuple(sorted(units))


def parse_positions(text: str) -> tuple[int, int]:
    """Read the half-open range `64:97`. CollectConfig checks whether it can hold peaks."""
    match = re.fullmatch(r"\s*(\d+):(\d+)\s*", text, re.ASCII)
    if match is None:
        raise NeuroexplainError(
            f"Cannot read the positions {text!r}: write them like 64:97, the second not included"
        )
    return int(match[1]), int(match[2])


def parse_runs(text: str) -> tuple[int, ...]:
    """Read `1,2`, in the order given."""
    parts = _parts(text)
    if not all(re.fullmatch(r"\d{1,9}", part, re.ASCII) for part in parts):
        raise NeuroexplainError(f"Cannot read the runs {text!r}: write two like 1,2")
    return tuple(map(int, parts))


def parse_shard(text: str) -> tuple[int, int]:
    """Read `2/8`. CollectConfig checks whether there is such a part."""
    match = re.fullmatch(r"\s*(\d{1,6})/(\d{1,6})\s*", text, re.ASCII)
    if match is None:
        raise NeuroexplainError(f"Cannot read the part {text!r}: write it like 2/8, the second of eight")
    return int(match[1]), int(match[2])


def units_of_shard(units: Iterable[UnitId], shard: tuple[int, int] | None) -> list[UnitId]:
    """The units of one part of explaining, (2, 8) being the second of eight; all if there are no parts.

    A unit's part depends on the unit alone, so that parts of any commands have no unit in common.
    """
    if shard is None:
        return list(units)
    number, n = shard
    return [unit for unit in units if stable_hash("shard", unit.layer, unit.index) % n == number - 1]


def _parse_grouped(numbers: str, text: str, layer: int, size: int | None) -> Iterator[int]:
    """The indices in a layer of `3.40` or `3.0-63`, where groups have `size` units."""
    if size is None:
        raise NeuroexplainError(
            f"Cannot read the units {text!r}: those of layer {layer} have no groups. "
            f"Write them like {UNIT_FORMS}"
        )
    group_text, _, place_text = numbers.partition(".")
    places = _parse_range(place_text, text, "units", GROUP_FORMS)
    if "-" in group_text or places.stop > size:
        raise NeuroexplainError(
            f"Cannot read the units {text!r}: a group of layer {layer} has {size} units, counted from 0. "
            f"Write them like {GROUP_FORMS}"
        )
    group = _parse_range(group_text, text, "units", GROUP_FORMS).start
    return (group * size + place for place in places)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _parse_range(part: str, text: str, noun: str, forms: str) -> range:
    """The numbers of `3` or `3-5`; `text` is the whole selection, for messages."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
    if match is None:
        raise NeuroexplainError(f"Cannot read the {noun} {text!r}: write them like {forms}")
    first = int(match[1])
    last = int(match[2]) if match[2] is not None else first
    if last < first:
        raise NeuroexplainError(
            f"Cannot read the {noun} {text!r}: {part} runs backwards. Write it {last}-{first}"
        )
    if last - first >= MOST_NAMED:
        raise NeuroexplainError(f"Cannot read the {noun} {text!r}: {part} names over {MOST_NAMED:,}")
    return range(first, last + 1)
