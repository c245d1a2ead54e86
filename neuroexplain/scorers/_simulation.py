"""What simulators share: they predict a level for each token of a crop; correlation scores the levels.

The method is that of Bills et al. (2023).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Prediction, Score, Split, Status, Tokens
from neuroexplain.scorers.base import OpenScorer, Predictions, Scorer
from neuroexplain.scoring.correlation import CORRELATION, DEVIATION, R_SQUARED, ScoredRecord, score_records
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence, Trial
from neuroexplain.units import CROP_LENGTH

Records = Sequence[Sequence[int]]  # the token ids of each record


class Simulator(Scorer):
    """A scorer that predicts levels."""

    main_metric = CORRELATION
    metrics = (R_SQUARED, DEVIATION)
    codec = "levels"

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        by_split = _records_by_split(evidence, prediction)
        not_simulated = _is_report_missing(evidence, prediction)
        scores = []
        for split in HELD_OUT:
            if by_split[split] or (split == "report" and not not_simulated):
                scores += score_records(
                    split,
                    by_split[split],
                    by_split["select"],
                    prediction.control_explanation_id,
                    self._why_no_control(prediction),
                    evidence.side,
                )
        if not_simulated:
            reason = "another candidate was chosen, so the report records were not simulated"
            scores += self.undefined(evidence, Status.NOT_CHOSEN, reason)
        return scores

    def _why_no_control(self, prediction: Prediction) -> str | None:
        if prediction.control_explanation_id is not None:
            return None
        if prediction.reason:
            return prediction.reason
        return "not asked for" if self.asks_per_record else "no other explanation in this command"


class OpenSimulator(OpenScorer):
    """A simulator and its model."""

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        return self.simulate(explanation, [trial.token_ids for trial in trials], tokens)

    @abstractmethod
    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """The predicted levels of each record. They do not depend on the order of the records."""
        ...


def _records_by_split(evidence: SideEvidence, prediction: Prediction) -> dict[Split, list[ScoredRecord]]:
    """The predicted and the true values of the held-out records."""
    by_split: dict[Split, list[ScoredRecord]] = {split: [] for split in HELD_OUT}
    for record in prediction.records:
        key = record.key
        split = evidence.splits[key]
        if split in by_split:
            true = evidence.truth(evidence.by_key[key])[record.first : record.first + CROP_LENGTH]
            control = None if record.control is None else record.control.astype(np.float64)
            simulated: NDArray[np.float64] = record.values.astype(np.float64)
            by_split[split].append(ScoredRecord(record.kind, simulated, true, control, record.detail))
    return by_split


def _is_report_missing(evidence: SideEvidence, prediction: Prediction) -> bool:
    """Whether the side has `report` records and none of them was simulated, though others were."""
    simulated = {evidence.splits[record.key] for record in prediction.records}
    available = {evidence.splits[key] for key in evidence.by_key}
    return bool(simulated) and "report" in available - simulated
