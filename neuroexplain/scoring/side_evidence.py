"""The evidence about one side of a unit: records with their splits, and the true value of each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Exemplar, RecordKey, Split, Unit, is_side_dead
from neuroexplain.runs import Run
from neuroexplain.scoring.splits import assign_splits, crop_first
from neuroexplain.units import CROP_LENGTH, STRONGEST, Kind, Side

HELD_OUT: tuple[Split, ...] = ("select", "report")  # what explainers do not see, so that it can be scored


@dataclass(frozen=True, slots=True)
class Trial:
    """The part of a held-out record that a scorer's model sees and is scored on."""

    kind: Kind
    rank: int
    split: Split
    first: int  # its first token in the record
    token_ids: tuple[int, ...]  # [32]

    @property
    def key(self) -> RecordKey:
        """The record's."""
        return self.kind, self.rank


@dataclass(frozen=True)
class SideEvidence:
    """One side of a unit, with all of the unit's records."""

    unit: Unit
    side: Side = "positive"
    seed: int = 0  # of the run; crops depend on it
    rectified: bool = False  # whether true values below 0 count as 0, as the run says

    @classmethod
    def of(cls, run: Run, unit: Unit, side: Side) -> SideEvidence:
        return cls(unit, side, run.seed, run.rectified)

    @property
    def strongest(self) -> Kind:
        """The kind of records that hold this side's strongest activations."""
        return STRONGEST[self.side]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of records that this side is explained and scored by."""
        return self.strongest, "random"

    @cached_property
    def splits(self) -> Mapping[RecordKey, Split | None]:
        """The split of each of the unit's records, of both sides; None for a record that would leak."""
        return assign_splits(self.unit.exemplars)

    @cached_property
    def by_key(self) -> Mapping[RecordKey, Exemplar]:
        """This side's records, in the order of kinds and ranks."""
        records = (record for record in self.unit.exemplars if record.kind in self.kinds)
        return {record.key: record for record in records}

    @property
    def is_dead(self) -> bool:
        """Whether the side never fires."""
        strongest = self.by_key.get((self.strongest, 0))
        return is_side_dead(self.side, None if strongest is None else strongest.activation)

    def explain_records(self, n: int) -> list[Exemplar]:
        """The n strongest records of the split `explain`, strongest first, oriented to this side."""
        records = [
            self.oriented(record)
            for key, record in self.by_key.items()
            if record.kind == self.strongest and self.splits[key] == "explain"
        ]
        return records[:n]

    def oriented(self, record: Exemplar) -> Exemplar:
        """The record as this side sees it: on the negative side all activations are negated."""
        if self.side == "positive":
            return record
        return replace(record, activation=-record.activation, activations=-record.activations)

    def truth(self, record: Exemplar) -> NDArray[np.float64]:
        """The true value at each of a record's tokens, [64]: the activation, negated on the negative side.

        In rectified runs a value below 0 is 0.
        """
        values = self.oriented(record).activations.astype(np.float64)
        return np.maximum(values, 0.0) if self.rectified else values

    def crops(self) -> list[Trial]:
        """The crop of each held-out record, in the order of kinds and ranks."""
        trials = []
        for (kind, rank), record in self.by_key.items():
            split = self.splits[kind, rank]
            if split is not None and split in HELD_OUT:
                first = crop_first(self.seed, self.unit.id, kind, rank)
                token_ids = tuple(record.token_ids[first : first + CROP_LENGTH].tolist())
                trials.append(Trial(kind, rank, split, first, token_ids))
        return trials
