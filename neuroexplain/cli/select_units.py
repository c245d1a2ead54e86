"""The layers and units that a person names, checked against a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neuroexplain.cli.progress import say
from neuroexplain.errors import NeuroexplainError
from neuroexplain.formatting import rule_note

if TYPE_CHECKING:
    from neuroexplain.runs import Run
    from neuroexplain.store.engine import Store
    from neuroexplain.units import UnitId


def select_layers(run: Run, text: str) -> tuple[int, ...]:
    """The layers that `text` names, ascending. Raises NeuroexplainError if the run lacks one."""
    from neuroexplain.selection import parse_layers

    layers = parse_layers(text)
    missing = [layer for layer in layers if layer not in run.layers]
    if missing:
        raise NeuroexplainError(
            f"Run {run.id} has no layer {missing[0]}: it has {len(run.layers)} of them, "
            f"{min(run.layers)} to {max(run.layers)}."
        )
    return layers


def select_units(store: Store, run: Run, layers: str | None, units: str | None) -> list[UnitId]:
    """The units that either text names, ascending. Raises NeuroexplainError if the run lacks one."""
    from neuroexplain.selection import parse_units
    from neuroexplain.store.units import list_unit_ids

    if layers is None and units is None:
        raise NeuroexplainError(
            "Name a layer, layers or units:  --layer 15 | --layers 3-5 | --units 15:0-99,20:7"
        )
    if layers is not None and units is not None:
        raise NeuroexplainError(
            f"--layer {layers} and --units {units} are both given, one of them perhaps in neuroexplain.toml: "
            "name one."
        )
    if layers is not None:
        return list_unit_ids(store, run.id, select_layers(run, layers))
    unit_ids = parse_units(units or "", {source.layer: source.group_size for source in run.sources})
    for unit in unit_ids:
        if unit.index >= run.width(unit.layer):
            raise NeuroexplainError(
                f"Run {run.id} has no unit {unit}: it holds {run.size}, both counted from 0."
            )
    return list(unit_ids)


def say_rule(run: Run) -> None:
    """Say that a run of an earlier version goes on by its rule."""
    note = rule_note(run)
    if note is not None:
        say(note)


def sample_units(store: Store, run: Run, units: list[UnitId], n: int | None) -> list[UnitId]:
    """n of the units that are not dead, ascending: those with the smallest stable hash. All if n is None.

    The sample is fair, and the same in every command: a larger n holds the smaller sample.
    """
    from neuroexplain.evidence import Status
    from neuroexplain.stable_hash import stable_hash
    from neuroexplain.store.units import list_unit_ids

    if n is None:
        return units
    alive = set(list_unit_ids(store, run.id, {unit.layer for unit in units}, Status.OK))
    ranked = sorted(
        alive & set(units), key=lambda unit: (stable_hash(run.seed, "sample", unit.layer, unit.index), unit)
    )
    return sorted(ranked[:n])


def keep_units(
    store: Store, run: Run, units: list[UnitId], where: str | None, below: float | None
) -> list[UnitId]:
    """The units that the options --where and --below of `explain` leave.

    Raises NeuroexplainError for another word than `unexplained`.
    """
    from neuroexplain.explaining.explainers import WITHOUT_LLM
    from neuroexplain.store.units import list_ids_explained_by_others, list_ids_scored_from

    if where not in (None, "unexplained"):
        raise NeuroexplainError(f"--where {where!r} is not known; there is: unexplained.")
    left_out: set[UnitId] = set()
    if where is not None:
        left_out |= list_ids_explained_by_others(store, run.id, WITHOUT_LLM)
    if below is not None:
        left_out |= list_ids_scored_from(store, run, below)
    kept = [unit for unit in units if unit not in left_out]
    if n_left_out := len(units) - len(kept):
        say(f"{n_left_out:,} of {len(units):,} selected {run.noun} are left out by --where or --below.")
    return kept
