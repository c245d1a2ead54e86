"""Recompute every stored score; look for leaks, and for rows that are unreadable or misplaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from neuroexplain.errors import NeuroexplainError, NotInStore, StoreUnreadable
from neuroexplain.evidence import TEXT_PARTS, Prediction, Score, Split, Status, TextPart
from neuroexplain.runs import Run
from neuroexplain.scorers.base import compute_scores
from neuroexplain.scoring.background_faults import find_background_faults
from neuroexplain.scoring.hard_faults import find_hard_faults, find_wrong_hard
from neuroexplain.scoring.probability_faults import find_wrong_probabilities
from neuroexplain.scoring.record_faults import find_record_faults, find_segment_faults
from neuroexplain.scoring.side_evidence import HELD_OUT, SideEvidence
from neuroexplain.scoring.splits import find_leaks
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.hard import list_measured, load_hard_rows
from neuroexplain.store.integrity import list_misplaced, list_unsound_samples
from neuroexplain.store.units import list_explained_ids, list_segments, load_segments
from neuroexplain.units import RECORD_LENGTH, UnitId

Owner = tuple[int, str, str]  # explanation, scorer, its model
Scores = dict[tuple[Split, str, str], Score]  # by split, subset and metric


def verify_run(store: Store, run: Run) -> Iterator[str]:
    """Yield a line for each fault. A unit that cannot be read is one fault, and the next unit follows."""
    for unit_id in list_explained_ids(store, run.id):
        try:
            yield from _verify_unit(store, run, unit_id)
        except (NotInStore, StoreUnreadable) as error:
            yield f"{unit_id}: {str(error).splitlines()[0]}"
    if run.split_rule == "passages":
        yield from _verify_records(store, run)
        yield from _verify_hard(store, run)
    yield from list_misplaced(store, run.id)


def _verify_records(store: Store, run: Run) -> Iterator[str]:
    """Faults of the records of all units, by the rules of their draws.

    A layer's records are checked together. If a row of it cannot be read, none of them is, and a line says
    so.
    """
    random: set[int] = set()
    is_complete = True
    for layer_number in run.layers:
        try:
            layer = load_collected_layer(store, run, layer_number)
            drawn = [*layer.exemplars.values(), *(sample.records for sample in layer.samples.values())]
            numbers = {int(n) for arrays in drawn for n in np.unique(arrays.segments[arrays.counts_mask()])}
            if layer.background is not None:
                numbers |= set(layer.background.segments.tolist())
            segments = load_segments(store, run.id, numbers)
            yield from find_record_faults(run, layer, segments)
            yield from find_background_faults(run, layer, segments)
        except (NotInStore, StoreUnreadable) as error:
            yield f"layer {layer_number}: its records were not checked together: {str(error).splitlines()[0]}"
            is_complete = False
            continue
        if "random" in layer.exemplars:
            arrays = layer.exemplars["random"]
            random |= set(arrays.segments[arrays.counts_mask()].tolist())
    if run.n_random and (random or is_complete):
        try:
            splits = {s.segment: s.split for segments in list_segments(store, run.id) for s in segments}
            yield from find_segment_faults(run, splits, random)
        except StoreUnreadable as error:
            yield f"the segments were not checked together: {str(error).splitlines()[0]}"
    yield from list_unsound_samples(store, run.id)


def _verify_hard(store: Store, run: Run) -> Iterator[str]:
    """Faults of what was measured of look-alikes, unit by unit."""
    units = sorted({unit for unit, _ in list_measured(store, run.id)})
    for unit_id in units:
        try:
            unit, _ = load_unit_to_score(store, run, unit_id)
            for row in load_hard_rows(store, run, unit_id.layer, [unit_id.index]):
                evidence = SideEvidence.of(run, unit, row.side)
                for fault in find_hard_faults(evidence, row.records, run.width(unit_id.layer), run.dtype):
                    yield f"{unit_id}: {fault}"
                if not row.is_sound:
                    yield f"{unit_id}: its {row.side} side's look-alikes differ from their checksum"
        except (NotInStore, StoreUnreadable) as error:
            yield f"{unit_id}: {str(error).splitlines()[0]}"


def _verify_unit(store: Store, run: Run, unit_id: UnitId) -> Iterator[str]:
    unit, tokens = load_unit_to_score(store, run, unit_id)
    explanations = list_explanations(store, run.id, unit_id, status=Status.OK)
    sides = {e.id: e.side for e in explanations if e.id is not None}
    evidence = {side: SideEvidence.of(run, unit, side, tokens) for side in set(sides.values())}
    of_explanations = {i: evidence[side] for i, side in sides.items()}
    for part in TEXT_PARTS:
        for name, fault in _verify_part(store, part, of_explanations):
            yield f"{unit_id}, {name}: {fault}"


def _verify_part(
    store: Store, part: TextPart, evidence: Mapping[int, SideEvidence]
) -> Iterator[tuple[str, str]]:
    """Faults of what was predicted from explanations or their rules, each with the name of the prediction."""
    what = "explanation" if part == "whole" else "the rule of explanation"
    scores: dict[Owner, Scores] = {}
    for stored in list_scores(store, evidence, part):
        score, owner = stored.score, (stored.explanation_id, stored.scorer, stored.scorer_model)
        scores.setdefault(owner, {})[score.split, score.subset, score.metric] = score
    for prediction in list_predictions(store, evidence, part):
        owner = (prediction.explanation_id, prediction.scorer, prediction.provenance.model)
        name = f"{what} {prediction.explanation_id} by {prediction.scorer}"
        for fault in _find_faults(evidence[prediction.explanation_id], prediction, scores.pop(owner, {})):
            yield name, fault
    for (explanation_id, scorer, model), orphans in scores.items():
        yield (
            f"{what} {explanation_id} by {scorer}",
            f"{len(orphans)} scores of {model} without their prediction",
        )


def _find_faults(evidence: SideEvidence, prediction: Prediction, stored: Scores) -> Iterator[str]:
    """Faults of one prediction: it does not fit its unit, its scores differ, or its records leak."""
    misfit = _find_misfit(evidence, prediction)
    if misfit is not None:
        yield f"the prediction cannot be read: {misfit}"
        return
    try:
        recomputed = {(s.split, s.subset, s.metric): s for s in compute_scores(evidence, prediction)}
    except NeuroexplainError as error:  # its scorer is not installed
        yield f"its scores cannot be recomputed: {error}"
        return
    for key in dict.fromkeys((*recomputed, *stored)):
        if stored.get(key) != recomputed.get(key):
            yield f"the stored score {stored.get(key)} differs from the recomputed {recomputed.get(key)}"
    if prediction.n_read is not None:
        for split in HELD_OUT:
            yield from find_wrong_probabilities(evidence, split, prediction.n_read, prediction)
    yield from find_wrong_hard(evidence, prediction)
    records = (*evidence.unit.exemplars, *evidence.unit.background, *(evidence.hard or ()))
    for leak in find_leaks(records, {r.key for r in prediction.records}, evidence.split_rule):
        yield f"a leak: {leak}"


def _find_misfit(evidence: SideEvidence, prediction: Prediction) -> str | None:
    """Why a prediction does not fit its unit's records, so that no score can be computed; None if it fits."""
    for record in prediction.records:
        name, truth = (
            f"its record {record.kind} {record.rank}",
            evidence.by_key.get(record.key),
        )
        if truth is None:
            return f"{name} is not among the {evidence.side} side's exemplars"
        if record.first > RECORD_LENGTH - len(record.values):
            return f"{name} begins at token {record.first}, too late"
        if prediction.control_explanation_id is not None and record.control is None:
            return f"{name} lacks what was predicted from the control"
        values = [
            array for array in (record.values, record.control) if array is not None
        ]  # NaN: no prediction
        if any(np.isinf(array).any() for array in values) or not np.isfinite(truth.activations).all():
            return f"{name} holds values that are not finite"
    return None
