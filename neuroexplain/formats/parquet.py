"""A run as a Hugging Face data set folder: Parquet files by table and layer, and a card. Import restores all of it.

One configuration a table (`load_dataset(FOLDER, "exemplars")`); run.json holds the run itself. Ids that join tables are those
of the database that was exported; importing gives new ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, StatsArrays, VocabularyArrays
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import (
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    Segment,
    Stats,
    Status,
    StoredScore,
    VocabularyEntry,
)
from neuroexplain.formats import _parquet_version_1 as version_1
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format, ReadOptions
from neuroexplain.formatting import run_json, short_name
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.store.packing import CODECS, Codec, pack_activations
from neuroexplain.store.read import (
    count_layer_units,
    list_explanations,
    list_predictions,
    list_runs,
    list_scores,
    list_segments,
    load_collected_layer,
    load_prompt,
    load_segment_ids,
    load_vocabulary,
)
from neuroexplain.store.write import (
    create_run,
    delete_run,
    finish_run,
    save_collected_layer,
    save_explanations,
    save_predictions,
    save_prompt,
    save_segments,
    save_vocabulary,
)
from neuroexplain.units import CROP_LENGTH, KINDS, RECORD_LENGTH, SEGMENT_LENGTH, Kind, Source, UnitId

VERSION = 2
TABLES = ("neurons", "exemplars", "explanations", "scores", "predictions", "segments", "vocabulary", "prompts")
READINGS = {f"{which}_ids": pa.list_(pa.uint32()) for which in ("promoted", "suppressed")}
READINGS |= {f"{which}_logits": pa.list_(pa.float32()) for which in ("promoted", "suppressed")}
PLACES = {"segments": np.uint32, "starts": np.uint8, "documents": np.int32, "token_offsets": np.int32}
AT_ONCE = 500  # rows of a table that are in memory
SCALARS: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
SCALARS |= {tuple[int, ...]: pa.list_(pa.int64()), tuple[str, ...]: pa.list_(pa.string())}
RECORDS = pa.list_(
    pa.struct(
        [("kind", pa.string()), ("rank", pa.int64()), ("first", pa.int64())]
        + [(name, pa.list_(pa.float32())) for name in ("values", "detail", "control")]
    )
)
AT_END = ("n_segments", "n_documents", "n_tokens", "finished_at")  # fields of a run that are known when it is finished
LATER = ("created_at",)  # columns that earlier exports lack
LONGEST_NAME = 32  # characters of what is read
T = TypeVar("T")
Scores: TypeAlias = dict[tuple[str, str], list[Score]]  # of one explanation, by scorer and its model


class DamagedFolder(NeuroexplainError):
    """An exported folder is not as it was written."""

    def __init__(self, file: Path, how: object) -> None:
        said = str(how).strip("'.\n")
        super().__init__(f"{file} is damaged: {said}. Nothing of it was imported. Copy or export the folder anew.")


def export_parquet(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run, a layer at a time. The folder appears when it is whole."""
    with whole_folder(folder) as partial:
        for name in TABLES:
            (partial / name).mkdir()
        entries = load_vocabulary(store, run.id)
        _write(partial, "vocabulary", "all", [asdict(entry) for entry in entries])
        texts = _texts(entries)
        for number, segments in enumerate(list_segments(store, run.id)):
            rows = [{"segment": s.segment, "token_ids": s.token_ids.tolist()} for s in segments]
            _write(partial, "segments", f"{number:05}", rows)
        prompts: set[str | None] = set()
        for done, layer in enumerate(run.layers, 1):
            name = f"layer-{layer:03}"
            found = load_collected_layer(store, run, layer)
            for table, made in (
                ("neurons", _neurons_table(found, run.width(layer))),
                ("exemplars", _exemplars_table(store, run, found, texts)),
            ):
                pq.write_table(made, partial / table / f"{name}.parquet", compression="zstd")
            explanations = list_explanations(store, run.id, layer=layer)
            _write(partial, "explanations", name, map(_flat, explanations))
            prompts |= {e.provenance.prompt_sha256 for e in explanations}
            ids = [e.id for e in explanations if e.id is not None]
            _write(partial, "predictions", name, _prediction_rows(store, ids, prompts))
            _write(partial, "scores", name, (_score_row(one) for some in _some(ids) for one in list_scores(store, some)))
            yield Progress("exporting", done, len(run.layers), "layers")
        texts_of = ((sha256, *load_prompt(store, sha256)) for sha256 in sorted(filter(None, prompts)))
        _write(partial, "prompts", "all", ({"sha256": sha256, "name": name, "text": text} for sha256, name, text in texts_of))
        held = [name for name in TABLES if any((partial / name).iterdir())]
        for name in set(TABLES) - set(held):
            (partial / name).rmdir()
        (partial / "README.md").write_text(_card(run, held), encoding="utf-8")
        told = {"format": VERSION, **run_json(run), "files": {name: _sha256(file) for name, file in _files(partial).items()}}
        (partial / "run.json").write_text(json.dumps(told, indent=1))


def _prediction_rows(store: Store, explanation_ids: Sequence[int], prompts: set[str | None]) -> Iterator[dict[str, Any]]:
    """The predictions of explanations, some at a time; their prompts are added to `prompts`."""
    for some in _some(explanation_ids):
        for one in list_predictions(store, some):
            prompts.add(one.provenance.prompt_sha256)
            yield _prediction_row(one)


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
        with store.much_writing():
            yield from _import_tables(store, run_id, folder, told)
    except DamagedFolder:
        delete_run(store, run_id)
        raise
    finish_run(store, run_id, **{name: told[name] for name in AT_END})


def _import_tables(store: Store, run_id: int, folder: Path, told: Mapping[str, Any]) -> Iterator[Progress]:
    limits = {"rank": range(max(told["top_k"], told["n_random"]))}  # of columns, by name
    limits |= {"segment": range(1 << 32), "token_id": range(1 << 24)}
    vocabulary = [
        entry for some in _batches(folder, "vocabulary", lambda row: VocabularyEntry(**row), limits) for entry in some
    ]
    if len({entry.token_id for entry in vocabulary}) != len(vocabulary) or not vocabulary:
        raise DamagedFolder(folder / "vocabulary", "tokens are missing or there twice")
    save_vocabulary(store, run_id, vocabulary)
    numbers, lengths = [np.zeros(0, np.int64)], set()
    for segments in _batches(folder, "segments", _segment, limits):
        save_segments(store, run_id, segments)
        numbers.append(np.array([one.segment for one in segments]))
        lengths |= {len(one.token_ids) for one in segments}
    if len(lengths) != 1:
        raise DamagedFolder(folder / "segments", "they are missing or of different lengths")
    known, limits["starts"] = np.concatenate(numbers), range(lengths.pop() - RECORD_LENGTH + 1)
    rows = (row for some in _batches(folder, "prompts", dict, limits) for row in some)
    prompts = {None, *(save_prompt(store, row["name"], row["text"]) for row in rows)}
    new_ids, layers = _NewIds(), told["layers"]
    widths = {source["layer"]: source["width"] for source in told["sources"]}
    for done, layer in enumerate(layers, 1):
        width = widths[layer]
        own = limits | {"neuron": range(width)}
        if count_layer_units(store, run_id, layer) < width:
            save_collected_layer(store, run_id, _read_layer(folder, layer, width, told["dtype"], own, known))
        for asked in _batches(folder, "explanations", partial(_explanation, prompts=prompts), own, layer):
            new_ids.add(asked, save_explanations(store, run_id, asked))
        yield Progress("importing", done, len(layers), "layers")
    for done, layer in enumerate(layers, 1):  # a prediction may name an explanation of any layer
        own = limits | {"neuron": range(widths[layer])}
        scores = _read_scores(folder, own, layer)
        predictions = _batches(folder, "predictions", partial(_prediction, prompts=prompts), own, layer)
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
        raise NeuroexplainError(f"{folder} has no run.json that can be read: it is no export of ours ({error}).") from error
    if not isinstance(told, dict) or told.get("format") not in (1, VERSION):
        raise NeuroexplainError(f"{folder} was written in another version of this format; 1 and {VERSION} are read.")
    if told["format"] == 1:
        told |= _sources_of_version_1(file, told)
    hints = get_type_hints(Run)
    wrong = [name for name, hint in hints.items() if name not in told or not _is_of(told[name], hint)]
    if not wrong:
        layers, stride = told["layers"], told["config"].get("segment_stride", SEGMENT_LENGTH)
        fits = {name: 0 <= told[name] < 1 << 63 for name, hint in hints.items() if hint is int}
        fits["layers"] = 0 < len(layers) == len(set(layers)) and all(layer in range(told["n_layers"]) for layer in layers)
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
    if type(width) is not int or not 0 < width < 1 << 31 or not isinstance(layers, list) or not isinstance(config, dict):
        raise DamagedFolder(file, f"d_mlp is {json.dumps(width)[:60]}")
    side = "output" if told.get("activation") == "act" else "input"
    read = {"kind": "mlp", "module": None, "side": side, "width": width, "dtype": told.get("dtype")}
    sources = [{"layer": layer, **read, "group_size": None, "encoder": None} for layer in layers]
    return {"sources": sources, "rectified": False, "config": {**config, "source": "mlp"} if "model" in config else config}


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of the type of a field of Run."""
    kind, of = get_origin(hint), get_args(hint)
    if hint is Source:
        hints = get_type_hints(Source)
        return isinstance(value, dict) and value.keys() == hints.keys() and all(_is_of(value[k], hints[k]) for k in hints)
    if kind is Literal:
        return value in of
    if kind is UnionType:
        return any(_is_of(value, one) for one in of)
    if kind is tuple:
        return isinstance(value, list) and all(_is_of(one, of[0]) for one in value)
    return isinstance(value, dict) if kind is Mapping else type(value) is hint


def _files(folder: Path) -> dict[str, Path]:
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.glob("*/*.parquet"))}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_files(folder: Path, hashes: Mapping[str, str] | None) -> Iterator[Progress]:
    """Compare the files with the hashes that they were exported with; exports of an earlier version have none."""
    if hashes is None:
        return
    there = _files(folder)
    for name in sorted({*there, *hashes}):
        if name not in there:
            raise DamagedFolder(folder / name, "it is missing")
        if name not in hashes:
            raise DamagedFolder(folder / name, "it does not belong to the export")
    for done, (name, file) in enumerate(there.items(), 1):
        with _reading(file):
            if _sha256(file) != hashes[name]:
                raise DamagedFolder(file, "it has changed since it was exported")
        yield Progress("checking", done, len(there), "files")


def _read_scores(folder: Path, limits: Mapping[str, range], layer: int) -> Iterator[tuple[float, Scores]]:
    """The layer's explanations that have scores, as they are stored: in ascending order."""
    rows = (row for some in _batches(folder, "scores", dict, limits, layer) for row in some)
    for explanation_id, own in groupby(rows, key=lambda row: row["explanation_id"]):
        scores: Scores = {}
        for row in own:
            values = {name: row[name] for name in Score.__dataclass_fields__} | {"status": Status(row["status"])}
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
            made.append((one, own.pop((one.scorer, one.provenance.model), []) if at == one.explanation_id else []))
        yield made
    if own or next(scores, None) is not None:
        raise DamagedFolder(folder / "scores", "there are scores without their prediction")


class _NewIds:
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


def _with_new_ids(folder: Path, made: Prediction, scores: Sequence[Score], new_ids: _NewIds) -> tuple[Prediction, list[Score]]:
    own = new_ids.find(made.explanation_id)
    if own is None:
        raise DamagedFolder(folder / "explanations", f"{made.explanation_id}, which {made.unit} was explained by, is missing")
    moved = replace(made, explanation_id=own, control_explanation_id=new_ids.find(made.control_explanation_id))
    return moved, [replace(score, control_explanation_id=new_ids.find(score.control_explanation_id)) for score in scores]


def _some(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ids in ascending order, some at a time: so are the rows that belong to them."""
    ids = sorted(ids)
    return (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE))


def _neuron(neuron: UnitId) -> dict[str, int]:
    return {"layer": neuron.layer, "neuron": neuron.index}


def _score_row(stored: StoredScore) -> dict[str, Any]:
    whose = {name: getattr(stored, name) for name in ("explanation_id", "scorer", "scorer_model")}
    return _neuron(stored.unit) | asdict(stored.score) | whose


def _flat(one: Any) -> dict[str, Any]:
    row = {name: getattr(one, name) for name in one.__dataclass_fields__ if name not in ("unit", "provenance", "records")}
    provenance = asdict(one.provenance) | {"sampling": json.dumps(dict(one.provenance.sampling))}
    return _neuron(one.unit) | row | provenance


def _prediction_row(prediction: Prediction) -> dict[str, Any]:
    def listed(values: Any) -> list[float | None] | None:
        return None if values is None else [None if np.isnan(v) else float(v) for v in values]

    names = ("values", "detail", "control")
    records = [
        {"kind": r.kind, "rank": r.rank, "first": r.first, **{name: listed(getattr(r, name)) for name in names}}
        for r in prediction.records
    ]
    return _flat(prediction) | {"records": records}


def _segment(row: Mapping[str, Any]) -> Segment:
    ids = np.array(row["token_ids"], np.int64)
    if len(ids) not in (SEGMENT_LENGTH, RECORD_LENGTH) or ids.min() < 0 or ids.max() >= 1 << 24:
        raise ValueError(f"segment {row['segment']} does not hold {SEGMENT_LENGTH} token ids of 0 to 2^24")
    return Segment(row["segment"], ids.astype(np.uint32))


def _provenance(row: Mapping[str, Any], prompts: Collection[str | None]) -> Provenance:
    values = {name: row[name] for name in Provenance.__dataclass_fields__}
    sampling = json.loads(values["sampling"])
    if not isinstance(sampling, dict):
        raise ValueError("sampling is not an object")
    if values["prompt_sha256"] not in prompts:
        raise ValueError(f"the prompt {values['prompt_sha256']} is missing")
    return Provenance(**(values | {"sampling": sampling}))


def _explanation(row: Mapping[str, Any], prompts: Collection[str | None]) -> Explanation:
    names = set(Explanation.__dataclass_fields__) - {"unit", "provenance"}
    values: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names}
    if values["status"] == Status.OK and values["text"] is None:
        raise ValueError(f"explanation {values['id']} has no text")
    values["status"] = Status(values["status"])
    return Explanation(unit=UnitId(row["layer"], row["neuron"]), provenance=_provenance(row, prompts), **values)


def _prediction(row: Mapping[str, Any], prompts: Collection[str | None]) -> Prediction:
    names = set(Prediction.__dataclass_fields__) - {"unit", "provenance", "records"}
    if row["codec"] not in CODECS:
        raise ValueError(f"there is no codec {row['codec']}")
    records = tuple(_record(record, CODECS[row["codec"]]) for record in row["records"])
    if len({len(r.values) for r in records}) > 1:
        raise ValueError("predicted records are of different lengths")
    return Prediction(
        unit=UnitId(row["layer"], row["neuron"]),
        provenance=_provenance(row, prompts),
        records=records,
        **{name: row[name] for name in names} | {"status": Status(row["status"])},
    )


def _record(row: Mapping[str, Any], codec: Codec) -> PredictedRecord:
    values, detail, control = (
        None if (numbers := row[name]) is None else np.array([np.nan if v is None else v for v in numbers], np.float32)
        for name in ("values", "detail", "control")
    )
    n = 0 if values is None else len(values)
    is_placed = row["kind"] in KINDS and row["rank"] in range(256) and row["first"] in range(RECORD_LENGTH - n + 1)
    is_whole = values is not None and n > 0 and all(x is None or len(x) == n for x in (detail, control))
    is_whole &= not codec.in_steps or n == CROP_LENGTH  # levels are of a crop
    most = float(np.finfo(codec.dtype).max)
    is_finite = not any(x is not None and (np.abs(x) > most).any() for x in (values, control))
    is_mass = not codec.in_steps or detail is None or bool(((detail >= 0) & (detail <= 1)).all())
    if not (is_placed and is_whole and is_finite and is_mass):
        raise ValueError(f"the predicted record {row['kind']} {row['rank']} does not hold what its scorer predicts")
    assert values is not None
    return PredictedRecord(row["kind"], row["rank"], row["first"], values, detail, control)


def _neurons_table(found: CollectedLayer, width: int) -> pa.Table:
    columns: dict[str, Any] = {"layer": np.full(width, found.layer, np.int32), "neuron": np.arange(width, dtype=np.int32)}
    if found.stats is not None:
        columns |= {name: getattr(found.stats, name) for name in Stats.__dataclass_fields__}
    if found.vocabulary is not None:
        columns |= {name: pa.array(list(getattr(found.vocabulary, name))) for name in READINGS}
    return pa.table(columns)


def _exemplars_table(store: Store, run: Run, found: CollectedLayer, texts: pa.Array) -> pa.Table:
    parts = []
    for kind, x in found.exemplars.items():
        neuron, rank = x.counts_mask().nonzero()
        if not len(neuron):
            continue
        segments, starts = x.segments[neuron, rank], x.starts[neuron, rank]
        ids = load_segment_ids(store, run.id, set(segments.tolist()))
        tokens = np.stack([ids[s][a : a + RECORD_LENGTH] for s, a in zip(segments.tolist(), starts.tolist(), strict=True)])
        shown = pa.DictionaryArray.from_arrays(np.minimum(tokens.reshape(-1), len(texts) - 1).astype(np.int32), texts)
        columns: dict[str, Any] = {"layer": np.full(len(neuron), found.layer, np.int32), "neuron": neuron.astype(np.int32)}
        columns |= {"kind": [kind] * len(neuron), "rank": rank.astype(np.int32), "activation": x.peaks[neuron, rank]}
        columns |= {name: getattr(x, name)[neuron, rank] for name in PLACES}
        columns["tokens"] = pa.FixedSizeListArray.from_arrays(shown.cast(pa.string()), RECORD_LENGTH)
        columns["activations"] = pa.FixedSizeListArray.from_arrays(
            pa.array(x.activations[neuron, rank].reshape(-1)), RECORD_LENGTH
        )
        parts.append(pa.table(columns))
    return pa.concat_tables(parts) if parts else pa.table({"layer": pa.array([], pa.int32())})


def _texts(entries: Sequence[VocabularyEntry]) -> pa.Array:
    """The vocabulary's texts by token id; U+FFFD where there is none, and at the end for greater ids."""
    texts = ["\ufffd"] * (max((entry.token_id for entry in entries), default=-1) + 2)
    for entry in entries:
        texts[entry.token_id] = entry.text
    return pa.array(texts)


def _read_layer(
    folder: Path, layer: int, width: int, dtype: str, limits: Mapping[str, range], known: NDArray[np.int64]
) -> CollectedLayer:
    """A layer's neurons and exemplars, which are of `known` segments."""
    kinds: dict[Kind, ExemplarArrays] = {}
    file, neurons = _table(folder, "neurons", limits, layer)
    with _reading(file):
        if neurons.num_rows != width or np.any(np.diff(neurons["neuron"].to_numpy()) != 1):
            raise ValueError(f"it does not hold the neurons 0 to {width - 1} in order")
        columns = {name: neurons[name].to_numpy() for name in neurons.column_names if name in Stats.__dataclass_fields__}
        readings = {name: np.stack(neurons[name].to_numpy()) for name in READINGS if name in neurons.column_names}
        if len({array.shape for array in readings.values()}) > 1:
            raise ValueError("vocabulary readings are of different lengths")
        stats = StatsArrays(**columns) if columns else None
        vocabulary = VocabularyArrays(**readings) if readings else None
    file, exemplars = _table(folder, "exemplars", limits, layer)
    with _reading(file):
        all_kinds = np.array(exemplars["kind"].to_pylist(), "U8")
        if not set(all_kinds.tolist()) <= set(KINDS):
            raise ValueError(f"there are kinds other than {', '.join(KINDS)}")
        if not np.isin(exemplars["segments"].to_numpy(), known).all():
            raise ValueError("exemplars are of segments that are missing")
        if not exemplars.num_rows:
            raise ValueError("there are no exemplars")
        for kind in KINDS:
            rows = exemplars.filter(pa.array(all_kinds == kind))
            if rows.num_rows:
                kinds[kind] = _arrays(rows, width, dtype)
    return CollectedLayer(layer, kinds, stats, vocabulary)


def _arrays(rows: pa.Table, width: int, dtype: str) -> ExemplarArrays:
    """Exemplars of one kind. Raises ValueError where ranks have gaps, or the run's dtype does not hold an activation."""
    neuron, rank = rows["neuron"].to_numpy(), rows["rank"].to_numpy()
    counts = np.bincount(neuron, minlength=width)
    is_used = np.zeros((width, k := int(counts.max())), np.bool_)
    is_used[neuron[rank < k], rank[rank < k]] = True
    if not np.array_equal(is_used, np.arange(k) < counts[:, None]):
        raise ValueError("ranks of a neuron's exemplars are missing or there twice")
    placed: dict[str, Any] = {}
    for name, place_dtype in PLACES.items():
        placed[name] = np.full((width, k), -1 if name == "documents" else 0, place_dtype)
        placed[name][neuron, rank] = rows[name].to_numpy()
    peaks, activations = np.zeros((width, k), np.float32), np.zeros((width, k, RECORD_LENGTH), np.float32)
    peaks[neuron, rank] = rows["activation"].to_numpy()
    values = rows["activations"].combine_chunks().flatten().to_numpy()
    activations[neuron, rank] = values.reshape(-1, RECORD_LENGTH)
    for numbers in (peaks, activations):
        if not np.isfinite(numbers).all():
            raise ValueError("an activation is not finite")
        pack_activations(numbers, dtype)
    return ExemplarArrays(counts, **placed, peaks=peaks, activations=activations)


def _schema(table: str) -> pa.Schema:
    """A table's columns: the same in every file, also where all values of one are missing."""
    neuron = [("layer", pa.int64()), ("neuron", pa.int64())]
    scored = [("explanation_id", pa.int64()), ("scorer", pa.string()), ("scorer_model", pa.string())]
    placed = [(name, pa.from_numpy_dtype(dtype)) for name, dtype in PLACES.items()]
    activations = ("activations", pa.list_(pa.float32(), RECORD_LENGTH))
    columns: dict[str, list[Any]] = {
        "vocabulary": _columns(VocabularyEntry),
        "segments": [("segment", pa.int64()), ("token_ids", pa.list_(pa.int64()))],
        "prompts": [("sha256", pa.string()), ("name", pa.string()), ("text", pa.string())],
        "explanations": [*neuron, *_columns(Explanation), *_columns(Provenance)],
        "predictions": [*neuron, *_columns(Prediction), *_columns(Provenance), ("records", RECORDS)],
        "scores": [*neuron, *_columns(Score), *scored],
        "neurons": [*neuron, *_columns(Stats), *READINGS.items()],
        "exemplars": [*neuron, ("kind", pa.string()), ("rank", pa.int64()), *placed, ("activation", pa.float32()), activations],
    }
    fields = (one if isinstance(one, pa.Field) else pa.field(*one, nullable=False) for one in columns[table])
    return pa.schema(fields)


def _columns(kind: type) -> list[pa.Field]:
    """The fields of a type from types.py as columns; mappings are JSON; what has parts of its own is left out."""
    found = []
    for name, hint in get_type_hints(kind).items():
        inner = next((one for one in get_args(hint) if one in SCALARS), hint)  # of `X | None`
        if get_origin(hint) is Literal or get_origin(hint) is Mapping or hint is Status:
            inner = str
        if inner in SCALARS and name not in ("unit", "records"):
            found.append(pa.field(name, SCALARS[inner], nullable=NoneType in get_args(hint)))
    return found


def _write(folder: Path, table: str, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as they come; no file where there are none."""
    schema, waiting = _schema(table), iter(rows)
    some = list(islice(waiting, AT_ONCE))
    if not some:
        return
    with pq.ParquetWriter(folder / table / f"{name}.parquet", schema, compression="zstd") as file:
        while some:
            file.write_table(pa.Table.from_pylist(some, schema))
            some = list(islice(waiting, AT_ONCE))


def _checked(rows: pa.Table, table: str, limits: Mapping[str, range]) -> pa.Table:
    """The rows with their table's columns. Raises KeyError or ValueError for a column that is missing, or not what it was.

    Neurons may lack their statistics, and their vocabulary readings. A file without rows may have no columns either.
    """
    schema = _schema(table)
    if not rows.num_rows:
        return schema.empty_table()
    for name in set(LATER) & set(schema.names) - set(rows.column_names):
        rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
    if table == "neurons":
        absent = [
            name for group in (Stats.__dataclass_fields__, READINGS) for name in group if not {*group} & {*rows.column_names}
        ]
        schema = pa.schema([one for one in schema if one.name not in absent])
    found = rows.select(schema.names).cast(schema)
    for name, column in zip(schema.names, found.columns, strict=True):
        is_list = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
        if is_list and pc.list_flatten(column).null_count:
            raise ValueError(f"values are missing in {name}")
        if name in limits and not all(end in limits[name] for end in pc.min_max(column).as_py().values()):
            raise ValueError(f"{name} is not always one of {limits[name].start} to {limits[name].stop - 1}")
    return found


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises DamagedFolder where what a file holds cannot be read, or is not what its table is for."""
    try:
        yield
    except (OSError, ValueError, KeyError, RecursionError, pa.ArrowException) as error:
        raise DamagedFolder(file, error) from error


def _table(folder: Path, table: str, limits: Mapping[str, range], layer: int) -> tuple[Path, pa.Table]:
    """One layer's file, and what it holds."""
    file = folder / table / f"layer-{layer:03}.parquet"
    names = _schema(table).names
    with _reading(file), pq.ParquetFile(file) as opened:
        there = [name for name in opened.schema_arrow.names if name in names]
        return file, _checked(opened.read(there), table, {**limits, "layer": range(layer, layer + 1)})


def _batches(
    folder: Path, table: str, make: Callable[[dict[str, Any]], T], limits: Mapping[str, range], layer: int | None = None
) -> Iterator[list[T]]:
    """What is made of the rows of a table's files, or of one layer's, some at a time, in the order they were written."""
    if layer is not None:
        limits = {**limits, "layer": range(layer, layer + 1)}
    place = _folder_of(folder, table)
    for file in sorted(place.glob("*.parquet" if layer is None else f"layer-{layer:03}.parquet")):
        with _reading(file), pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(AT_ONCE):
                rows = version_1.as_now(pa.Table.from_batches([batch]), table)
                yield [make(row) for row in _checked(rows, table, limits).to_pylist()]


def _folder_of(folder: Path, table: str) -> Path:
    """Where a table's files are, by the name that it has now or had in version 1."""
    old = folder / version_1.FOLDERS.get(table, table)
    return old if old.is_dir() else folder / table


def _card(run: Run, held: Sequence[str]) -> str:
    configs = "\n".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet" + ("\n  default: true" if name == "exemplars" else "")
        for name in held
    )
    subject = json.dumps(short_name(run.subject))
    return f"""---
pretty_name: {json.dumps("Neurons of " + short_name(run.subject))}
tags:
- interpretability
- neurons
configs:
{configs}
---

# Neurons of {subject}

Written by neuroexplain: {len(run.layers)} of {run.n_layers} layers, {run.kind} units (`{run.activation}`), from
{run.n_tokens:,} tokens. Each unit's strongest records ({run.top_k} at most) and {run.n_random} random ones, with one
activation a token; explanations, predictions and scores where there are any.

```python
from datasets import load_dataset
exemplars = load_dataset("FOLDER", "exemplars", split="train")
```

Records whose rank modulo 4 is 0 or 1 may be shown to an explainer; scores use those of rank 3 modulo 4. The text of the records
comes from the corpus that the run read, under that corpus's licence. `neuroexplain import parquet FOLDER` restores the run.
"""


class Parquet(Format):
    name = "parquet"
    about = "a Hugging Face data set: all of a run"
    holds_whole_runs = True

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_parquet(store, run, folder)

    def read(self, store: Store, folder: Path, options: ReadOptions) -> Generator[Progress]:
        return import_parquet(store, folder)


FORMAT = Parquet()
