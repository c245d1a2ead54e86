"""A run as a Hugging Face data set folder: Parquet files by table and layer, and a card. Import restores all of it.

One configuration a table (`load_dataset(FOLDER, "exemplars")`); run.json holds the run itself. Ids that join tables are those
of the database that was exported; importing gives new ones.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
    VocabularyArrays,
    VocabularyEntry,
)

VERSION = 1
TABLES = ("neurons", "exemplars", "explanations", "scores", "simulations", "segments", "vocabulary", "prompts")
READINGS = ("promoted_ids", "promoted_logits", "suppressed_ids", "suppressed_logits")
PLACES = {"segments": np.uint32, "starts": np.uint8, "documents": np.int32, "token_offsets": np.int32}
NOT_KEPT = {"id", "status", "started_at", "finished_at", "n_segments", "n_documents", "n_tokens"}


def export_parquet(store: Store, run: Run, folder: Path) -> Generator[Progress]:
    """Write a run, a layer at a time. The folder appears when it is whole."""
    with whole_folder(folder) as partial:
        for name in TABLES:
            (partial / name).mkdir()
        (partial / "run.json").write_text(json.dumps({"format": VERSION, **run_json(run)}, indent=1))
        entries = {entry.token_id: entry for entry in load_vocabulary(store, run.id)}
        _write(partial, "vocabulary", "all", [asdict(entry) for entry in entries.values()])
        for number, segments in enumerate(list_segments(store, run.id)):
            rows = [{"segment": s.segment, "token_ids": s.token_ids.tolist()} for s in segments]
            _write(partial, "segments", f"{number:05}", rows)
        prompts: set[str] = set()
        for done, layer in enumerate(run.layers, 1):
            name = f"layer-{layer:03}"
            found = load_collected_layer(store, run, layer)
            pq.write_table(_neurons_table(found, run.d_mlp), partial / "neurons" / f"{name}.parquet", compression="zstd")
            pq.write_table(
                _exemplars_table(store, run, found, entries), partial / "exemplars" / f"{name}.parquet", compression="zstd"
            )
            explanations = list_explanations(store, run.id, layer=layer)
            ids = [e.id for e in explanations if e.id is not None]
            simulations = list_simulations(store, ids)
            _write(partial, "explanations", name, [_flat(e) for e in explanations])
            _write(partial, "simulations", name, [_simulation_row(s) for s in simulations])
            scores = list_scores(store, ids)
            _write(partial, "scores", name, [_neuron(s.neuron) | {**asdict(s.score), **_scored_by(s)} for s in scores])
            sources = [e.provenance for e in explanations] + [s.provenance for s in simulations]
            prompts |= {p.prompt_sha256 for p in sources if p.prompt_sha256 is not None}
            yield Progress("exporting", done, len(run.layers), "layers")
        texts = [(sha256, *load_prompt(store, sha256)) for sha256 in sorted(prompts)]
        _write(partial, "prompts", "all", [{"sha256": sha256, "name": name, "text": text} for sha256, name, text in texts])
        held = [name for name in TABLES if any((partial / name).iterdir())]
        for name in set(TABLES) - set(held):
            (partial / name).rmdir()
        (partial / "README.md").write_text(_card(run, held), encoding="utf-8")


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
    save_vocabulary(store, run_id, (VocabularyEntry(**row) for row in _rows(folder, "vocabulary")))
    for row_batch in _batches(folder, "segments"):
        save_segments(store, run_id, [Segment(r["segment"], np.array(r["token_ids"], np.uint32)) for r in row_batch])
    for row in _rows(folder, "prompts"):
        save_prompt(store, row["name"], row["text"])
    layers, d_mlp = told["layers"], told["d_mlp"]
    new_ids: dict[int, int] = {}  # of explanations
    waiting = []
    for done, layer in enumerate(layers, 1):
        name = f"layer-{layer:03}"
        if count_layer_neurons(store, run_id, layer) < d_mlp:
            save_collected_layer(store, run_id, _read_layer(folder, layer, d_mlp))
        asked = [_explanation(row) for row in _rows(folder, "explanations", name)]
        stored = save_explanations(store, run_id, asked)
        new_ids |= {old.id: new.id for old, new in zip(asked, stored, strict=True) if old.id is not None and new.id is not None}
        scores: dict[tuple[int, str, str], list[Score]] = {}
        for row in _rows(folder, "scores", name):
            key = (row["explanation_id"], row["simulator"], row["simulator_model"])
            scores.setdefault(key, []).append(Score(**{f: row[f] for f in Score.__dataclass_fields__}))
        for row in _rows(folder, "simulations", name):
            made = _simulation(row)
            waiting.append((made, scores.get((made.explanation_id, made.simulator, made.provenance.model), [])))
        yield Progress("importing", done, len(layers), "layers")
    if waiting:
        save_simulations(store, run_id, [_with_new_ids(made, found, new_ids) for made, found in waiting])
    finish_run(store, run_id, **{name: told[name] for name in ("n_segments", "n_documents", "n_tokens")})


def _with_new_ids(made: Simulation, scores: Sequence[Score], new_ids: Mapping[int, int]) -> tuple[Simulation, list[Score]]:
    def new(old: int | None) -> int | None:
        return None if old is None else new_ids.get(old)

    moved = replace(made, explanation_id=new_ids[made.explanation_id], other_explanation_id=new(made.other_explanation_id))
    return moved, [replace(score, other_explanation_id=new(score.other_explanation_id)) for score in scores]


def _neuron(neuron: NeuronId) -> dict[str, int]:
    return {"layer": neuron.layer, "neuron": neuron.neuron}


def _scored_by(stored: Any) -> dict[str, Any]:
    return {name: getattr(stored, name) for name in ("explanation_id", "simulator", "simulator_model")}


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
    values = {name: row[name] for name in names}
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


def _exemplars_table(store: Store, run: Run, found: CollectedLayer, entries: Mapping[int, VocabularyEntry]) -> pa.Table:
    parts = []
    for kind, x in found.exemplars.items():
        neuron, rank = x.counts_mask().nonzero()
        if not len(neuron):
            continue
        segments, starts = x.segments[neuron, rank], x.starts[neuron, rank]
        ids = load_segment_ids(store, run.id, set(segments.tolist()))
        tokens = [ids[s][a : a + RECORD_LENGTH] for s, a in zip(segments.tolist(), starts.tolist(), strict=True)]
        flat = [entries[i].text if i in entries else "\ufffd" for row in tokens for i in row.tolist()]
        columns: dict[str, Any] = {"layer": np.full(len(neuron), found.layer, np.int32), "neuron": neuron.astype(np.int32)}
        columns |= {"kind": [kind] * len(neuron), "rank": rank.astype(np.int32), "activation": x.peaks[neuron, rank]}
        columns |= {name: getattr(x, name)[neuron, rank] for name in PLACES}
        columns["tokens"] = pa.FixedSizeListArray.from_arrays(
            pa.array(flat).dictionary_encode().cast(pa.string()), RECORD_LENGTH
        )
        columns["activations"] = pa.FixedSizeListArray.from_arrays(
            pa.array(x.activations[neuron, rank].reshape(-1)), RECORD_LENGTH
        )
        parts.append(pa.table(columns))
    return pa.concat_tables(parts) if parts else pa.table({"layer": pa.array([], pa.int32())})


def _read_layer(folder: Path, layer: int, d_mlp: int) -> CollectedLayer:
    neurons = _table(folder, "neurons", f"layer-{layer:03}")
    exemplars = _table(folder, "exemplars", f"layer-{layer:03}")
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


def _write(folder: Path, table: str, name: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        pq.write_table(pa.Table.from_pylist(rows), folder / table / f"{name}.parquet", compression="zstd")


def _table(folder: Path, table: str, name: str) -> Any:
    file = folder / table / f"{name}.parquet"
    try:
        return pq.read_table(file) if file.exists() else None
    except (OSError, pa.ArrowException) as error:
        raise NeuroexplainError(f"Cannot read {file}: {error}") from error


def _batches(folder: Path, table: str) -> Iterable[list[dict[str, Any]]]:
    for file in sorted((folder / table).glob("*.parquet")):
        found = _table(folder, table, file.stem)
        yield found.to_pylist()


def _rows(folder: Path, table: str, name: str = "all") -> list[dict[str, Any]]:
    found = _table(folder, table, name)
    return [] if found is None else found.to_pylist()


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
