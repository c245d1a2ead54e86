"""Import what a Parquet export holds: check every file, then store a run with new ids."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import (
    Explanation,
    Prediction,
    Score,
    Status,
    VocabularyEntry,
)
from neuroexplain.formats._parquet_files import list_files, sha256_of
from neuroexplain.formats._parquet_layers import read_layer
from neuroexplain.formats._parquet_rows import explanation_of, prediction_of, segment_of
from neuroexplain.formats._parquet_tables import VERSION, DamagedFolder, read_batches, reading
from neuroexplain.formatting import run_json
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import (
    create_run,
    delete_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.save_explained import save_explanations, save_predictions, save_prompt
from neuroexplain.store.units import count_layer_units
from neuroexplain.units import RECORD_LENGTH, SEGMENT_LENGTH, Source

AT_END = (
    "n_segments",
    "n_documents",
    "n_tokens",
    "finished_at",
)  # fields of a run that are known when it is finished
LONGEST_NAME = 32  # characters of what is read
Scores: TypeAlias = dict[tuple[str, str], list[Score]]  # of one explanation, by scorer and its model


def import_parquet(store: Store, folder: Path) -> Generator[Progress]:
    """Store what export_parquet wrote as a finished run; an import that was cut off goes on with the layers that are missing.

    The run keeps its times, by which it is known: one that is stored already is left as it is. Raises NeuroexplainError where
    the folder is not one of these, and DamagedFolder, with nothing of the run left behind, where a part of it is damaged.
    """
    told = _read_run_json(folder)
    fields = {name: told[name] for name in Run.__dataclass_fields__ if name not in ("id", "status", *AT_END)}
    sources = [Source(**source) for source in told["sources"]]
    same = {r.status: r.id for r in list_runs(store) if fields.items() <= run_json(r).items()}
    if "finished" in same:
        note = f"Run {same['finished']} of {store.name} is this run already: nothing to do."
        yield Progress("importing", len(told["layers"]), len(told["layers"]), "layers", note=note)
        return
    yield from _check_files(folder, told.get("files"))
    run_id = same["running"] if "running" in same else create_run(store, fields | {"sources": sources})
    try:
        with store.bulk_writing():
            yield from _import_tables(store, run_id, folder, told)
    except DamagedFolder:
        delete_run(store, run_id)
        raise
    finish_run(store, run_id, **{name: told[name] for name in AT_END})


def _import_tables(store: Store, run_id: int, folder: Path, told: Mapping[str, Any]) -> Iterator[Progress]:
    limits = {"rank": range(max(told["top_k"], told["n_random"]))}  # of columns, by name
    limits |= {"segment": range(1 << 32), "token_id": range(1 << 24)}
    vocabulary = [
        entry
        for some in read_batches(folder, "vocabulary", lambda row: VocabularyEntry(**row), limits)
        for entry in some
    ]
    if len({entry.token_id for entry in vocabulary}) != len(vocabulary) or not vocabulary:
        raise DamagedFolder(folder / "vocabulary", "tokens are missing or there twice")
    save_vocabulary(store, run_id, vocabulary)
    numbers, lengths = [np.zeros(0, np.int64)], set()
    for segments in read_batches(folder, "segments", segment_of, limits):
        save_segments(store, run_id, segments)
        numbers.append(np.array([one.segment for one in segments]))
        lengths |= {len(one.token_ids) for one in segments}
    if len(lengths) != 1:
        raise DamagedFolder(folder / "segments", "they are missing or of different lengths")
    known, limits["starts"] = np.concatenate(numbers), range(lengths.pop() - RECORD_LENGTH + 1)
    rows = (row for some in read_batches(folder, "prompts", dict, limits) for row in some)
    prompts = {None, *(save_prompt(store, row["name"], row["text"]) for row in rows)}
    new_ids, layers = NewIds(), told["layers"]
    widths = {source["layer"]: source["width"] for source in told["sources"]}
    for done, layer in enumerate(layers, 1):
        width = widths[layer]
        own = limits | {"neuron": range(width)}
        if count_layer_units(store, run_id, layer) < width:
            save_collected_layer(store, run_id, read_layer(folder, layer, width, told["dtype"], own, known))
        for asked in read_batches(
            folder, "explanations", partial(explanation_of, prompts=prompts), own, layer
        ):
            new_ids.add(asked, save_explanations(store, run_id, asked))
        yield Progress("importing", done, len(layers), "layers")
    for done, layer in enumerate(layers, 1):  # a prediction may name an explanation of any layer
        own = limits | {"neuron": range(widths[layer])}
        scores = _read_scores(folder, own, layer)
        predictions = read_batches(folder, "predictions", partial(prediction_of, prompts=prompts), own, layer)
        for made in _join_scores(folder, predictions, scores):
            save_predictions(store, run_id, [_with_new_ids(folder, *one, new_ids) for one in made])
        yield Progress("importing scores", done, len(layers), "layers")


def _read_run_json(folder: Path) -> dict[str, Any]:
    """What run.json says: the fields of Run, checked, and the hashes of the other files where it has them."""
    file = folder / "run.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(told, ensure_ascii=False, allow_nan=False).encode()  # nothing that no database holds
    except (OSError, ValueError, RecursionError) as error:
        raise NeuroexplainError(
            f"{folder} has no run.json that can be read: it is no export of ours ({error})."
        ) from error
    if not isinstance(told, dict) or told.get("format") not in (1, VERSION):
        raise NeuroexplainError(
            f"{folder} was written in another version of this format; 1 and {VERSION} are read."
        )
    if told["format"] == 1:
        told |= _sources_of_version_1(file, told)
    hints = get_type_hints(Run)
    wrong = [name for name, hint in hints.items() if name not in told or not _is_of(told[name], hint)]
    if not wrong:
        layers, stride = told["layers"], told["config"].get("segment_stride", SEGMENT_LENGTH)
        fits = {name: 0 <= told[name] < 1 << 63 for name, hint in hints.items() if hint is int}
        fits["layers"] = 0 < len(layers) == len(set(layers)) and all(
            layer in range(told["n_layers"]) for layer in layers
        )
        fits["sources"] = [source["layer"] for source in told["sources"]] == layers and all(
            0 < source["width"] < 1 << 31 for source in told["sources"]
        )
        fits["activation"] = 0 < len(told["activation"]) <= LONGEST_NAME
        fits["config"] = _is_of(stride, int) and 0 < stride <= SEGMENT_LENGTH
        fits["files"] = isinstance(told.get("files", {}), dict)
        wrong = [name for name, is_fit in fits.items() if not is_fit]
    if wrong:
        raise DamagedFolder(file, f"{wrong[0]} is {json.dumps(told.get(wrong[0]))[:60]}")
    return told


def _sources_of_version_1(file: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """Exports of version 1 hold neurons alone and one width; where they were read follows from the activation."""
    width, layers, config = told.get("d_mlp"), told.get("layers"), told.get("config")
    if (
        type(width) is not int
        or not 0 < width < 1 << 31
        or not isinstance(layers, list)
        or not isinstance(config, dict)
    ):
        raise DamagedFolder(file, f"d_mlp is {json.dumps(width)[:60]}")
    side = "output" if told.get("activation") == "act" else "input"
    read = {"kind": "mlp", "module": None, "side": side, "width": width, "dtype": told.get("dtype")}
    sources = [{"layer": layer, **read, "group_size": None, "encoder": None} for layer in layers]
    return {
        "sources": sources,
        "rectified": False,
        "config": {**config, "source": "mlp"} if "model" in config else config,
    }


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the type of a field of Run."""
    kind, of = get_origin(hint), get_args(hint)
    if hint is Source:
        hints = get_type_hints(Source)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(_is_of(value[k], hints[k]) for k in hints)
        )
    if kind is Literal:
        return value in of
    if kind is UnionType:
        return any(_is_of(value, one) for one in of)
    if kind is tuple:
        return isinstance(value, list) and all(_is_of(one, of[0]) for one in value)
    return isinstance(value, dict) if kind is Mapping else type(value) is hint


def _check_files(folder: Path, hashes: Mapping[str, str] | None) -> Iterator[Progress]:
    """Compare the files with the hashes that they were exported with; exports of an earlier version have none."""
    if hashes is None:
        return
    there = list_files(folder)
    for name in sorted({*there, *hashes}):
        if name not in there:
            raise DamagedFolder(folder / name, "it is missing")
        if name not in hashes:
            raise DamagedFolder(folder / name, "it does not belong to the export")
    for done, (name, file) in enumerate(there.items(), 1):
        with reading(file):
            if sha256_of(file) != hashes[name]:
                raise DamagedFolder(file, "it has changed since it was exported")
        yield Progress("checking", done, len(there), "files")


def _read_scores(folder: Path, limits: Mapping[str, range], layer: int) -> Iterator[tuple[float, Scores]]:
    """The layer's explanations that have scores, as they are stored: in ascending order."""
    rows = (row for some in read_batches(folder, "scores", dict, limits, layer) for row in some)
    for explanation_id, own in groupby(rows, key=lambda row: row["explanation_id"]):
        scores: Scores = {}
        for row in own:
            values = {name: row[name] for name in Score.__dataclass_fields__} | {
                "status": Status(row["status"])
            }
            scores.setdefault((row["scorer"], row["scorer_model"]), []).append(Score(**values))
        if any(len({(s.split, s.subset, s.metric) for s in same}) < len(same) for same in scores.values()):
            raise DamagedFolder(folder / "scores", f"explanation {explanation_id} has a score twice")
        yield explanation_id, scores


def _join_scores(
    folder: Path, predictions: Iterable[list[Prediction]], scores: Iterator[tuple[float, Scores]]
) -> Iterator[list[tuple[Prediction, list[Score]]]]:
    """Simulations with their scores. Both are in the order of explanations and are read side by side."""
    end: tuple[float, Scores] = (math.inf, {})
    at, own = next(scores, end)
    for some in predictions:
        made = []
        for one in some:
            while at < one.explanation_id and not own:
                at, own = next(scores, end)
            made.append(
                (one, own.pop((one.scorer, one.provenance.model), []) if at == one.explanation_id else [])
            )
        yield made
    if own or next(scores, None) is not None:
        raise DamagedFolder(folder / "scores", "there are scores without their prediction")


class NewIds:
    """The explanations' ids here by those of the database that was exported; 16 bytes each."""

    def __init__(self) -> None:
        self._pairs = array("q"), array("q")
        self._sorted: tuple[Any, Any] | None = None

    def add(self, asked: Iterable[Explanation], stored: Iterable[Explanation]) -> None:
        for old, new in zip(asked, stored, strict=True):
            for ids, one in zip(self._pairs, (old, new), strict=True):
                ids.append(one.id or 0)

    def find(self, old: int | None) -> int | None:
        """None where it was not exported, as for an explanation that was removed."""
        if self._sorted is None:
            olds, news = (np.array(ids, np.int64) for ids in self._pairs)
            order = olds.argsort()
            self._sorted = olds[order], news[order]
        olds, news = self._sorted
        at = 0 if old is None else int(np.searchsorted(olds, old))
        return int(news[at]) if at < len(olds) and olds[at] == old else None


def _with_new_ids(
    folder: Path, made: Prediction, scores: Sequence[Score], new_ids: NewIds
) -> tuple[Prediction, list[Score]]:
    own = new_ids.find(made.explanation_id)
    if own is None:
        raise DamagedFolder(
            folder / "explanations", f"{made.explanation_id}, which {made.unit} was explained by, is missing"
        )
    moved = replace(
        made, explanation_id=own, control_explanation_id=new_ids.find(made.control_explanation_id)
    )
    return moved, [
        replace(score, control_explanation_id=new_ids.find(score.control_explanation_id)) for score in scores
    ]
