"""A run as a Hugging Face data set folder: Parquet files by table and layer, and a card. Import restores all of it.

One configuration a table (`load_dataset(FOLDER, "exemplars")`); run.json holds the run itself. Ids that join tables are those
of the database that was exported; importing gives new ones.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neuroexplain.errors import NeuroexplainError
from neuroexplain.exchange.whole import whole_folder
from neuroexplain.pipeline.progress import Progress
from neuroexplain.present import run_json, short_name
from neuroexplain.store.engine import Store
from neuroexplain.store.read import (
    count_layer_neurons,
    list_explanations,
    list_runs,
    list_scores,
    list_segments,
    list_simulations,
    load_collected_layer,
    load_prompt,
    load_segment_ids,
    load_vocabulary,
)
from neuroexplain.store.write import (
    create_run,
    finish_run,
    save_collected_layer,
    save_explanations,
    save_prompt,
    save_segments,
    save_simulations,
    save_vocabulary,
)
from neuroexplain.types import (
    KINDS,
    RECORD_LENGTH,
    CollectedLayer,
    ExemplarArrays,
    Explanation,
    Kind,
    NeuronId,
    Provenance,
    Run,
    Score,
    Segment,
    SimulatedRecord,
    Simulation,
    Stats,
    StatsArrays,
    StoredScore,
    VocabularyArrays,
    VocabularyEntry,
)

VERSION = 1
TABLES = ("neurons", "exemplars", "explanations", "scores", "simulations", "segments", "vocabulary", "prompts")
READINGS = ("promoted_ids", "promoted_logits", "suppressed_ids", "suppressed_logits")
PLACES = {"segments": np.uint32, "starts": np.uint8, "documents": np.int32, "token_offsets": np.int32}
AT_ONCE = 500  # rows of a table that are in memory
SCALARS: dict[Any, Any] = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
SCALARS |= {tuple[int, ...]: pa.list_(pa.int64()), tuple[str, ...]: pa.list_(pa.string())}
RECORDS = pa.list_(
    pa.struct(
        [("kind", pa.string()), ("rank", pa.int64()), ("first", pa.int64())]
        + [(name, pa.list_(pa.float32())) for name in ("expected_levels", "digit_mass", "other_levels")]
    )
)
NOT_KEPT = {"id", "status", "started_at", "finished_at", "n_segments", "n_documents", "n_tokens"}


def export_parquet(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run, a layer at a time. The folder appears when it is whole."""
    with whole_folder(folder) as partial:
        for name in TABLES:
            (partial / name).mkdir()
        (partial / "run.json").write_text(json.dumps({"format": VERSION, **run_json(run)}, indent=1))
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
                ("neurons", _neurons_table(found, run.d_mlp)),
                ("exemplars", _exemplars_table(store, run, found, texts)),
            ):
                pq.write_table(made, partial / table / f"{name}.parquet", compression="zstd")
            explanations = list_explanations(store, run.id, layer=layer)
            _write(partial, "explanations", name, map(_flat, explanations))
            prompts |= {e.provenance.prompt_sha256 for e in explanations}
            ids = [e.id for e in explanations if e.id is not None]
            _write(partial, "simulations", name, _simulation_rows(store, ids, prompts))
            _write(partial, "scores", name, (_score_row(one) for some in _some(ids) for one in list_scores(store, some)))
            yield Progress("exporting", done, len(run.layers), "layers")
        told = ((sha256, *load_prompt(store, sha256)) for sha256 in sorted(filter(None, prompts)))
        _write(partial, "prompts", "all", ({"sha256": sha256, "name": name, "text": text} for sha256, name, text in told))
        held = [name for name in TABLES if any((partial / name).iterdir())]
        for name in set(TABLES) - set(held):
            (partial / name).rmdir()
        (partial / "README.md").write_text(_card(run, held), encoding="utf-8")


def _simulation_rows(store: Store, explanation_ids: Sequence[int], prompts: set[str | None]) -> Iterator[dict[str, Any]]:
    """The simulations of explanations, some at a time; their prompts are added to `prompts`."""
    for some in _some(explanation_ids):
        for one in list_simulations(store, some):
            prompts.add(one.provenance.prompt_sha256)
            yield _simulation_row(one)


def import_parquet(store: Store, folder: Path) -> Generator[Progress]:
    """Store what export_parquet wrote as a finished run; an import that was cut off goes on with the layers that are missing.

    Raises NeuroexplainError where the folder is not one of these.
    """
    try:
        told = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError) as error:
        raise NeuroexplainError(f"{folder} has no run.json that can be read: it is no export of ours ({error}).") from error
    if told.pop("format", None) != VERSION:
        raise NeuroexplainError(f"{folder} was written in another version of this format; {VERSION} is read.")
    fields = {name: value for name, value in told.items() if name in Run.__dataclass_fields__ and name not in NOT_KEPT}
    run_id = next((r.id for r in list_runs(store) if r.status == "running" and r.config == fields["config"]), None)
    if run_id is None:
        run_id = create_run(store, fields)
    with store.much_writing():
        save_vocabulary(store, run_id, (VocabularyEntry(**row) for row in _rows(folder, "vocabulary")))
        for row_batch in _batches(folder, "segments"):
            save_segments(store, run_id, [Segment(r["segment"], np.array(r["token_ids"], np.uint32)) for r in row_batch])
        for row in _rows(folder, "prompts"):
            save_prompt(store, row["name"], row["text"])
        layers, d_mlp = told["layers"], told["d_mlp"]
        new_ids = _NewIds()
        for done, layer in enumerate(layers, 1):
            name = f"layer-{layer:03}"
            if count_layer_neurons(store, run_id, layer) < d_mlp:
                save_collected_layer(store, run_id, _read_layer(folder, layer, d_mlp))
            for rows in _batches(folder, "explanations", name):
                asked = [_explanation(row) for row in rows]
                new_ids.add(asked, save_explanations(store, run_id, asked))
            yield Progress("importing", done, len(layers), "layers")
        for done, layer in enumerate(layers, 1):  # a simulation may name an explanation of any layer
            _import_simulations(store, run_id, folder, f"layer-{layer:03}", new_ids)
            yield Progress("importing scores", done, len(layers), "layers")
    finish_run(store, run_id, **{name: told[name] for name in ("n_segments", "n_documents", "n_tokens")})


def _import_simulations(store: Store, run_id: int, folder: Path, name: str, new_ids: _NewIds) -> None:
    """One layer's simulations with their scores. Both files are in the order of explanations and are read side by side."""
    by_explanation = groupby(
        (row for rows in _batches(folder, "scores", name) for row in rows), key=lambda row: row["explanation_id"]
    )
    at, own = next(by_explanation, (None, iter(())))
    scores: dict[tuple[str, str], list[Score]] = {}
    held: int | None = None  # whose scores these are
    for rows in _batches(folder, "simulations", name):
        made = []
        for simulation in map(_simulation, rows):
            if simulation.explanation_id != held:
                held, scores = simulation.explanation_id, {}
                while at is not None and at < held:
                    at, own = next(by_explanation, (None, iter(())))
                if at == held:
                    for row in own:
                        score = Score(**{f: row[f] for f in Score.__dataclass_fields__})
                        scores.setdefault((row["simulator"], row["simulator_model"]), []).append(score)
                    at, own = next(by_explanation, (None, iter(())))
            found = scores.get((simulation.simulator, simulation.provenance.model), [])
            made.append(_with_new_ids(simulation, found, new_ids))
        save_simulations(store, run_id, made)


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


def _with_new_ids(made: Simulation, scores: Sequence[Score], new_ids: _NewIds) -> tuple[Simulation, list[Score]]:
    own = new_ids.find(made.explanation_id)
    if own is None:
        raise NeuroexplainError(
            f"A simulation of {made.neuron} belongs to explanation {made.explanation_id}, which is missing."
        )
    moved = replace(made, explanation_id=own, other_explanation_id=new_ids.find(made.other_explanation_id))
    return moved, [replace(score, other_explanation_id=new_ids.find(score.other_explanation_id)) for score in scores]


def _some(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ids in ascending order, some at a time: so are the rows that belong to them."""
    ids = sorted(ids)
    return (ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE))


def _neuron(neuron: NeuronId) -> dict[str, int]:
    return {"layer": neuron.layer, "neuron": neuron.neuron}


def _score_row(stored: StoredScore) -> dict[str, Any]:
    whose = {name: getattr(stored, name) for name in ("explanation_id", "simulator", "simulator_model")}
    return _neuron(stored.neuron) | asdict(stored.score) | whose


def _flat(one: Any) -> dict[str, Any]:
    row = {name: getattr(one, name) for name in one.__dataclass_fields__ if name not in ("neuron", "provenance", "records")}
    provenance = asdict(one.provenance) | {"sampling": json.dumps(dict(one.provenance.sampling))}
    return _neuron(one.neuron) | row | provenance


def _simulation_row(simulation: Simulation) -> dict[str, Any]:
    def listed(values: Any) -> list[float | None] | None:
        return None if values is None else [None if np.isnan(v) else float(v) for v in values]

    names = ("expected_levels", "digit_mass", "other_levels")
    records = [
        {"kind": r.kind, "rank": r.rank, "first": r.first, **{name: listed(getattr(r, name)) for name in names}}
        for r in simulation.records
    ]
    return _flat(simulation) | {"records": records}


def _provenance(row: Mapping[str, Any]) -> Provenance:
    values = {name: row[name] for name in Provenance.__dataclass_fields__}
    return Provenance(**(values | {"sampling": json.loads(values["sampling"])}))


def _explanation(row: Mapping[str, Any]) -> Explanation:
    names = set(Explanation.__dataclass_fields__) - {"neuron", "provenance"}
    values: dict[str, Any] = {name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names}
    return Explanation(neuron=NeuronId(row["layer"], row["neuron"]), provenance=_provenance(row), **values)


def _simulation(row: Mapping[str, Any]) -> Simulation:
    def array(values: Sequence[float | None] | None) -> Any:
        return None if values is None else np.array([np.nan if v is None else v for v in values], np.float32)

    records = tuple(
        SimulatedRecord(
            r["kind"], r["rank"], r["first"], array(r["expected_levels"]), array(r["digit_mass"]), array(r["other_levels"])
        )
        for r in row["records"] or ()
    )
    names = set(Simulation.__dataclass_fields__) - {"neuron", "provenance", "records"}
    values = {name: row[name] for name in names}
    return Simulation(neuron=NeuronId(row["layer"], row["neuron"]), provenance=_provenance(row), records=records, **values)


def _neurons_table(found: CollectedLayer, d_mlp: int) -> pa.Table:
    columns: dict[str, Any] = {"layer": np.full(d_mlp, found.layer, np.int32), "neuron": np.arange(d_mlp, dtype=np.int32)}
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


def _read_layer(folder: Path, layer: int, d_mlp: int) -> CollectedLayer:
    neurons = _table(folder, "neurons", f"layer-{layer:03}")
    needed = ["neuron", "kind", "rank", "activation", "activations", *PLACES]
    exemplars = _table(folder, "exemplars", f"layer-{layer:03}", needed)
    if neurons is None or exemplars is None or neurons.num_rows != d_mlp:
        raise NeuroexplainError(f"{folder} lacks the neurons or exemplars of layer {layer}, or some of them.")
    columns = {name: neurons[name].to_numpy() for name in neurons.column_names if name in Stats.__dataclass_fields__}
    readings = {name: np.stack(neurons[name].to_numpy()) for name in READINGS if name in neurons.column_names}
    kinds: dict[Kind, ExemplarArrays] = {}
    if exemplars.num_rows:
        all_kinds = np.array(exemplars["kind"].to_pylist())
        for kind in KINDS:
            rows = exemplars.filter(pa.array(all_kinds == kind))
            if rows.num_rows:
                kinds[kind] = _arrays(rows, d_mlp)
    return CollectedLayer(
        layer, kinds, StatsArrays(**columns) if columns else None, VocabularyArrays(**readings) if readings else None
    )


def _arrays(rows: pa.Table, d_mlp: int) -> ExemplarArrays:
    neuron, rank = rows["neuron"].to_numpy(), rows["rank"].to_numpy()
    k = int(rank.max()) + 1
    placed: dict[str, Any] = {}
    for name, dtype in PLACES.items():
        placed[name] = np.full((d_mlp, k), -1 if name == "documents" else 0, dtype)
        placed[name][neuron, rank] = rows[name].to_numpy()
    peaks, activations = np.zeros((d_mlp, k), np.float32), np.zeros((d_mlp, k, RECORD_LENGTH), np.float32)
    peaks[neuron, rank] = rows["activation"].to_numpy()
    values = rows["activations"].combine_chunks().flatten().to_numpy()
    activations[neuron, rank] = values.reshape(-1, RECORD_LENGTH)
    return ExemplarArrays(np.bincount(neuron, minlength=d_mlp), **placed, peaks=peaks, activations=activations)


def _schema(table: str) -> pa.Schema:
    """A table's columns: the same in every file, also where all values of one are missing."""
    neuron = [("layer", pa.int64()), ("neuron", pa.int64())]
    scored = [("explanation_id", pa.int64()), ("simulator", pa.string()), ("simulator_model", pa.string())]
    columns: dict[str, list[tuple[str, Any]]] = {
        "vocabulary": _columns(VocabularyEntry),
        "segments": [("segment", pa.int64()), ("token_ids", pa.list_(pa.int64()))],
        "prompts": [("sha256", pa.string()), ("name", pa.string()), ("text", pa.string())],
        "explanations": [*neuron, *_columns(Explanation), *_columns(Provenance)],
        "simulations": [*neuron, *_columns(Simulation), *_columns(Provenance), ("records", RECORDS)],
        "scores": [*neuron, *_columns(Score), *scored],
    }
    return pa.schema(columns[table])


def _columns(kind: type) -> list[tuple[str, Any]]:
    """The fields of a type from types.py as columns; mappings are JSON; what has parts of its own is left out."""
    found = []
    for name, hint in get_type_hints(kind).items():
        inner = next((one for one in get_args(hint) if one in SCALARS), hint)  # of `X | None`
        if get_origin(hint) is Literal or get_origin(hint) is Mapping:
            inner = str
        if inner in SCALARS and name not in ("neuron", "records"):
            found.append((name, SCALARS[inner]))
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


def _table(folder: Path, table: str, name: str, columns: list[str] | None = None) -> Any:
    file = folder / table / f"{name}.parquet"
    try:
        return pq.read_table(file, columns=columns) if file.exists() else None
    except (OSError, pa.ArrowException) as error:
        raise NeuroexplainError(f"Cannot read {file}: {error}") from error


def _batches(folder: Path, table: str, name: str = "*") -> Iterator[list[dict[str, Any]]]:
    """The rows of a table's files, some at a time, in the order they were written."""
    for file in sorted((folder / table).glob(f"{name}.parquet")):
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(AT_ONCE):
                    yield batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise NeuroexplainError(f"Cannot read {file}: {error}") from error


def _rows(folder: Path, table: str) -> Iterator[dict[str, Any]]:
    return (row for batch in _batches(folder, table) for row in batch)


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

Written by neuroexplain: {len(run.layers)} of {run.n_layers} layers, {run.d_mlp:,} MLP neurons each (`{run.activation}`), from
{run.n_tokens:,} tokens. Each neuron's strongest records ({run.top_k} at most) and {run.n_random} random ones, with one
activation a token; explanations, simulations and scores where there are any.

```python
from datasets import load_dataset
exemplars = load_dataset("FOLDER", "exemplars", split="train")
```

Records whose rank modulo 4 is 0 or 1 may be shown to an explainer; scores use those of rank 3 modulo 4. The text of the records
comes from the corpus that the run read, under that corpus's licence. `neuroexplain import parquet FOLDER` restores the run.
"""
