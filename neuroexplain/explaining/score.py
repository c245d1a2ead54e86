"""Score: stored explanations -> predictions of held-out records -> scores; controls; and the check that scores follow."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuroexplain.errors import NeuroexplainError, NotInStore, StoreUnreadable
from neuroexplain.evidence import Explained, Explanation, Prediction, Score, Split, Status, Tokens
from neuroexplain.explaining.trials import Trials, begin_prediction, units_at_once
from neuroexplain.runs import Run
from neuroexplain.runtime.in_flight import map_in_flight
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.result_writer import Saving
from neuroexplain.scorers.base import OpenScorer, compute_scores
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.sides import HELD_OUT, Evidence
from neuroexplain.scoring.splits import find_leaks, split_by_rank
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.integrity import list_misplaced
from neuroexplain.store.save_explained import save_prompt
from neuroexplain.store.units import list_explained_ids, load_unit
from neuroexplain.store.vocabulary import load_tokens
from neuroexplain.units import RECORD_LENGTH, Side, UnitId

ScoreKey = tuple[Split, str, str]  # split, subset and metric


@dataclass(frozen=True)
class PredictTask:
    """What one explanation's prediction, or its control's, needs; read from the store beforehand."""

    explanation: Explanation
    control: Explanation | None  # tried on the same records
    evidence: Evidence
    tokens: Tokens
    prediction: Prediction | None  # the stored one


def run_score(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    scorer: OpenScorer,
    *,
    with_control: bool = False,
    retry_failed: bool = False,
) -> Generator[Progress]:
    """Score stored explanations on held-out records, then try other units' explanations on the same, as controls.

    A scorer that asks per record reads `report` alone; else `select` too, for calibration.
    """
    if scorer.prompt is not None:
        save_prompt(store, scorer.prompt.name, scorer.prompt.text)
    finished = find_predictions(store, explanations, scorer, retry_failed=retry_failed)
    splits: tuple[Split, ...] = ("report",) if scorer.asks_per_record else HELD_OUT
    pending = [e for e in explanations if not _is_scored(finished.get(e.id or 0))]
    at_once, together = units_at_once(scorer, 1, len(pending))

    def work(task: PredictTask) -> Explained:
        e, before = task.explanation, task.prediction or begin_prediction(task.explanation, scorer)
        trials = Trials(scorer, task.evidence, task.tokens, together)
        made = as_stored(trials.extend(before, e.hypotheses, splits))
        return Explained(e, made, tuple(compute_scores(task.evidence, made)), replaces=task.prediction)

    before = len(explanations) - len(pending)
    failed = sum(p.status.failed for p in finished.values())
    with Saving(store, run, None, None, scorer) as saving:
        yield Progress("scoring", before, len(explanations), "explanations", failed)
        tasks = (plan_prediction(store, run, e, None, finished.get(e.id or 0)) for e in pending)
        for _, made in map_in_flight(work, tasks, at_once):
            saving.add([made])
            yield Progress(
                "scoring",
                before + saving.n_units,
                len(explanations),
                "explanations",
                failed + saving.n_failed,
                tokens=saving.prompt_tokens,
            )
        saving.flush()
        yield from predict_controls(
            store, run, explanations, scorer, saving, with_control=with_control, retry_failed=retry_failed
        )


def predict_controls(
    store: Store,
    run: Run,
    explanations: Sequence[Explanation],
    scorer: OpenScorer,
    saving: Saving,
    *,
    with_control: bool,
    retry_failed: bool,
) -> Generator[Progress]:
    """The control: each explanation's records scored with the explanation of another unit.

    It is that of the next unit, in the order of a stable hash, among these explanations; of the same layer if there is one.
    Where every record costs a request it is left out unless `with_control`. A person's own hypothesis has none: on every unit
    it is the same.
    """
    if scorer.asks_per_record and not with_control:
        return
    controls = find_controls([e for e in explanations if e.explainer != "human"])
    predictions = find_predictions(store, explanations, scorer, retry_failed=False)
    pending = [
        e
        for e in explanations
        if e.id in controls
        and (p := predictions.get(e.id or 0)) is not None
        and p.status == Status.OK
        and p.control_explanation_id is None
        and (p.reason is None or retry_failed)
    ]
    at_once, together = units_at_once(scorer, 1, len(pending))

    def work(task: PredictTask) -> Explained:
        assert task.control is not None
        assert task.prediction is not None
        trials = Trials(scorer, task.evidence, task.tokens, together)
        made = as_stored(trials.compare(task.prediction, task.control))
        return Explained(
            task.explanation, made, tuple(compute_scores(task.evidence, made)), replaces=task.prediction
        )

    failed = 0
    done = len(explanations) - len(pending)
    yield Progress("comparing", done, len(explanations), "explanations")
    tasks = (plan_prediction(store, run, e, controls[e.id or 0], predictions.get(e.id or 0)) for e in pending)
    for _, made in map_in_flight(work, tasks, at_once):
        saving.add([made], counts=False)
        failed += made.prediction is not None and made.prediction.control_explanation_id is None
        done += 1
        yield Progress(
            "comparing", done, len(explanations), "explanations", failed, tokens=saving.prompt_tokens
        )


def find_predictions(
    store: Store, explanations: Sequence[Explanation], scorer: OpenScorer | None, *, retry_failed: bool
) -> dict[int, Prediction]:
    """The stored predictions by this scorer, model and prompt, by explanation; failed ones unless they are asked again."""
    if scorer is None:
        return {}
    prompt = scorer.prompt.sha256 if scorer.prompt is not None else None
    mine = (scorer.name, scorer.engine.model, prompt)
    return {
        p.explanation_id: p
        for p in list_predictions(store, [e.id for e in explanations if e.id is not None])
        if (p.scorer, p.provenance.model, p.provenance.prompt_sha256) == mine
        and not (retry_failed and p.status.is_worth_retrying)
    }


def plan_prediction(
    store: Store,
    run: Run,
    explanation: Explanation,
    control: Explanation | None,
    prediction: Prediction | None,
) -> PredictTask:
    """Read what is needed of the unit."""
    unit = load_unit(store, run, explanation.unit)
    tokens = load_tokens(store, run.id, {int(i) for x in unit.exemplars for i in x.token_ids})
    return PredictTask(explanation, control, Evidence.of(run, unit, explanation.side), tokens, prediction)


def find_controls(explanations: Sequence[Explanation]) -> dict[int, Explanation]:
    """For each explanation, by id, that of another unit which is its control; those without one are left out.

    It is the next unit's by the same explainer and model, of the same side, in the order of a stable hash, around the end to
    the first; of the same layer if there is one. A unit with several is represented by its chosen one.
    """
    alike: dict[tuple[str, str, Side], dict[UnitId, Explanation]] = {}
    for e in sorted(explanations, key=lambda e: (not e.chosen, e.id or 0)):
        alike.setdefault(_kind_of(e), {}).setdefault(e.unit, e)
    following = {}
    for by, of_unit in alike.items():
        ring = sorted(of_unit.values(), key=lambda e: (stable_hash(e.unit.layer, e.unit.index), e.unit))
        layers = {e.unit.layer for e in ring}
        following[by] = _following(ring)
        for layer in layers:
            following[by] |= _following([e for e in ring if e.unit.layer == layer])
    controls = ((e.id, following[_kind_of(e)].get(e.unit)) for e in explanations)
    return {own: control for own, control in controls if own is not None and control is not None}


def _kind_of(e: Explanation) -> tuple[str, str, Side]:
    return e.explainer, e.provenance.model, e.side


def _following(ring: Sequence[Explanation]) -> dict[UnitId, Explanation]:
    return {e.unit: after for e, after in zip(ring, (*ring[1:], *ring[:1]), strict=True) if after is not e}


def _is_scored(prediction: Prediction | None) -> bool:
    """Whether nothing is left to predict: it failed, or it has more than the `select` records of a candidate."""
    return prediction is not None and (
        prediction.status != Status.OK or any(split_by_rank(r.rank) == "report" for r in prediction.records)
    )


def verify_run(store: Store, run: Run) -> Iterator[str]:
    """Recompute every score from what is stored; look for leaks and for rows that cannot be read or are in the wrong place.

    Yields a line for each fault, and goes on with the next unit where one cannot be read.
    """
    for unit_id in list_explained_ids(store, run.id):
        try:
            yield from _verify_unit(store, run, unit_id)
        except (NotInStore, StoreUnreadable) as error:
            yield f"{unit_id}: {str(error).splitlines()[0]}"
    yield from list_misplaced(store, run.id)


def _verify_unit(store: Store, run: Run, unit_id: UnitId) -> Iterator[str]:
    unit = load_unit(store, run, unit_id)
    sides = {
        e.id: e.side for e in list_explanations(store, run.id, unit_id, status=Status.OK) if e.id is not None
    }
    evidence = {side: Evidence.of(run, unit, side) for side in set(sides.values())}
    stored: dict[tuple[int, str, str], dict[ScoreKey, Score]] = {}
    for s in list_scores(store, sides):
        by = s.explanation_id, s.scorer, s.scorer_model
        stored.setdefault(by, {})[s.score.split, s.score.subset, s.score.metric] = s.score
    for prediction in list_predictions(store, sides):
        what = f"{unit_id}, explanation {prediction.explanation_id} by {prediction.scorer}"
        own = stored.pop((prediction.explanation_id, prediction.scorer, prediction.provenance.model), {})
        its_evidence = evidence[sides[prediction.explanation_id]]
        wrong = _find_unscorable(its_evidence, prediction)
        if wrong is not None:
            yield f"{what}: the prediction cannot be read: {wrong}"
            continue
        try:
            scores = compute_scores(its_evidence, prediction)
        except NeuroexplainError as error:  # a scorer that is not installed
            yield f"{what}: its scores cannot be recomputed: {error}"
            continue
        recomputed = {(score.split, score.subset, score.metric): score for score in scores}
        for key in dict.fromkeys((*recomputed, *own)):
            if own.get(key) != recomputed.get(key):
                yield f"{what}: the stored score {own.get(key)} differs from the recomputed {recomputed.get(key)}"
        for leak in find_leaks(unit.exemplars, {(r.kind, r.rank) for r in prediction.records}):
            yield f"{what}: a leak: {leak}"
    for (explanation_id, scorer, model), scores_left in stored.items():
        what = f"{unit_id}, explanation {explanation_id} by {scorer}"
        yield f"{what}: {len(scores_left)} scores of {model} without their prediction"


def _find_unscorable(evidence: Evidence, prediction: Prediction) -> str | None:
    """Why a prediction does not fit its unit's exemplars, so that no score can be computed; None where it does."""
    for r in prediction.records:
        which, recorded = f"its record {r.kind} {r.rank}", evidence.by_place.get((r.kind, r.rank))
        if recorded is None:
            return f"{which} is not among the {evidence.side} side's exemplars"
        if r.first > RECORD_LENGTH - len(r.values):
            return f"{which} begins at token {r.first}, too late"
        if prediction.control_explanation_id is not None and r.control is None:
            return f"{which} lacks what was predicted from the control"
        predicted = [values for values in (r.values, r.control) if values is not None]  # NaN: no prediction
        if any(np.isinf(values).any() for values in predicted) or not np.isfinite(recorded.activations).all():
            return f"{which} holds values that are not finite"
    return None
