"""Predictions from stored explanations: the stored ones, and the tasks that extend them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuroexplain.evidence import Explanation, Prediction, Provenance, Status, Tokens
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_predictions
from neuroexplain.store.units import load_unit
from neuroexplain.store.vocabulary import load_tokens


@dataclass(frozen=True)
class PredictTask:
    """What one explanation's prediction needs, read from the store beforehand."""

    explanation: Explanation
    evidence: SideEvidence
    tokens: Tokens
    prediction: Prediction  # to go on from
    stored: Prediction | None  # the stored one that it replaces


def find_predictions(
    store: Store, explanations: Sequence[Explanation], scorer: OpenScorer | None, *, retry_failed: bool
) -> dict[int, Prediction]:
    """The stored predictions by this scorer, model and prompt, by explanation.

    Failed predictions are left out with `retry_failed`.
    """
    if scorer is None:
        return {}
    prompt = None if scorer.prompt is None else scorer.prompt.sha256
    identity = (scorer.name, scorer.engine.model, prompt)
    stored = list_predictions(store, [e.id for e in explanations if e.id is not None])
    return {
        prediction.explanation_id: prediction
        for prediction in stored
        if (prediction.scorer, prediction.provenance.model, prediction.provenance.prompt_sha256) == identity
        and not (retry_failed and prediction.status.is_worth_retrying)
    }


def begin_prediction(explanation: Explanation, scorer: OpenScorer) -> Prediction:
    """A prediction from this explanation without records yet."""
    engine, prompt = scorer.engine, None if scorer.prompt is None else scorer.prompt.sha256
    provenance = Provenance(engine.engine, engine.version, engine.model, engine.revision, prompt)
    return Prediction(
        explanation_id=explanation.id or 0,
        unit=explanation.unit,
        scorer=scorer.name,
        status=Status.OK,
        records=(),
        provenance=provenance,
        codec=scorer.scorer.codec,
    )


def load_predict_task(
    store: Store, run: Run, explanation: Explanation, scorer: OpenScorer, stored: Prediction | None
) -> PredictTask:
    """Read what a prediction from this explanation needs. It goes on from `stored`, or begins."""
    unit = load_unit(store, run, explanation.unit)
    tokens = load_tokens(store, run.id, {int(i) for x in unit.exemplars for i in x.token_ids})
    evidence = SideEvidence.of(run, unit, explanation.side)
    return PredictTask(explanation, evidence, tokens, stored or begin_prediction(explanation, scorer), stored)
