"""A scorer as another package would add it: the share of scored tokens that the explanation's words name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroexplain.evidence import Prediction, Score, Status, Tokens
from neuroexplain.runs import Run
from neuroexplain.scorers.base import NoEngine, OpenScorer, PredictedTrial, Predictions, Request, Scorer
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence, Trial


class Share(Scorer):
    name = "share"
    main_metric = "named_share"
    metrics = ("named_gap",)
    needs = "nothing"
    asks_per_record = False

    def open(self, engine: Any, run: Run) -> OpenScorer:
        return OpenShare()

    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        subset, control_id = evidence.headline_subset, prediction.control_explanation_id
        scores = []
        for split in HELD_OUT:
            records = [r for r in prediction.records if evidence.splits[r.kind, r.rank] == split]
            row = {"split": split, "subset": subset, "n_tokens": 32 * len(records), "n_records": len(records)}
            main = {"metric": self.main_metric, **row}
            if not records:
                scores.append(Score(status=Status.NO_RECORDS, value=None, reason="no records", **main))
                continue
            value = float(np.concatenate([r.values for r in records]).mean())
            control = {"control_reason": "no control yet"}
            if control_id is not None:
                share = float(np.concatenate([r.control for r in records]).mean())
                control = {"control": share, "control_explanation_id": control_id}
                scores.append(Score(metric="named_gap", status=Status.OK, value=value - share, **row))
            scores.append(Score(status=Status.OK, value=value, ci_reason="none", **control, **main))
        return scores


class OpenShare(OpenScorer):
    def __init__(self) -> None:
        self.scorer, self.engine = SCORER, NoEngine("words")

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        named = set(explanation.casefold().replace(",", " ").split())
        is_named = ([tokens[i].text.strip().casefold() in named for i in trial.token_ids] for trial in trials)
        return Predictions([PredictedTrial(np.array(values, np.float32)) for values in is_named])

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        return [Request(len(trials))]


SCORER = Share()
