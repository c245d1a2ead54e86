"""Import a Parquet export: check its files, then store its run with new ids.

Explanations come first, layer by layer, then predictions with their scores, since a prediction may refer to
an explanation of any layer. Rows are read in batches, so memory does not grow with the run but for the ids
of explanations (NewIds).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import TEXT_PARTS, Explanation, Prediction, Score, Status, VocabularyEntry
from neuroexplain.formats._parquet_files import list_files, sha256_of
from neuroexplain.formats._parquet_hard import import_hard
from neuroexplain.formats._parquet_layers import read_layer
from neuroexplain.formats._parquet_rows import explanation_of, prediction_of, segment_of
from neuroexplain.formats._parquet_run import read_run
from neuroexplain.formats._parquet_tables import DamagedFolder, read_batches, reading
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import PREDICTION_TABLES, SCORE_TABLES
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import (
    create_run,
    delete_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.save_explained import save_checks, save_explanations, save_predictions, save_prompt
from neuroexplain.store.units import count_layer_units
from neuroexplain.units import RECORD_LENGTH

KNOWN_AT_END = (
    "n_segments",
    "n_documents",
    "n_tokens",
    "split_segments",
    "finished_at",
)  # fields that finish_run writes
Limits: TypeAlias = Mapping[str, range]  # of the values of columns, by name
Scores: TypeAlias = dict[tuple[str, str], list[Score]]  # of one explanation, by scorer and its model


def import_parquet(store: Store, folder: Path) -> Generator[Progress]:
    """Store an export as a finished run. An import that was cut off goes on with the missing layers.

    A run is recognized by its fields and its start, which it keeps: if it is stored already, nothing is
    done. Raises NeuroexplainError if the folder is not an export of this format, and DamagedFolder if a part
    of it is damaged; then nothing of the run stays in the store.
    """
    run, checks, hashes = read_run(folder)
    same = {stored.status: stored.id for stored in list_runs(store) if _identity(stored) == _identity(run)}
    if "finished" in same:
        note = f"Run {same['finished']} of {store.name} is this run already: nothing to do."
        yield Progress("importing", len(run.layers), len(run.layers), "layers", note=note)
        return
    if hashes is not None:
        yield from _check_files(folder, hashes)
    run_id = same["running"] if "running" in same else create_run(store, _run_fields(run))
    try:
        with store.bulk_writing():
            yield from _import_tables(store, run_id, folder, run)
            save_checks(store, run_id, checks)
    except DamagedFolder:
        delete_run(store, run_id)
        raise
    finish_run(store, run_id, **{name: getattr(run, name) for name in KNOWN_AT_END})


def _identity(run: Run) -> Run:
    """The run without the fields that another database or the end of the run changes."""
    at_end = {"n_segments": 0, "n_documents": 0, "n_tokens": 0, "split_segments": {}, "finished_at": None}
    return replace(run, id=0, status="running", **at_end)  # type: ignore[arg-type]


def _run_fields(run: Run) -> dict[str, Any]:
    """The fields for create_run."""
    names = [name for name in Run.__dataclass_fields__ if name not in ("id", "status", *KNOWN_AT_END)]
    return {name: getattr(run, name) for name in names} | {
        "layers": list(run.layers),
        "barred_ids": list(run.barred_ids),
    }


def _check_files(folder: Path, hashes: Mapping[str, str]) -> Iterator[Progress]:
    """Compare all files with their hashes. Raises DamagedFolder for a missing, changed or additional file."""
    files = list_files(folder)
    for name in sorted({*files, *hashes}):
        if name not in files:
            raise DamagedFolder(folder / name, "it is missing")
        if name not in hashes:
            raise DamagedFolder(folder / name, "it does not belong to the export")
    for done, (name, file) in enumerate(files.items(), 1):
        with reading(file):
            if sha256_of(file) != hashes[name]:
                raise DamagedFolder(file, "it has changed since it was exported")
        yield Progress("checking", done, len(files), "files")


def _import_tables(store: Store, run_id: int, folder: Path, run: Run) -> Iterator[Progress]:
    limits = {
        "rank": range(max(run.top_k, run.n_random, len(run.sides) * run.n_sampled)),
        "segment": range(1 << 32),
        "token_id": range(1 << 24),
    }
    _import_vocabulary(store, run_id, folder, limits)
    segments, length = _import_segments(store, run_id, folder, limits)
    limits["starts"] = range(length - RECORD_LENGTH + 1)
    prompts = _import_prompts(store, folder, limits)
    limits_by_layer = {layer: limits | {"neuron": range(run.width(layer))} for layer in run.layers}
    new_ids = NewIds()
    for done, (layer, own) in enumerate(limits_by_layer.items(), 1):
        width = run.width(layer)
        if count_layer_units(store, run_id, layer) < width:
            collected = read_layer(folder, run, layer, own, segments)
            save_collected_layer(store, run_id, collected)
        import_hard(store, run_id, folder, run, layer, own, segments)
        decode = partial(explanation_of, prompts=prompts)
        for batch in read_batches(folder, "explanations", decode, own, layer):
            explanations = [_on_a_side_of(run, explanation) for explanation in batch]
            new_ids.add(explanations, save_explanations(store, run_id, explanations))
        yield Progress("importing", done, len(run.layers), "layers")
    for done, (layer, own) in enumerate(limits_by_layer.items(), 1):
        for part in TEXT_PARTS:
            decode_prediction = partial(prediction_of, prompts=prompts, part=part)
            predictions = read_batches(folder, PREDICTION_TABLES[part], decode_prediction, own, layer)
            of_part = folder / SCORE_TABLES[part]
            for scored_batch in _join_scores(of_part, predictions, _read_scores(of_part, own, layer)):
                moved = [_with_new_ids(folder, *scored, new_ids) for scored in scored_batch]
                save_predictions(store, run_id, moved)
        yield Progress("importing scores", done, len(run.layers), "layers")


def _on_a_side_of(run: Run, explanation: Explanation) -> Explanation:
    """Exports of version 1 knew no sides: what a negative run holds is of its negative side."""
    return explanation if explanation.side in run.sides else replace(explanation, side=run.sides[0])


def _import_vocabulary(store: Store, run_id: int, folder: Path, limits: Limits) -> None:
    entries: list[VocabularyEntry] = []
    for batch in read_batches(folder, "vocabulary", lambda row: VocabularyEntry(**row), limits):
        entries += batch
    if not entries or len({entry.token_id for entry in entries}) != len(entries):
        raise DamagedFolder(folder / "vocabulary", "tokens are missing or occur twice")
    save_vocabulary(store, run_id, entries)


def _import_segments(
    store: Store, run_id: int, folder: Path, limits: Limits
) -> tuple[NDArray[np.int64], int]:
    """Store the segments. Returns their numbers, and the number of token ids that each of them has."""
    numbers: list[NDArray[np.int64]] = []
    lengths: set[int] = set()
    for segments in read_batches(folder, "segments", segment_of, limits):
        save_segments(store, run_id, segments)
        numbers.append(np.array([segment.segment for segment in segments], np.int64))
        lengths |= {len(segment.token_ids) for segment in segments}
    if len(lengths) != 1:
        raise DamagedFolder(folder / "segments", "segments are missing or of different lengths")
    return np.concatenate(numbers), lengths.pop()


def _import_prompts(store: Store, folder: Path, limits: Limits) -> set[str | None]:
    """Store the prompts. Returns their hashes, and None for what had no prompt."""
    prompts: set[str | None] = {None}
    for rows in read_batches(folder, "prompts", dict, limits):
        prompts |= {save_prompt(store, row["name"], row["text"]) for row in rows}
    return prompts


def _read_scores(table: Path, limits: Limits, layer: int) -> Iterator[tuple[float, Scores]]:
    """The scored explanations' ids, in ascending order as they are stored, each with its scores."""
    batches = read_batches(table.parent, table.name, dict, limits, layer)
    rows = (row for batch in batches for row in batch)
    for explanation_id, own_rows in groupby(rows, key=lambda row: row["explanation_id"]):
        scores: Scores = {}
        for row in own_rows:
            values = {name: row[name] for name in Score.__dataclass_fields__}
            score = Score(**values | {"status": Status(row["status"])})
            scores.setdefault((row["scorer"], row["scorer_model"]), []).append(score)
        if any(len({(s.split, s.subset, s.metric) for s in own}) < len(own) for own in scores.values()):
            raise DamagedFolder(table, f"explanation {explanation_id} has the same score twice")
        yield explanation_id, scores


def _join_scores(
    table: Path, predictions: Iterable[list[Prediction]], scores: Iterator[tuple[float, Scores]]
) -> Iterator[list[tuple[Prediction, list[Score]]]]:
    """Predictions with their scores. Both come in the order of explanations and are read side by side."""
    end: tuple[float, Scores] = (math.inf, {})
    explanation_id, own = next(scores, end)
    for batch in predictions:
        scored = []
        for prediction in batch:
            while explanation_id < prediction.explanation_id and not own:
                explanation_id, own = next(scores, end)
            key = prediction.scorer, prediction.provenance.model
            is_scored = explanation_id == prediction.explanation_id
            scored.append((prediction, own.pop(key, []) if is_scored else []))
        yield scored
    if own or next(scores, None) is not None:
        raise DamagedFolder(table, "there are scores without their prediction")


class NewIds:
    """The new id of each explanation by its id in the exported database; 16 bytes for each."""

    def __init__(self) -> None:
        self._old, self._new = array("q"), array("q")
        self._sorted: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def add(self, exported: Iterable[Explanation], stored: Iterable[Explanation]) -> None:
        for before, after in zip(exported, stored, strict=True):
            self._old.append(before.id or 0)
            self._new.append(after.id or 0)

    def find(self, old_id: int | None) -> int | None:
        """None if the explanation was not exported. All ids must be added before the first call."""
        if self._sorted is None:
            old, new = np.array(self._old, np.int64), np.array(self._new, np.int64)
            order = old.argsort()
            self._sorted = old[order], new[order]
        old, new = self._sorted
        place = 0 if old_id is None else int(np.searchsorted(old, old_id))
        return int(new[place]) if place < len(old) and old[place] == old_id else None


def _with_new_ids(
    folder: Path, prediction: Prediction, scores: Sequence[Score], new_ids: NewIds
) -> tuple[Prediction, list[Score]]:
    explanation_id = new_ids.find(prediction.explanation_id)
    if explanation_id is None:
        explanation = f"explanation {prediction.explanation_id} of unit {prediction.unit}"
        raise DamagedFolder(folder / "explanations", f"{explanation} is missing")
    control_id = new_ids.find(prediction.control_explanation_id)
    moved = replace(prediction, explanation_id=explanation_id, control_explanation_id=control_id)
    return moved, [
        replace(score, control_explanation_id=new_ids.find(score.control_explanation_id)) for score in scores
    ]
