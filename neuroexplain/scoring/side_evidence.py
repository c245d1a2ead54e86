"""The evidence about one side of a unit: records with their splits, and the true value of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import (
    Exemplar,
    Prediction,
    RecordKey,
    Split,
    Subset,
    Tokens,
    Unit,
    headline_subset,
    is_side_dead,
    texts_in_context,
)
from neuroexplain.runs import Run
from neuroexplain.sampling import (
    RANDOM_SHARES,
    background_uniform_of,
    probability_of,
    scored_first,
    share_out,
    sizes_of_guesses,
    sum_squares,
    uniform_of,
)
from neuroexplain.scoring.splits import assign_splits, crop_first, find_shared
from neuroexplain.units import CROP_LENGTH, STRONGEST, Kind, Side

HELD_OUT: tuple[Split, ...] = ("select", "report")  # what explainers do not see, so that it can be scored


@dataclass(frozen=True, slots=True)
class Trial:
    """The part of a record that a scorer's model sees and is scored on."""

    kind: Kind
    rank: int
    split: Split
    first: int  # its first token in the record
    token_ids: tuple[int, ...]  # [32]

    @property
    def key(self) -> RecordKey:
        """The record's."""
        return self.kind, self.rank


@dataclass(frozen=True, slots=True)
class DrawnRecord:
    """A random or sampled record, and the probability with which it was drawn."""

    record: Exemplar
    probability: float


@dataclass(frozen=True, slots=True)
class BackgroundDraw:
    """How much of the background a prediction reads."""

    n: int  # records
    guesses: tuple[float, ...] | None  # of SideEvidence.guessed_records; None: all of it is read


def background_draw_of(prediction: Prediction) -> BackgroundDraw | None:
    """How much of the background a prediction reads; None of a run without one."""
    if prediction.n_background is None:
        return None
    return BackgroundDraw(prediction.n_background, prediction.guesses)


@dataclass(frozen=True)
class SideEvidence:
    """One side of a unit, with all of the unit's records."""

    unit: Unit
    side: Side = "positive"
    seed: int = 0  # of the run; crops and draws depend on it
    rectified: bool = False  # whether true values below 0 count as 0, as the run says
    split_rule: Literal["ranks", "passages"] = "ranks"
    barred_ids: frozenset[int] = frozenset()  # tokens that are not scored
    n_random: Mapping[Split, int] = field(default_factory=dict)  # random records that the run draws
    split_segments: Mapping[Split, int] = field(default_factory=dict)  # segments that the run visited
    n_sampled: int = 0  # sampled records of a side that the run draws
    tokens: Tokens = field(default_factory=dict)  # by id; empty if no score needs texts

    @classmethod
    def of(cls, run: Run, unit: Unit, side: Side, tokens: Tokens | None = None) -> SideEvidence:
        return cls(
            unit,
            side,
            run.seed,
            run.rectified,
            run.split_rule,
            frozenset(run.barred_ids) if run.n_sampled else frozenset(),
            share_out(run.n_random, RANDOM_SHARES),
            run.split_segments,
            run.n_sampled,
            tokens or {},
        )

    @property
    def strongest(self) -> Kind:
        """The kind of records that hold this side's strongest activations."""
        return STRONGEST[self.side]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of records that this side is explained and scored by."""
        return self.strongest, "random", "sampled", "background", "hard"

    @property
    def hard(self) -> tuple[Exemplar, ...] | None:
        """The measured records of this side's look-alikes; None if they were not measured."""
        return self.unit.hard.get(self.side)

    @property
    def _records(self) -> tuple[Exemplar, ...]:
        return *self.unit.exemplars, *self.unit.background, *(self.hard or ())

    @property
    def headline_subset(self) -> Subset:
        """The subset of records whose score stands for this side."""
        return headline_subset(self.side, self.n_sampled, sum(self.n_random.values()))

    @cached_property
    def splits(self) -> Mapping[RecordKey, Split | None]:
        """The split of each of the unit's records, of both sides; None for a record without one."""
        if self.split_rule == "passages":
            return {record.key: record.split for record in self._records}
        return assign_splits(self.unit.exemplars)

    @cached_property
    def by_key(self) -> Mapping[RecordKey, Exemplar]:
        """This side's records, in the order of kinds and ranks."""
        records = (record for record in self._records if record.kind in self.kinds)
        return {record.key: record for record in records if record.side in (None, self.side)}

    @cached_property
    def leaking(self) -> frozenset[RecordKey]:
        """Held-out records that share text with an `explain` record of the unit, so that they are not scored.

        In runs that split by rank such records have no split at all.
        """
        if self.split_rule == "ranks":
            return frozenset()
        return find_shared(self._records, self.splits)

    @property
    def peak(self) -> float | None:
        """The side's strongest activation, above 0 if it fires; None without a record of it."""
        strongest = self.by_key.get((self.strongest, 0))
        return None if strongest is None else self.oriented(strongest).activation

    @property
    def is_dead(self) -> bool:
        """Whether the side never fires."""
        strongest = self.by_key.get((self.strongest, 0))
        return is_side_dead(self.side, None if strongest is None else strongest.activation)

    def explain_records(self, n: int) -> list[Exemplar]:
        """At most n `explain` records, oriented to this side: top (bottom) ones first, strongest first.

        In runs that split by passage those above 0, and where they are fewer than n also sampled ones of
        other segments, by their strongest activation.
        """
        explain = [
            self.oriented(record) for key, record in self.by_key.items() if self.splits[key] == "explain"
        ]
        records = [record for record in explain if record.kind == self.strongest]
        if self.split_rule == "ranks":
            return records[:n]
        records = [record for record in records if record.activation > 0][:n]
        segments = {record.segment for record in records}
        sampled = [
            record for record in explain if record.kind == "sampled" and record.segment not in segments
        ]
        sampled = [record for record in sampled if record.activation > 0]
        sampled.sort(key=lambda record: (-record.activation, record.rank))
        return [*records, *sampled][:n]

    def oriented(self, record: Exemplar) -> Exemplar:
        """The record as this side sees it: on the negative side all activations are negated."""
        if self.side == "positive":
            return record
        return replace(
            record,
            activation=-record.activation,
            activations=-record.activations,
            side=None if record.side is None else "positive",
        )

    def truth(self, record: Exemplar) -> NDArray[np.float64]:
        """The true value at each of a record's tokens, [64]: the activation, negated on the negative side.

        In rectified runs a value below 0 is 0.
        """
        values = self.oriented(record).activations.astype(np.float64)
        return np.maximum(values, 0.0) if self.rectified else values

    def texts(self, record: Exemplar) -> list[str]:
        """The text of each of a record's tokens, [64]: see texts_in_context."""
        return texts_in_context([self.tokens[token_id] for token_id in record.token_ids.tolist()])

    def counts(self, record: Exemplar) -> NDArray[np.bool_]:
        """Which of a record's tokens are scored, [64]: all but special tokens that are barred as peaks."""
        if not self.barred_ids:
            return np.ones(len(record.token_ids), np.bool_)
        return np.array([token_id not in self.barred_ids for token_id in record.token_ids.tolist()])

    def first_of(self, record: Exemplar) -> int:
        """The first of a record's 32 tokens that are scored.

        A peak in the middle would betray a top record, so its crop is drawn. Records of fixed tokens have a
        scored half in runs that split by passage.
        """
        if self.split_rule == "passages" and record.kind in ("random", "sampled", "background"):
            return scored_first(self.seed, record.segment)
        number = record.segment if record.kind == "hard" else record.rank
        return crop_first(self.seed, self.unit.id, record.kind, number)

    def crops(self) -> list[Trial]:
        """The crop of each held-out record that is scored, in the order of kinds and ranks."""
        return self.crops_of("select", "report")

    def crops_of(self, *splits: Split) -> list[Trial]:
        """The crops of the records of these splits that do not leak, without hard ones."""
        return [
            self._crop(record, split)
            for key, record in self.by_key.items()
            if record.kind != "hard"
            and (split := self.splits[key]) is not None
            and split in splits
            and key not in self.leaking
        ]

    def hard_crops(self) -> list[Trial]:
        """The crops of hard records that do not leak, in the order of ranks; each holds the shared token."""
        return [self._crop(r, "report") for r in self.hard or () if r.key not in self.leaking]

    def _crop(self, record: Exemplar, split: Split) -> Trial:
        first = self.first_of(record)
        token_ids = tuple(record.token_ids[first : first + CROP_LENGTH].tolist())
        return Trial(*record.key, split, first, token_ids)

    def draw(
        self, split: Split, n: int | None = None, background: BackgroundDraw | None = None
    ) -> list[DrawnRecord]:
        """The split's sampled and random records with their probabilities; a record drawn twice once.

        With n, as if n of each had been drawn: the sampled ones with the largest size / uniform, and the
        first random ones. Of `report` with a background, the random ones are all of it, or drawn from it.
        Records that leak are among them.
        """
        records = [record for key, record in self.by_key.items() if self.splits[key] == split]
        sampled = [record for record in records if record.kind == "sampled"]
        random = [record for record in records if record.kind == "random"]
        random = random if n is None else random[:n]
        chances: Mapping[int, float] = {}  # that a segment of the background is drawn from it; without: 1
        n_random = len(random)
        if background is not None and split == "report" and self.unit.background:
            random, n_random, chances = self._draw_background(background)
        n_segments = self.split_segments[split]

        def n_random_of(record: Exemplar) -> float:
            return n_random * chances.get(record.segment, 1.0)

        if not sampled:  # nothing was drawn by size
            return [DrawnRecord(record, n_random_of(record) / n_segments) for record in random]
        ratios = [self.size_of(record) / uniform_of(self.seed, record.segment) for record in sampled]
        threshold = self.unit.thresholds[self.side, split]
        if n is not None and n < len(sampled):
            sampled, threshold, ratios = sampled[:n], ratios[n], ratios[:n]
        drawn = {record.segment: record for record in random} | {record.segment: record for record in sampled}
        return [
            DrawnRecord(
                record,
                probability_of(
                    self.size_of(record),
                    uniform_of(self.seed, record.segment),
                    ratios[-1],
                    threshold,
                    n_random_of(record),
                    n_segments,
                ),
            )
            for record in drawn.values()
        ]

    def background_frame(self) -> list[Exemplar]:
        """All random records of `report`: those of every unit, and the background."""
        return [
            record
            for key, record in self.by_key.items()
            if record.kind in ("random", "background") and self.splits[key] == "report"
        ]

    def guessed_records(self) -> list[Exemplar]:
        """The records that have a guess where a background is drawn from: all of it, and the sampled ones."""
        sampled = [
            record
            for key, record in self.by_key.items()
            if record.kind == "sampled" and self.splits[key] == "report"
        ]
        return [*self.background_frame(), *sampled]

    def guessed_trials(self) -> list[Trial]:
        """The scored halves of the records that have a guess."""
        return [self._crop(record, "report") for record in self.guessed_records()]

    def _draw_background(self, draw: BackgroundDraw) -> tuple[list[Exemplar], int, dict[int, float]]:
        """(records that are read, records of the background, chances of segments to be drawn from it).

        By priority sampling, as sampled records are drawn: one outside has the last one inside as bound.
        """
        frame = self.background_frame()
        if draw.guesses is None or draw.n >= len(frame):
            return frame, len(frame), {}
        records = self.guessed_records()
        sizes = sizes_of_guesses(np.array(draw.guesses), len(frame)).tolist()
        uniforms = [background_uniform_of(self.seed, record.segment) for record in records]
        ratios = [size / uniform for size, uniform in zip(sizes, uniforms, strict=True)]
        order = sorted(range(len(frame)), key=lambda i: (-ratios[i], frame[i].segment))
        inside = order[: draw.n]
        last, threshold = ratios[inside[-1]], ratios[order[draw.n]]
        drawn = {frame[i].segment for i in inside}
        chances = {
            record.segment: min(1.0, size / (threshold if record.segment in drawn else last))
            for record, size in zip(records, sizes, strict=True)
        }
        return [frame[i] for i in inside], len(frame), chances

    def size_of(self, record: Exemplar) -> float:
        """The size by which a record of tokens 64..127 can be sampled for this side."""
        if record.size is not None:
            return record.size
        first = scored_first(self.seed, record.segment)
        half = slice(first, first + CROP_LENGTH)
        values = self.oriented(record).activations[half]
        return float(sum_squares(np.where(self.counts(record)[half], values, np.float32(0))))


def tokens_needed(exemplars: Sequence[Exemplar]) -> set[int]:
    """The ids of all tokens of the records."""
    return {token_id for record in exemplars for token_id in record.token_ids.tolist()}
