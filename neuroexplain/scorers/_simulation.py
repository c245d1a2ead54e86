"""What simulators share: they predict a level for each token of a crop; correlation scores the levels.

The method is that of Bills et al. (2023).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Prediction, Score, Split, Status, Tokens, headline_subset
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer, Predictions, Scorer
from neuroexplain.scoring.correlation import CORRELATION, DEVIATION, R_SQUARED, ScoredRecord, score_records
from neuroexplain.scoring.population_scores import AUPRC, BEYOND_WORDS, score_population
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence, Trial
from neuroexplain.units import CROP_LENGTH, KINDS

Records = Sequence[Sequence[int]]  # the token ids of each record


class Simulator(Scorer):
    """A scorer that predicts levels."""

    main_metric = CORRELATION
    metrics = (BEYOND_WORDS, AUPRC, R_SQUARED, DEVIATION)
    codec = "levels"
    reads_background = True

    def subsets_of(self, run: Run, metric: str) -> tuple[str, ...]:
        if metric in (R_SQUARED, DEVIATION):  # calibrated values: Bills' records alone
            return tuple(headline_subset(side, 0, run.n_random) for side in run.sides)
        if metric in (BEYOND_WORDS, AUPRC) and not run.n_sampled:
            return ()
        return super().subsets_of(run, metric)

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        by_split = _records_by_split(evidence, prediction)
        not_simulated = _is_report_missing(evidence, prediction)
        scores = []
        for split in HELD_OUT:
            if by_split[split] or (split == "report" and not not_simulated):
                scores += self._score_split(evidence, prediction, split, by_split)
        if not_simulated:
            reason = "another candidate was chosen, so the report records were not simulated"
            scores += self.undefined(evidence, Status.NOT_CHOSEN, reason)
        return scores

    def _score_split(
        self,
        evidence: SideEvidence,
        prediction: Prediction,
        split: Split,
        by_split: Mapping[Split, Sequence[ScoredRecord]],
    ) -> list[Score]:
        """The scores of one split: of the population, and Bills' if the strongest records were predicted."""
        no_control = self.why_no_control(prediction)
        scores, has_samples = [], evidence.n_sampled > 0
        if has_samples:
            scores += score_population(evidence, prediction, split, no_control)
        has_strongest = any(record.kind == evidence.strongest for record in by_split[split])
        if not has_samples or (has_strongest and split == "report"):
            scores += score_records(
                split,
                _as_many_random(evidence, by_split[split]),
                _as_many_random(evidence, by_split["select"]),
                prediction.control_explanation_id,
                no_control,
                evidence.side,
            )
        return scores


class OpenSimulator(OpenScorer):
    """A simulator and its model."""

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        return self.simulate(explanation, [trial.token_ids for trial in trials], tokens)

    @abstractmethod
    def simulate(self, explanation: str, records: Records, vocabulary: Tokens) -> Predictions:
        """The predicted levels of each record. They do not depend on the order of the records."""
        ...


def _as_many_random(evidence: SideEvidence, records: Sequence[ScoredRecord]) -> list[ScoredRecord]:
    """The records of Bills' score: in runs that split by passage, as many random ones as strongest ones.

    Without strongest records, all random ones.
    """
    strongest = [record for record in records if record.kind == evidence.strongest]
    random = [record for record in records if record.kind == "random"]
    if evidence.split_rule == "passages" and strongest:
        random = random[: len(strongest)]
    return [*strongest, *random]


def _records_by_split(evidence: SideEvidence, prediction: Prediction) -> dict[Split, list[ScoredRecord]]:
    """The predicted and the true values of the held-out records."""
    by_split: dict[Split, list[ScoredRecord]] = {split: [] for split in HELD_OUT}
    exemplars = [record for record in prediction.records if record.kind in KINDS]
    for record in sorted(exemplars, key=lambda record: (KINDS.index(record.kind), record.rank)):
        key = record.key
        split = evidence.splits[key]
        if split in by_split:
            exemplar, crop = evidence.by_key[key], slice(record.first, record.first + CROP_LENGTH)
            true, counts = evidence.truth(exemplar)[crop], evidence.counts(exemplar)[crop]
            control = None if record.control is None else _masked(record.control, counts)
            simulated = _masked(record.values, counts)
            by_split[split].append(ScoredRecord(record.kind, simulated, true, control, record.detail))
    return by_split


def _masked(values: NDArray[np.float32], counts: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The values as float64, NaN where a token does not count, so that it is not scored."""
    return np.where(counts, values.astype(np.float64), np.nan)


def _is_report_missing(evidence: SideEvidence, prediction: Prediction) -> bool:
    """Whether the side has `report` records and none of them was simulated, though others were."""
    simulated = {evidence.splits[record.key] for record in prediction.records}
    available = {evidence.splits[key] for key in evidence.by_key if key not in evidence.leaking}
    return bool(simulated) and "report" in available - simulated
