"""What scorers share that give each window of text one value: judges, and the scorer `embedding`."""

from __future__ import annotations

from typing import ClassVar

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import POPULATION, Prediction, Score, Status
from neuroexplain.runs import Run
from neuroexplain.scorers.base import RECORDS_OF_CHEAP, Scorer
from neuroexplain.scoring.judge_scores import score_hard, score_windows
from neuroexplain.scoring.judgements import AUROC
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence, Trial
from neuroexplain.scoring.windows import hard_negatives, windows_of


class WindowScorer(Scorer):
    """A scorer of windows: the higher its value, the surer it is that the unit fires there."""

    main_metric = AUROC
    unsorted_metrics: ClassVar[tuple[str, ...]] = ()  # further ones, of which less is better
    predicts_tokens = False
    reads_background = False
    reads_hard = True
    records_of_split = RECORDS_OF_CHEAP  # one value a window, where a simulator has 32: all of them are read

    def trials(self, evidence: SideEvidence) -> list[Trial]:
        return [*windows_of(evidence), *hard_negatives(evidence)]

    def subsets_of(self, run: Run, metric: str) -> tuple[str, ...]:
        return (POPULATION,) if run.n_sampled else ()

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        no_control = self.why_no_control(prediction)
        metrics = (self.main_metric, *self.metrics, *self.unsorted_metrics)
        scores: list[Score] = []
        for split in HELD_OUT:
            if split == "report" and not prediction.has_report:
                reason = "another candidate was chosen, so the report records were not judged"
                scores += self.undefined(evidence, Status.NOT_CHOSEN, reason)
            elif split == "report" or any(evidence.splits[r.key] == split for r in prediction.records):
                scores += score_windows(evidence, prediction, split, no_control, metrics)
        scores += score_hard(evidence, prediction, no_control)
        return scores

    def undefined(self, evidence: SideEvidence, status: Status, reason: str | None) -> list[Score]:
        return [Score("report", POPULATION, self.main_metric, status, None, 0, 0, reason)]


def require_samples(scorer: str, run: Run) -> None:
    """Raise NeuroexplainError for a run without sampled records."""
    if not run.n_sampled:
        raise NeuroexplainError(
            f"--scorer {scorer} reads sampled and random records, and run {run.id} has no sampled "
            "ones.\nCollect again to have them, or use  --scorer combined"
        )
