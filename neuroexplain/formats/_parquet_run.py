"""Read run.json of a Parquet export: the run, checks of its simulators, and the other files' hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from neuroexplain.config import MOST_BACKGROUND, MOST_RECORDS
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import SPLITS
from neuroexplain.formats import _parquet_version_1 as version_1
from neuroexplain.formats._parquet_tables import VERSION, DamagedFolder
from neuroexplain.runs import Run, SimulatorCheck
from neuroexplain.units import MAX_INTEGER, SEGMENT_LENGTH, Source

LONGEST_ACTIVATION = 32  # characters, the width of the column
# Fields that exports of earlier versions lack, all of them: their runs go on by the earlier rules.
NEW_FIELDS: Mapping[str, Any] = {
    "split_rule": "ranks",
    "n_sampled": 0,
    "barred_ids": [],
    "split_segments": {},
}
# Likewise, of the versions before backgrounds.
NEWER_FIELDS: Mapping[str, Any] = {"n_background": 0, "health": {}}
MAX_TOKEN_ID = (1 << 24) - 1
MAX_BIG_INTEGER = (1 << 63) - 1  # the greatest that a column of 64 bits can hold


class ExportedRun(NamedTuple):
    """What run.json holds."""

    run: Run
    checks: list[SimulatorCheck]
    hashes: Mapping[str, str] | None  # SHA-256 by path in the folder; None if the export is older than they


def read_run(folder: Path) -> ExportedRun:
    """The run, with checks of its simulators and the hashes of the other files.

    Raises NeuroexplainError if the folder is not
    an export of this format, and DamagedFolder if a value of the run is missing or impossible.
    """
    file = folder / "run.json"
    contents = _read_json(folder, file)
    if NEW_FIELDS.keys().isdisjoint(contents):
        contents = {**contents, **NEW_FIELDS}
    if NEWER_FIELDS.keys().isdisjoint(contents):
        contents = {**contents, **NEWER_FIELDS}
    missing = [name for name in Run.__dataclass_fields__ if name not in contents]
    if missing:
        raise DamagedFolder(file, f"{missing[0]} is missing")
    try:
        run = msgspec.convert(contents, Run)
        checks = msgspec.convert(contents.get("checks", []), list[SimulatorCheck])
        hashes = msgspec.convert(contents["files"], dict[str, str]) if "files" in contents else None
    except msgspec.ValidationError as error:
        raise DamagedFolder(file, error) from error
    impossible = _impossible_fields(run)
    if any(source.keys() != Source.__dataclass_fields__.keys() for source in contents["sources"]):
        impossible.append("sources")
    if impossible:
        name = impossible[0]
        raise DamagedFolder(file, f"{name} is {json.dumps(contents[name])[:60]}")
    return ExportedRun(run, checks, hashes)


def _read_json(folder: Path, file: Path) -> dict[str, Any]:
    """The contents of run.json with the names of this version."""
    try:
        contents = msgspec.json.decode(file.read_bytes())  # refuses NaN and lone surrogates
    except (OSError, ValueError, RecursionError) as error:
        raise NeuroexplainError(
            f"{folder} has no run.json that can be read, so it is not an export of neuroexplain ({error})."
        ) from error
    if not isinstance(contents, dict) or contents.get("format") not in (1, VERSION):
        raise NeuroexplainError(
            f"{folder} was written in another version of this format; 1 and {VERSION} can be imported."
        )
    if contents["format"] != 1:
        return contents
    try:
        return contents | version_1.run_fields_as_now(contents)
    except ValueError as error:
        raise DamagedFolder(file, error) from error


def _impossible_fields(run: Run) -> list[str]:
    """The names of fields whose values are of the right type and yet impossible."""
    numbers = {name: getattr(run, name) for name in Run.__dataclass_fields__}
    possible = {name: 0 <= value <= MAX_BIG_INTEGER for name, value in numbers.items() if type(value) is int}
    layers, stride = run.layers, run.config.get("segment_stride", SEGMENT_LENGTH)
    possible["layers"] = 0 < len(layers) == len(set(layers)) and all(n in range(run.n_layers) for n in layers)
    possible["sources"] = tuple(source.layer for source in run.sources) == layers and all(
        0 < source.width <= MAX_INTEGER for source in run.sources
    )
    possible["activation"] = 0 < len(run.activation) <= LONGEST_ACTIVATION
    possible["config"] = type(stride) is int and 0 < stride <= SEGMENT_LENGTH
    possible |= _possible_draws(run)
    return [name for name, is_possible in possible.items() if not is_possible]


def _possible_draws(run: Run) -> dict[str, bool]:
    """Whether each field about splits and sampled records is possible."""
    by_passage, barred, visited = run.split_rule == "passages", run.barred_ids, run.split_segments
    most_sampled = MOST_RECORDS // len(run.sides)
    return {
        "split_rule": by_passage or not (run.n_sampled or barred or visited),
        "n_sampled": 0 <= run.n_sampled <= most_sampled and (not run.n_sampled or run.n_random > 0),
        "n_background": 0 <= run.n_background <= MOST_BACKGROUND
        and (not run.n_background or run.n_sampled > 0),
        "barred_ids": len(barred) == len(set(barred)) and all(0 <= n <= MAX_TOKEN_ID for n in barred),
        "split_segments": all(0 <= n <= MAX_BIG_INTEGER for n in visited.values())
        and sum(visited.values()) <= run.n_segments
        # Probabilities are per visited segment of a split.
        and (not by_passage or not run.n_random or visited.keys() == set(SPLITS)),
    }
