"""Look for look-alikes' records, and predictions of them, that contradict how they should be made (pure).

Written from the rules and apart from look_alikes.py and windows.py, so that each can find the other's faults.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neuroexplain.arrays import HardRecords
from neuroexplain.evidence import Prediction, Status
from neuroexplain.scoring.look_alikes import REASONS, TOLERANCE
from neuroexplain.scoring.population import POSITIVE_SHARE
from neuroexplain.scoring.side_evidence import SideEvidence


def find_hard_faults(evidence: SideEvidence, records: HardRecords, width: int, dtype: str) -> Iterator[str]:
    """A line for each fault of one side's measured records. width: units of its layer; dtype: the run's."""
    own, hard = evidence.unit, evidence.hard or ()
    segments = records.segments.tolist()
    if len(set(segments)) < len(segments):
        yield "a segment is twice among its look-alikes"
    peaks = {int(r.token_ids[32]) for r in own.exemplars if r.kind == evidence.strongest}
    judged = {r.segment for r in own.exemplars if r.kind in ("random", "sampled")}
    reasons, others = records.reasons.tolist(), records.others.tolist()
    for record, reason, other in zip(hard, reasons, others, strict=True):
        name = f"look-alike {record.rank}, of segment {record.segment},"
        if record.split != "report":
            yield f"{name} is of the split {record.split}, not report"
        if record.segment in judged:
            yield f"{name} is a random or sampled record of the unit"
        is_own = other == own.id.index
        if other >= width or reason >= len(REASONS) or is_own != (REASONS[reason] == "token"):
            yield f"{name} is of the wrong unit, or for no reason"
        elif REASONS[reason] == "token" and int(record.token_ids[32]) not in peaks:
            yield f"{name} holds none of the unit's peak tokens in its middle"
        if not np.isfinite(record.activations).all():
            yield f"{name} has activations that are not finite"
    yield from _find_other_values(evidence, dtype)


def _find_other_values(evidence: SideEvidence, dtype: str) -> Iterator[str]:
    """Look-alikes in whose segment the unit has a record with other activations at the same tokens."""
    scale = max((float(np.abs(r.activations).sum()) for r in evidence.unit.exemplars), default=0.0)
    for record in evidence.hard or ():
        for known in evidence.unit.exemplars:
            if known.segment != record.segment:
                continue
            first, stop = max(known.start, record.start), min(known.start, record.start) + 64
            values = [r.activations[first - r.start : stop - r.start] for r in (known, record)]
            if float(np.abs(values[0] - values[1]).sum()) > TOLERANCE[dtype] * scale:
                yield f"look-alike {record.rank} has other activations than {known.kind} record {known.rank}"


def find_wrong_hard(evidence: SideEvidence, prediction: Prediction) -> Iterator[str]:
    """A line if a prediction does not read the first n_hard windows in which the side does not fire."""
    read = [r.rank for r in prediction.records if r.kind == "hard"]
    if prediction.status != Status.OK or not prediction.has_report or prediction.n_hard is None:
        if read:
            yield f"{len(read)} windows of look-alikes were predicted, and none are to be read"
        return
    silent = []
    for record in evidence.hard or ():
        if record.key in evidence.leaking or not (evidence.peak or 0.0) > 0:
            continue
        first = evidence.first_of(record)
        values = evidence.truth(record)[first : first + 32][evidence.counts(record)[first : first + 32]]
        if not (values > POSITIVE_SHARE * (evidence.peak or 0.0)).any():
            silent.append(record.rank)
    if read != silent[: prediction.n_hard] or len(read) < prediction.n_hard:
        yield f"the look-alikes {read} were predicted, not the first {prediction.n_hard} of {silent}"
