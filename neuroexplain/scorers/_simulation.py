"""What all simulators share: they predict a level for each token of a crop; correlation scores them (Bills et al. 2023)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import PredictedRecord, Prediction, Score, Split, Status, Tokens
from neuroexplain.scorers.base import OpenScorer, PredictedTrial, Predictions, Scorer
from neuroexplain.scoring.correlation import CORRELATION, DEVIATION, R_SQUARED, ScoredRecord, score_records
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence, RecordKey, Trial
from neuroexplain.units import CROP_LENGTH

Records = Sequence[Sequence[int]]  # token ids


class Simulator(Scorer):
    """Levels in, correlation out."""

    main_metric = CORRELATION
    metrics = (R_SQUARED, DEVIATION)
    codec = "levels"

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        joined = split_records(evidence, prediction)
        why: str | None = "not asked for" if self.asks_per_record else "no other explanation in this command"
        why = None if prediction.control_explanation_id is not None else prediction.reason or why
        is_unread = _is_unread(evidence, prediction)
        scores = [
            score
            for split in HELD_OUT
            if joined[split] or (split == "report" and not is_unread)
            for score in score_records(
                split, joined[split], joined["select"], prediction.control_explanation_id, why, evidence.side
            )
        ]
        if is_unread:
            reason = "another candidate was chosen, so the report records were not simulated"
            scores += self.undefined(evidence, Status.NOT_CHOSEN, reason)
        return scores


class OpenSimulator(OpenScorer):
    """A simulator and its model."""

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        return self.simulate(explanation, [trial.token_ids for trial in trials], tokens)

    @abstractmethod
    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """Predictions for the records, which do not depend on their order."""
        ...


def split_records(
    evidence: SideEvidence, prediction: Prediction, among: Collection[RecordKey] | None = None
) -> dict[Split, list[ScoredRecord]]:
    """What was predicted beside what is true, by split; of the records in `among` alone, where it is given."""
    joined: dict[Split, list[ScoredRecord]] = {split: [] for split in HELD_OUT}
    for r in prediction.records:
        split = evidence.splits[r.kind, r.rank]
        if split in joined and (among is None or (r.kind, r.rank) in among):
            true = evidence.truth(evidence.by_key[r.kind, r.rank])[r.first : r.first + CROP_LENGTH]
            joined[split].append(ScoredRecord(r.kind, _float64(r.values), true, _control(r), r.detail))
    return joined


def _is_unread(evidence: SideEvidence, prediction: Prediction) -> bool:
    """Whether the side has `report` records and none of them was simulated, though others were."""
    read = {evidence.splits[r.kind, r.rank] for r in prediction.records}
    there = {evidence.splits[place] for place in evidence.by_key}
    return bool(read) and "report" in there - read


def _control(record: PredictedRecord) -> NDArray[np.float64] | None:
    return None if record.control is None else _float64(record.control)


def _float64(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return values.astype(np.float64)


__all__ = ["OpenSimulator", "PredictedTrial", "Predictions", "Records", "Simulator", "split_records"]
