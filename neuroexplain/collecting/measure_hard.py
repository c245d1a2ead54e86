"""A pass of the subject over the records of units' look-alikes: what do the units themselves do there?

Whole segments are read, as when collecting, so the values are those that collecting saw. That is checked: of
each unit its strongest record is read again, and every other record of it that a read segment holds. Results
are stored some units at a time, so an interrupted pass goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.arrays import HardRecords
from neuroexplain.collecting.collector import send
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Exemplar
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.scoring.look_alikes import (
    MOST_NEAREST,
    TOLERANCE,
    LookAlike,
    count_peak_tokens,
    draw_look_alikes,
    most_frequent,
    rank_by_shared_peaks,
)
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.sources.base import SOURCES
from neuroexplain.store.engine import Store
from neuroexplain.store.hard import find_places, list_in_report, list_measured, list_peaks, list_records
from neuroexplain.store.rows import chunks
from neuroexplain.store.save_hard import save_hard
from neuroexplain.store.units import load_segments, load_unit
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.model import Subject
from neuroexplain.units import (
    PEAK_INDEX,
    RECORD_LENGTH,
    SEGMENT_LENGTH,
    STRONGEST,
    Side,
    Source,
    UnitId,
    UnitSide,
)

# Of a forward pass. Always as many are read, since last bits of sums differ with a batch's shape.
SEGMENTS_AT_ONCE = 16
SIDES_AT_ONCE = 8  # that are stored together

LoadSubject = Callable[[], Subject]
Activations = Mapping[tuple[UnitId, int], NDArray[np.float32]]  # [128], by unit and segment


@dataclass(frozen=True)
class Candidates:
    """One side's look-alikes, and what its unit is known to do."""

    evidence: SideEvidence
    look_alikes: Sequence[LookAlike]

    @property
    def unit(self) -> UnitId:
        return self.evidence.unit.id

    @property
    def segments(self) -> set[int]:
        """Those to read: with that of the side's strongest record, whose activations are known."""
        strongest = (self.evidence.strongest, 0)
        known = {r.segment for key, r in self.evidence.by_key.items() if key == strongest}
        return known | {look_alike.segment for look_alike in self.look_alikes}


def run_measure_hard(
    store: Store,
    run: Run,
    sides: Iterable[UnitSide],
    model: str,
    load: LoadSubject,
    *,
    segments_at_once: int = SEGMENTS_AT_ONCE,
) -> Generator[Progress]:
    """Measure what these sides' units do on the records of their look-alikes, and store it.

    A side that was measured before is left as it is; if all were, the model, whose name is for messages, is
    not loaded. Raises NeuroexplainError if the model is not the run's subject, and before anything of a unit
    is stored if its values are not those that were collected.
    """
    _check_run(run, model)
    ordered = sorted(set(sides))
    measured = list_measured(store, run.id)
    missing = [side for side in ordered if side not in measured]
    done = len(ordered) - len(missing)
    yield Progress("measuring look-alikes", done, len(ordered), "sides of units")
    if not missing:
        return
    yield Progress("measuring look-alikes", done, len(ordered), "sides of units", note=f"Loading {model} ...")
    subject = load()
    _check_subject(run, model, subject)
    places = find_peak_places(store, run, missing)
    for batch in chunks(missing, SIDES_AT_ONCE):
        candidates = {side: find_look_alikes(store, run, *side, places) for side in batch}
        acts: dict[tuple[UnitId, int], NDArray[np.float32]] = {}
        for read in _read(store, run, subject, list(candidates.values()), segments_at_once):
            acts |= read
            yield Progress("measuring look-alikes", done, len(ordered), "sides of units")
        for own in candidates.values():
            _check_known(run, model, subject, own.evidence, acts)
        save_hard(store, run.id, run.dtype, {side: _records(own, acts) for side, own in candidates.items()})
        done += len(batch)
        yield Progress("measuring look-alikes", done, len(ordered), "sides of units")


def find_peak_places(store: Store, run: Run, sides: Iterable[UnitSide]) -> dict[int, list[tuple[int, int]]]:
    """Where the most frequent peak tokens of some sides stand in `report`: see find_places."""
    tokens: set[int] = set()
    for unit_id, side in sides:
        evidence = SideEvidence.of(run, load_unit(store, run, unit_id), side)
        tokens |= set(most_frequent(count_peak_tokens(evidence)))
    first, stop = run.config.get("positions") or (PEAK_INDEX, SEGMENT_LENGTH)
    last = SEGMENT_LENGTH - RECORD_LENGTH + PEAK_INDEX  # a record around the token must lie in the segment
    return find_places(store, run, tokens, range(max(first, PEAK_INDEX), min(stop, last + 1)))


def find_look_alikes(
    store: Store, run: Run, unit_id: UnitId, side: Side, places: Mapping[int, Sequence[tuple[int, int]]]
) -> Candidates:
    """The candidates of one side, by what is stored. places: of find_peak_places."""
    unit, layer = load_unit(store, run, unit_id), unit_id.layer
    evidence = SideEvidence.of(run, unit, side)
    peaks = count_peak_tokens(evidence)
    nearest = [other for other, _ in unit.nearest]
    if not nearest:
        nearest = rank_by_shared_peaks(peaks, list_peaks(store, run.id, layer, peaks), unit_id.index)
    nearest = nearest[:MOST_NEAREST]
    kind = STRONGEST[run.sides[0]]  # whose peaks `peak_tokens` holds
    records = list_records(store, run.id, layer, kind, nearest)
    in_report = list_in_report(store, run.id, {segment for own in records.values() for segment, _ in own})
    of_nearest = [
        LookAlike(other, segment, start, 1)
        for other in nearest
        for segment, start in records.get(other, ())
        if segment in in_report
    ]
    return Candidates(evidence, draw_look_alikes(evidence, peaks, places, of_nearest))


def _read(
    store: Store, run: Run, subject: Subject, candidates: Sequence[Candidates], at_once: int
) -> Iterable[dict[tuple[UnitId, int], NDArray[np.float32]]]:
    """The activations of each candidates' unit in each of their segments, a batch of segments at a time."""
    readers: dict[int, set[UnitId]] = {}
    for own in candidates:
        for number in own.segments:
            readers.setdefault(number, set()).add(own.unit)
    segments = load_segments(store, run.id, set(readers))
    layers = sorted({own.unit.layer for own in candidates})
    units = {layer: sorted({c.unit.index for c in candidates if c.unit.layer == layer}) for layer in layers}
    for numbers in chunks(sorted(readers), at_once):
        ids = np.stack([segments[number].token_ids for number in numbers]).astype(np.int64)
        padding = np.broadcast_to(ids[0], (at_once - len(ids), SEGMENT_LENGTH))
        token_ids = send(torch.from_numpy(np.concatenate([ids, padding])), subject.device)
        columns = read_units(subject, token_ids, {layer: _source(run, layer) for layer in layers}, units)
        yield {
            (unit, number): columns[unit.layer][place, :, units[unit.layer].index(unit.index)]
            for place, number in enumerate(numbers)
            for unit in readers[number]
        }


def read_units(
    subject: Subject, token_ids: Tensor, sources: Mapping[int, Source], units: Mapping[int, Sequence[int]]
) -> dict[int, NDArray[np.float32]]:
    """The activations of some units of each layer on a batch, [batch, seq, units] float32 on the CPU.

    token_ids: [batch, seq] on the subject's device. units: by layer, ascending.
    """
    columns: dict[int, NDArray[np.float32]] = {}

    def keep(layer: int, values: Tensor) -> None:
        source, parts = sources[layer], []
        for own, acts in SOURCES.load(source.kind).encode(subject, source, values):
            inside = [unit - own.start for unit in units[layer] if own.start <= unit < own.stop]
            if inside:
                parts.append(acts[..., inside].float().cpu())
        columns[layer] = torch.cat(parts, dim=-1).numpy()

    capture_activations(subject, token_ids, sources, keep)
    return columns


def _source(run: Run, layer: int) -> Source:
    source = run.source(layer)
    assert source is not None
    return source


def _records(own: Candidates, acts: Activations) -> HardRecords:
    windows = [acts[own.unit, c.segment][c.start : c.start + RECORD_LENGTH] for c in own.look_alikes]
    return HardRecords(
        np.array([c.segment for c in own.look_alikes], np.uint32),
        np.array([c.start for c in own.look_alikes], np.uint8),
        np.array([c.reason for c in own.look_alikes], np.uint8),
        np.array([c.other for c in own.look_alikes], np.uint32),
        np.array(windows, np.float32).reshape(len(own.look_alikes), RECORD_LENGTH),
    )


def _check_run(run: Run, model: str) -> None:
    """Raise NeuroexplainError for a run whose subject is not known, or without sampled records."""
    if not run.n_sampled:
        raise NeuroexplainError(
            "--subject measures hard negatives for judges, which read sampled and random records, and run "
            f"{run.id} has no sampled ones.\n"
            f"Collect again to have them:  neuroexplain collect --model {model}"
        )
    if run.versions.get("weights") is None:
        raise NeuroexplainError(
            f"Run {run.id} does not tell the hash of its subject's weights, as imported data does not, so it "
            f"cannot be known whether {model} is {run.subject} as it was read.\n"
            "Leave out --subject, or collect the units here:  neuroexplain collect --model MODEL"
        )


def _check_subject(run: Run, model: str, subject: Subject) -> None:
    """Raise NeuroexplainError for a model with other weights, or in another dtype, than the run's subject."""
    stored, own = run.versions["weights"], subject.weights_sha256
    if stored != own:
        raise NeuroexplainError(
            f"--subject {model} is not the model that run {run.id} was collected from: its weights have the "
            f"hash {own[:12]}, and those of {run.subject} had {stored[:12]}.\n"
            f"Name the run's model:  --subject {run.subject}"
        )
    if subject.dtype_name != run.dtype:
        raise NeuroexplainError(
            f"--subject {model} was loaded in {subject.dtype_name}, and run {run.id} holds {run.dtype}."
        )


def _check_known(run: Run, model: str, subject: Subject, evidence: SideEvidence, acts: Activations) -> None:
    """Raise NeuroexplainError if a record's activations are not those that are stored, within the dtype."""
    unit = evidence.unit.id
    records = [r for r in evidence.unit.exemplars if (unit, r.segment) in acts]
    scale = max((float(np.abs(r.activations).sum()) for r in records), default=0.0)
    for record in records:
        difference = _difference(record, acts[unit, record.segment])
        if not difference <= TOLERANCE[run.dtype] * scale:
            versions = run.versions
            raise NeuroexplainError(
                f"{model} does what the run's subject did not: on {record.kind} record {record.rank} of unit "
                f"{run.label(unit)}, segment {record.segment}, its activations differ by {difference:.3g} "
                f"from those stored, over all tokens, and the strongest record has {scale:.3g}. It was read "
                f"in {run.dtype} on {subject.device.type}; the run on {versions.get('device', 'another')} by "
                f"Transformers {versions.get('transformers', '(unknown)')}. Nothing of this unit was "
                "stored.\nTake the versions and the kind of device of the run (neuroexplain runs --json), "
                "or collect again."
            )


def _difference(record: Exemplar, segment: NDArray[np.float32]) -> float:
    """The sum of distances over a record's tokens; NaN if a value is no number."""
    own = segment[record.start : record.start + RECORD_LENGTH]
    return float(np.abs(own.astype(np.float64) - record.activations).sum())
