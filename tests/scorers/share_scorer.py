"""A scorer as somebody else would add it: which share of the scored tokens an explanation's words name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroexplain.evidence import Prediction, Score, Status, Tokens
from neuroexplain.runs import Run
from neuroexplain.scorers.base import NoEngine, OpenScorer, PredictedTrial, Predictions, Request, Scorer
from neuroexplain.scoring.side_evidence import SideEvidence, Trial


class Share(Scorer):
    name = "share"
    main_metric = "named_share"
    metrics = ("named_gap",)
    needs = "nothing"
    asks_per_record = False

    def open(self, engine: Any, run: Run) -> OpenScorer:
        return OpenShare()

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        scores = []
        for split in ("select", "report"):
            records = [r for r in prediction.records if evidence.splits[r.kind, r.rank] == split]
            n = sum(len(r.values) for r in records), len(records)
            subset = f"{evidence.strongest}_and_random"
            if not records:
                scores.append(
                    Score(split, subset, self.main_metric, Status.NO_RECORDS, None, *n, "no records")
                )
                continue
            value = float(np.concatenate([r.values for r in records]).mean())
            control = None
            if prediction.control_explanation_id is not None:
                control = float(np.concatenate([r.control for r in records]).mean())
                scores.append(Score(split, subset, "named_gap", Status.OK, value - control, *n))
            why = None if control is not None else "no control yet"
            own = prediction.control_explanation_id
            scores.append(
                Score(
                    split,
                    subset,
                    self.main_metric,
                    Status.OK,
                    value,
                    *n,
                    None,
                    None,
                    None,
                    "none",
                    control,
                    own,
                    why,
                )
            )
        return scores


class OpenShare(OpenScorer):
    def __init__(self) -> None:
        self.scorer, self.engine = SCORER, NoEngine("words")

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        named = set(explanation.casefold().replace(",", " ").split())
        values = ([tokens[i].text.strip().casefold() in named for i in trial.token_ids] for trial in trials)
        return Predictions([PredictedTrial(np.array(own, np.float32)) for own in values])

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        return [Request(len(trials))]


SCORER = Share()
