"""Predictions from stored explanations: the stored ones, and the tasks that extend them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from neuroexplain.evidence import (
    TEXT_PARTS,
    Explanation,
    ExplanationResult,
    Prediction,
    PredictionResult,
    Provenance,
    Status,
    TextPart,
    Tokens,
    failures_among,
)
from neuroexplain.explaining.shares import Pending
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer, compute_scores
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_predictions
from neuroexplain.units import UnitSide

StoredPredictions: TypeAlias = Mapping[tuple[int, TextPart], Prediction]  # by Prediction.source


@dataclass(frozen=True)
class PredictTask:
    """What the predictions from one explanation need, read from the store beforehand."""

    explanation: Explanation
    evidence: SideEvidence
    tokens: Tokens
    stored: Mapping[TextPart, Prediction | None]  # of each part to predict, None: begin

    def begin(self, part: TextPart, scorer: OpenScorer) -> Prediction:
        """What the prediction from a part goes on from."""
        return continue_prediction(self.explanation, part, scorer, self.evidence, self.stored[part])

    def result(self, predictions: Mapping[TextPart, Prediction]) -> ExplanationResult:
        """The predictions, rounded as they are stored, with their scores; they replace the stored ones."""
        results = []
        for part, prediction in predictions.items():
            rounded = as_stored(prediction)
            scores = tuple(compute_scores(self.evidence, rounded))
            results.append(PredictionResult(rounded, scores, replaces=self.stored[part]))
        return ExplanationResult(self.explanation, tuple(results))


class PredictionPlan:
    """Which explanations lack predictions, by what is stored.

    lacks: whether something is to be done about the stored prediction from a part of an explanation, or about
    there being none. whole: the store that holds the run's records; retry_failed: see find_predictions.
    """

    def __init__(
        self,
        store: Store,
        whole: Store,
        run: Run,
        explanations: Sequence[Explanation],
        scorer: OpenScorer,
        lacks: Callable[[Explanation, TextPart, Prediction | None], bool],
        *,
        retry_failed: bool,
    ) -> None:
        self._store, self._whole, self._run = store, whole, run
        self._scorer, self._lacks, self._retry_failed = scorer, lacks, retry_failed
        self._by_side: dict[UnitSide, list[Explanation]] = {}
        for explanation in explanations:
            self._by_side.setdefault(explanation.unit_side, []).append(explanation)
        stored = self._find(explanations)
        self.failures = failures_among(prediction.status for prediction in stored.values())
        self.pending = self._list_pending(explanations, stored)

    def read_again(self, sides: Iterable[UnitSide]) -> list[Pending[PredictTask]]:
        """What is pending of these sides by what is stored now."""
        explanations = [e for side in sides for e in self._by_side[side]]
        return self._list_pending(explanations, self._find(explanations))

    def _find(self, explanations: Sequence[Explanation]) -> StoredPredictions:
        return find_predictions(self._store, explanations, self._scorer, retry_failed=self._retry_failed)

    def _list_pending(
        self, explanations: Sequence[Explanation], stored: StoredPredictions
    ) -> list[Pending[PredictTask]]:
        pending = []
        for explanation in explanations:
            parts = stored_parts(stored, explanation, explanation.text_parts)
            lacking = {part: p for part, p in parts.items() if self._lacks(explanation, part, p)}
            if lacking:
                load = partial(load_predict_task, self._whole, self._run, explanation, lacking)
                pending.append(Pending(explanation.id, explanation.unit_side, load))
        return pending


def find_predictions(
    store: Store, explanations: Sequence[Explanation], scorer: OpenScorer | None, *, retry_failed: bool
) -> dict[tuple[int, TextPart], Prediction]:
    """The stored predictions by this scorer, model and prompt, by explanation and part of its text.

    Failed predictions are left out with `retry_failed`.
    """
    if scorer is None:
        return {}
    prompt = None if scorer.prompt is None else scorer.prompt.sha256
    identity = (scorer.name, scorer.engine.model, prompt)
    ids = [e.id for e in explanations if e.id is not None]
    return {
        prediction.source: prediction
        for part in TEXT_PARTS
        for prediction in list_predictions(store, ids, part)
        if (prediction.scorer, prediction.provenance.model, prediction.provenance.prompt_sha256) == identity
        and not (retry_failed and prediction.status.is_worth_retrying)
    }


def stored_parts(
    stored: StoredPredictions, explanation: Explanation, parts: Iterable[TextPart]
) -> dict[TextPart, Prediction | None]:
    """What is stored from these parts of an explanation; None where nothing is."""
    return {part: stored.get((explanation.id or 0, part)) for part in parts}


def continue_prediction(
    explanation: Explanation,
    part: TextPart,
    scorer: OpenScorer,
    evidence: SideEvidence,
    stored: Prediction | None,
) -> Prediction:
    """What a prediction goes on from: the stored one, or none of its records if more of them are to be read.

    The numbers are then those of one command that reads them all: a prompt may hold several records.
    """
    new = begin_prediction(explanation, part, scorer, evidence)
    if stored is None or stored.status != Status.OK or not evidence.n_sampled:
        return new if stored is None else stored
    n_read = max(stored.n_read or 0, scorer.records_of_split)
    with_bills = stored.with_bills or scorer.reads_strongest
    if (n_read, with_bills) == (stored.n_read, stored.with_bills):
        return stored
    n_background = scorer.background_read(evidence, n_read)
    read = {"n_read": n_read, "with_bills": with_bills, "n_background": n_background}
    return replace(new, **read, provenance=stored.provenance)  # type: ignore[arg-type]


def begin_prediction(
    explanation: Explanation, part: TextPart, scorer: OpenScorer, evidence: SideEvidence
) -> Prediction:
    """A prediction from this part of an explanation without records yet."""
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
        text=explanation.text_of(part),
        part=part,
        n_read=scorer.records_read(evidence),
        n_background=scorer.background_read(evidence, scorer.records_read(evidence)),
        with_bills=scorer.reads_strongest if evidence.n_sampled else None,
    )


def load_predict_task(
    store: Store, run: Run, explanation: Explanation, stored: Mapping[TextPart, Prediction | None]
) -> PredictTask:
    """Read what predictions from these parts of an explanation need. They go on from `stored`, or begin."""
    unit, tokens = load_unit_to_score(store, run, explanation.unit)
    evidence = SideEvidence.of(run, unit, explanation.side, tokens)
    return PredictTask(explanation, evidence, tokens, stored)
