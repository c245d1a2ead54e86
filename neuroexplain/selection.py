"""What a person types to name layers, units and positions (pure)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from neuroexplain.errors import NeuroexplainError
from neuroexplain.units import UnitId

MOST_NAMED = 10_000_000  # units in one selection: more is a slip of the finger


def parse_layers(text: str) -> tuple[int, ...]:
    """Read `15`, `3-5` or `0,3-5` to layers in ascending order, each once."""
    return tuple(
        sorted(
            {number for part in _parts(text) for number in _range(part, text, "layers", "15, 3-5 or 0,3-5")}
        )
    )


def parse_units(text: str, group_sizes: Mapping[int, int | None] | None = None) -> tuple[UnitId, ...]:
    """Read `15:16`, `15:0-99` or `15:0-99,20:7` to units in ascending order, each once.

    group_sizes has the size of a layer's groups, such as heads: `15:3.40` and `15:3.0-63` name units of the fourth.
    """
    form = "15:16, 15:0-99 or 15:0-99,20:7"
    found: set[UnitId] = set()
    for part in _parts(text):
        layer, colon, numbers = part.partition(":")
        if not colon or re.fullmatch(r"\d{1,9}", layer.strip(), re.ASCII) is None:
            raise NeuroexplainError(f"Cannot read the units {text!r}: write them like {form}")
        group, dot, places = numbers.partition(".")
        if not dot:
            found.update(UnitId(int(layer), number) for number in _range(numbers, text, "units", form))
            continue
        size = (group_sizes or {}).get(int(layer))
        if size is None:
            raise NeuroexplainError(
                f"Cannot read the units {text!r}: those of layer {int(layer)} have no groups. Write them like {form}"
            )
        (number,) = _range(group, text, "units", "15:3.40 or 15:3.0-63") if "-" not in group else (None,)
        inside = _range(places, text, "units", "15:3.40 or 15:3.0-63")
        if number is None or inside.stop > size:
            raise NeuroexplainError(
                f"Cannot read the units {text!r}: a group of layer {int(layer)} has {size} units, counted from 0. "
                "Write them like 15:3.40 or 15:3.0-63"
            )
        found.update(UnitId(int(layer), number * size + place) for place in inside)
    return tuple(sorted(found))


def parse_positions(text: str) -> tuple[int, int]:
    """Read the half-open range `64:97`. Whether it can hold peaks is CollectConfig's to say."""
    match = re.fullmatch(r"\s*(\d+):(\d+)\s*", text, re.ASCII)
    if match is None:
        raise NeuroexplainError(
            f"Cannot read the positions {text!r}: write them like 64:97, the second not included"
        )
    return int(match[1]), int(match[2])


def parse_shard(text: str) -> tuple[int, int]:
    """Read `2/8`. Whether there is such a part is CollectConfig's to say."""
    match = re.fullmatch(r"\s*(\d{1,6})/(\d{1,6})\s*", text, re.ASCII)
    if match is None:
        raise NeuroexplainError(f"Cannot read the part {text!r}: write it like 2/8, the second of eight")
    return int(match[1]), int(match[2])


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _range(part: str, text: str, what: str, form: str) -> range:
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
    if match is None:
        raise NeuroexplainError(f"Cannot read the {what} {text!r}: write them like {form}")
    first = int(match[1])
    last = int(match[2]) if match[2] is not None else first
    if last < first:
        raise NeuroexplainError(
            f"Cannot read the {what} {text!r}: {part} runs backwards. Write it {last}-{first}"
        )
    if last - first >= MOST_NAMED:
        raise NeuroexplainError(f"Cannot read the {what} {text!r}: {part} names over {MOST_NAMED:,}")
    return range(first, last + 1)
