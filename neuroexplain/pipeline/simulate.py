"""One neuron's held-out records before a simulator: crops -> predictions -> simulations -> scores. Nothing is stored here."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import LlmReplyError
from neuroexplain.llm.simulator import Prediction, Predictions, Simulator
from neuroexplain.pipeline.in_flight import map_in_flight
from neuroexplain.scoring.correlation import ScoredRecord, score_records
from neuroexplain.scoring.splits import assign_splits, crop_first
from neuroexplain.types import (
    CROP_LENGTH,
    SCORE_KINDS,
    Explanation,
    Headline,
    Kind,
    Provenance,
    Score,
    SimulatedRecord,
    Simulation,
    Split,
    Status,
    Tokens,
    Unit,
)

HELD_OUT: tuple[Split, ...] = ("select", "report")
Place = tuple[Kind, int]  # kind and rank of a record


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of a held-out record that a simulator sees and is scored on."""

    kind: Kind
    rank: int
    split: Split
    first: int  # its first token in the record
    token_ids: tuple[int, ...]  # [32]

    @property
    def place(self) -> Place:
        return self.kind, self.rank


def cut_crops(neuron: Unit, seed: int) -> list[Crop]:
    """The crops of the neuron's top and random records that are held out, in the order of kinds and ranks."""
    splits = assign_splits(neuron.exemplars)
    crops = []
    for x in neuron.exemplars:
        split = splits[x.kind, x.rank]
        if split in HELD_OUT and split is not None and x.kind != "bottom":
            first = crop_first(seed, neuron.id, x.kind, x.rank)
            crops.append(Crop(x.kind, x.rank, split, first, tuple(x.token_ids[first : first + CROP_LENGTH].tolist())))
    return crops


def begin_simulation(explanation: Explanation, simulator: Simulator) -> Simulation:
    """A simulation of this explanation without records yet."""
    engine = simulator.engine
    whom = Provenance(engine.engine, engine.version, engine.model, engine.revision, simulator.prompt.sha256)
    return Simulation(explanation.id or 0, explanation.unit, simulator.name, Status.OK, (), whom)


class Simulating:
    """A neuron's crops and a simulator. What was asked once for a hypothesis and a split is not asked again."""

    def __init__(self, simulator: Simulator, crops: Sequence[Crop], tokens: Tokens, at_once: int = 1) -> None:
        self._simulator, self._tokens, self._at_once = simulator, tokens, at_once
        self._crops = {crop.place: crop for crop in crops}
        self._known: dict[tuple[str, Split], dict[Place, Prediction]] = {}

    def extend(self, made: Simulation, hypotheses: Sequence[str], splits: Collection[Split]) -> Simulation:
        """The simulation with the crops of these splits that it lacks; a failed request makes it a failed attempt.

        Of several hypotheses (a union) each token has the greatest of their levels.
        """
        there = {(r.kind, r.rank) for r in made.records}
        missing = [crop for crop in self._crops.values() if crop.split in splits and crop.place not in there]
        if made.status != Status.OK or not missing:
            return made
        began = time.perf_counter()
        try:
            tokens = self._ask(hypotheses, missing)
        except LlmReplyError as error:
            return replace(made, status=error.status, reason=error.reason, reply=error.reply, records=())
        new = [self._record(crop, hypotheses) for crop in missing]
        order = list(self._crops)
        before = (replace(r, other_levels=None) for r in made.records)  # the null is of all records or none
        records = sorted((*before, *new), key=lambda r: order.index((r.kind, r.rank)))
        spent = made.provenance.seconds + time.perf_counter() - began
        cost = replace(made.provenance, prompt_tokens=made.provenance.prompt_tokens + tokens, seconds=spent)
        return replace(made, records=tuple(records), other_explanation_id=None, provenance=cost)

    def compare(self, made: Simulation, other: Explanation) -> Simulation:
        """The simulation with another neuron's explanation simulated on the same records: the null, or `reason` why not."""
        began = time.perf_counter()
        try:
            tokens = self._ask(other.hypotheses, [self._crops[r.kind, r.rank] for r in made.records])
        except LlmReplyError as error:
            return replace(made, reason=f"the other explanation's simulation failed, {error.status}: {error.reason}")
        records = tuple(
            replace(r, other_levels=self._record(self._crops[r.kind, r.rank], other.hypotheses).expected_levels)
            for r in made.records
        )
        spent = made.provenance.seconds + time.perf_counter() - began
        cost = replace(made.provenance, prompt_tokens=made.provenance.prompt_tokens + tokens, seconds=spent)
        return replace(made, records=records, other_explanation_id=other.id, provenance=cost, reason=None)

    def _ask(self, hypotheses: Sequence[str], crops: Sequence[Crop]) -> int:
        """Have every hypothesis simulated on the crops; returns the prompt tokens that it took.

        All crops of a split are asked together, so that a prediction never depends on which of them were missing.
        """
        splits = dict.fromkeys(crop.split for crop in crops)
        wanted = [(text, split) for split in splits for text in hypotheses if (text, split) not in self._known]
        together = {split: [crop for crop in self._crops.values() if crop.split == split] for split in splits}

        def simulate(one: tuple[str, Split]) -> Predictions:
            return self._simulator.simulate(one[0], [crop.token_ids for crop in together[one[1]]], self._tokens)

        sent = 0
        for one, made in map_in_flight(simulate, dict.fromkeys(wanted), min(self._at_once, len(wanted)) or 1):
            self._known[one] = {crop.place: found for crop, found in zip(together[one[1]], made.of, strict=True)}
            sent += made.prompt_tokens
        return sent

    def _record(self, crop: Crop, hypotheses: Sequence[str]) -> SimulatedRecord:
        found = [self._known[text, crop.split][crop.place] for text in hypotheses]
        levels, mass = found[0].levels, found[0].digit_mass
        for more in found[1:]:
            if mass is not None and more.digit_mass is not None:
                mass = np.where(np.isnan(levels) | (more.levels > levels), more.digit_mass, mass)
            levels = np.fmax(levels, more.levels)
        return SimulatedRecord(crop.kind, crop.rank, crop.first, levels, mass)


def score_simulation(neuron: Unit, simulation: Simulation) -> list[Score]:
    """The scores of a stored simulation on the splits that it has records of: what `verify` computes again."""
    if simulation.status != Status.OK:
        failed = (simulation.status, None, 0, 0, simulation.reason)
        return [Score("report", kind, *failed) for kind in SCORE_KINDS]
    joined = _by_split(neuron, simulation)
    why: str | None = "not asked for" if simulation.simulator == "digits" else "no other explanation in this command"
    why = None if simulation.other_explanation_id is not None else simulation.reason or why
    scores = [
        score
        for split in HELD_OUT
        if joined[split] or (split == "report" and not _is_unread(neuron, simulation))
        for score in score_records(split, joined[split], joined["select"], simulation.other_explanation_id, why)
    ]
    if _is_unread(neuron, simulation):
        reason = "another candidate was chosen, so the report records were not simulated"
        scores += [Score("report", kind, Status.NOT_CHOSEN, None, 0, 0, reason) for kind in SCORE_KINDS]
    return scores


def select_score(
    neuron: Unit, simulation: Simulation | None, headline: Headline, among: Collection[Place] | None = None
) -> float | None:
    """The headline on `select`, or on those of its records that are in `among`; None where it is undefined."""
    if simulation is None or simulation.status != Status.OK:
        return None
    scores = score_records("select", _by_split(neuron, simulation, among)["select"], ())
    return next(score.correlation for score in scores if score.kind == headline.subset)


def _is_unread(neuron: Unit, simulation: Simulation) -> bool:
    """Whether the neuron has `report` records and none of them was simulated, though others were."""
    splits = assign_splits(neuron.exemplars)
    read = {splits[r.kind, r.rank] for r in simulation.records}
    there = {splits[x.kind, x.rank] for x in neuron.exemplars if x.kind != "bottom"}
    return bool(read) and "report" in there - read


def _by_split(neuron: Unit, simulation: Simulation, among: Collection[Place] | None = None) -> dict[Split, list[ScoredRecord]]:
    splits = assign_splits(neuron.exemplars)
    by_place = {(x.kind, x.rank): x for x in neuron.exemplars}
    joined: dict[Split, list[ScoredRecord]] = {split: [] for split in HELD_OUT}
    for r in simulation.records:
        split = splits[r.kind, r.rank]
        if split in joined and (among is None or (r.kind, r.rank) in among):
            true = by_place[r.kind, r.rank].activations[r.first : r.first + CROP_LENGTH].astype(np.float64)
            joined[split].append(ScoredRecord(r.kind, _float64(r.expected_levels), true, _other(r), r.digit_mass))
    return joined


def _other(record: SimulatedRecord) -> NDArray[np.float64] | None:
    return None if record.other_levels is None else _float64(record.other_levels)


def _float64(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return values.astype(np.float64)


def units_at_once(simulator: Simulator | None, explaining: int, n_units: int) -> tuple[int, int]:
    """(neurons in work at once, hypotheses of one neuron at once), so that the engines' bounds of requests are used."""
    bound = max(explaining, simulator.engine.in_flight if simulator is not None else 1)
    return bound, max(1, bound // max(1, n_units))
