"""What is known of one side of a unit: its records with their splits, and what is true of each token (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Exemplar, Split, Unit, is_side_dead
from neuroexplain.runs import Run
from neuroexplain.scoring.splits import assign_splits, crop_first
from neuroexplain.units import CROP_LENGTH, STRONGEST, Kind, Side

HELD_OUT: tuple[Split, ...] = ("select", "report")
RecordKey = tuple[Kind, int]  # kind and rank of a record


@dataclass(frozen=True, slots=True)
class Trial:
    """The part of a held-out record that a scorer sees and is scored on."""

    kind: Kind
    rank: int
    split: Split
    first: int  # its first token in the record
    token_ids: tuple[int, ...]  # [32]

    @property
    def key(self) -> RecordKey:
        return self.kind, self.rank


@dataclass(frozen=True)
class SideEvidence:
    """One side of a unit."""

    unit: Unit
    side: Side = "positive"
    seed: int = 0  # the run's
    rectified: bool = False  # whether truth leaves out the other side: the run's

    @classmethod
    def of(cls, run: Run, unit: Unit, side: Side) -> SideEvidence:
        return cls(unit, side, run.seed, run.rectified)

    @property
    def strongest(self) -> Kind:
        """The kind of records where this side is strongest."""
        return STRONGEST[self.side]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of records that say something of this side."""
        return self.strongest, "random"

    @cached_property
    def splits(self) -> Mapping[RecordKey, Split | None]:
        """Of all the unit's records, by kind and rank."""
        return assign_splits(self.unit.exemplars)

    @cached_property
    def by_key(self) -> Mapping[RecordKey, Exemplar]:
        """This side's records."""
        return {(x.kind, x.rank): x for x in self.unit.exemplars if x.kind in self.kinds}

    @property
    def is_dead(self) -> bool:
        """Whether the strongest record is not beyond 0."""
        peak = next(
            (x.activation for x in self.unit.exemplars if x.kind == self.strongest and x.rank == 0), None
        )
        return is_side_dead(self.side, peak)

    def explain_records(self, n: int) -> list[Exemplar]:
        """The n strongest records that an explainer may be shown, strongest first: activations point up on either side."""
        records = [
            x
            for x in self.unit.exemplars
            if x.kind == self.strongest and self.splits[x.kind, x.rank] == "explain"
        ]
        return [self.facing(x) for x in records[:n]]

    def facing(self, x: Exemplar) -> Exemplar:
        """A record as this side sees it: on the negative side all activations negated."""
        return (
            x if self.side == "positive" else replace(x, activation=-x.activation, activations=-x.activations)
        )

    def truth(self, x: Exemplar) -> NDArray[np.float64]:
        """What is true of each of a record's tokens, [64]: a, on the negative side -a; of rectified runs never below 0."""
        values = self.facing(x).activations.astype(np.float64)
        return np.maximum(values, 0.0) if self.rectified else values

    def crops(self) -> list[Trial]:
        """The crop of each held-out record, in the order of kinds and ranks: what simulators are scored on."""
        trials = []
        for (kind, rank), x in self.by_key.items():
            split = self.splits[kind, rank]
            if split is not None and split in HELD_OUT:
                first = crop_first(self.seed, self.unit.id, kind, rank)
                trials.append(
                    Trial(kind, rank, split, first, tuple(x.token_ids[first : first + CROP_LENGTH].tolist()))
                )
        return trials
