"""Exports that others read, and the one that comes back."""

import csv
import gc
import gzip
import io
import json
import tracemalloc
from dataclasses import replace

import datasets
import numpy as np
import pytest

import neuroexplain as nx
from neuroexplain.errors import NeuroexplainError
from neuroexplain.exchange.jsonl import export_jsonl
from neuroexplain.exchange.parquet import export_parquet, import_parquet
from neuroexplain.pipeline.page import load_page
from neuroexplain.present import query_csv, show_json
from neuroexplain.store.engine import open_store
from neuroexplain.store.read import list_explained_ids, list_neuron_ids, load_run, query_explanations
from neuroexplain.store.write import (
    create_run,
    finish_run,
    save_collected_layer,
    save_explanations,
    save_segments,
    save_simulations,
    save_vocabulary,
)
from neuroexplain.types import (
    SCORE_KINDS,
    CollectedLayer,
    ExemplarArrays,
    Explanation,
    NeuronId,
    Provenance,
    Score,
    Segment,
    SimulatedRecord,
    Simulation,
    VocabularyEntry,
)
from tests.fakes import run_fields


@pytest.fixture(scope="module")
def store(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as opened:
        yield opened


def without_ids(value):
    """What show --json says, without ids, run and times."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("run", "id", "other_explanation_id")}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


def test_parquet_comes_back_as_it_was_and_loads_as_a_data_set(store, tmp_path, database):
    run = load_run(store)
    list(export_parquet(store, run, tmp_path / "out"))
    with open_store(database, create=True) as back:
        list(import_parquet(back, tmp_path / "out"))
        again = load_run(back)
        same = {"id": 0, "started_at": "", "finished_at": ""}
        assert replace(again, **same) == replace(run, **same)
        for neuron in list_neuron_ids(store, run.id):
            assert without_ids(show_json(load_page(back, again, neuron))) == without_ids(
                show_json(load_page(store, run, neuron))
            )
        token = nx.open(str(store.file)).query(peak_token="river")
        assert [r.neuron for r in token] == [r.neuron for r in nx.open(database).query(peak_token="river")]
    exemplars = datasets.load_dataset(str(tmp_path / "out"), "exemplars", split="train", cache_dir=str(tmp_path / "cache"))
    first = load_page(store, run, list_neuron_ids(store, run.id)[0]).neuron.exemplars[0]
    assert exemplars[0]["activations"] == first.activations.tolist()
    assert len(exemplars[0]["tokens"]) == 64
    scores = datasets.load_dataset(str(tmp_path / "out"), "scores", split="train", cache_dir=str(tmp_path / "cache"))
    assert {"correlation", "status", "reason"} <= set(scores.column_names)


def several_layers(where, n_layers):
    """A run of layers of 60 neurons, each with an explanation, 16 simulated records and three scores."""
    with open_store(where, create=True) as store:
        run_id = create_run(store, run_fields(n_layers, 60, top_k=2))
        save_vocabulary(store, run_id, [VocabularyEntry(i, f" {i}", False) for i in range(128)])
        save_segments(store, run_id, [Segment(n, np.arange(128, dtype=np.uint32)) for n in range(2)])
        places = {"starts": np.full((60, 2), 32, np.uint8), "documents": np.zeros((60, 2), np.int32)}
        places |= {"token_offsets": np.zeros((60, 2), np.int32), "segments": np.tile(np.arange(2, dtype=np.uint32), (60, 1))}
        values = {"peaks": np.ones((60, 2), np.float32), "activations": np.ones((60, 2, 64), np.float32)}
        top = ExemplarArrays(np.full(60, 2), **places, **values)
        by = Provenance("none", None, "m", None, None)
        for layer in range(n_layers):
            save_collected_layer(store, run_id, CollectedLayer(layer, {"top": top}, None, None))
            reason = "no answer" if layer else None  # a column that is empty in the first file
            asked = [Explanation(NeuronId(layer, n), "pairs", "ok", f"words {n}", by, reason=reason) for n in range(60)]
            asked = save_explanations(store, run_id, asked)
            records = tuple(SimulatedRecord("top", rank, 1, np.linspace(0, 1, 32, dtype=np.float32)) for rank in range(16))
            scores = [Score("report", kind, "ok", 0.5, 512, 16) for kind in SCORE_KINDS]
            made = [
                (Simulation(e.id, e.neuron, "lexical", "ok", records, by, other_explanation_id=other.id), scores)
                for e, other in zip(asked, [*asked[1:], asked[0]], strict=True)
            ]
            save_simulations(store, run_id, made)
        finish_run(store, run_id, n_segments=2, n_documents=1, n_tokens=256)


@pytest.fixture
def collecting_garbage():
    """Python's own thresholds: the command line, once imported, lets 100,000 objects wait."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_memory_does_not_grow_with_what_is_exported_or_imported(tmp_path, monkeypatch, collecting_garbage):
    monkeypatch.setattr("neuroexplain.exchange.parquet.AT_ONCE", 20)
    peaks = {}
    for place, n_layers in enumerate((12, 1, 12)):  # the first one imports modules and fills caches
        folder = tmp_path / str(place)
        folder.mkdir()
        several_layers(str(folder / "a.db"), n_layers)
        gc.collect()
        tracemalloc.start()
        with open_store(str(folder / "a.db"), read_only=True) as store:
            list(export_parquet(store, load_run(store), folder / "out"))
        with open_store(str(folder / "b.db"), create=True) as back:
            list(import_parquet(back, folder / "out"))
        peaks[n_layers] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[12] < 1.7 * peaks[1]  # twelve times the data
    with open_store(str(folder / "b.db"), read_only=True) as back:
        page = load_page(back, load_run(back), NeuronId(11, 59))
    assert len(page.simulations[0].records) == 16
    assert [s.score.kind for s in page.scores] == sorted(SCORE_KINDS)
    assert page.simulations[0].other_explanation_id == page.explanations[0].id - 59
    told = datasets.load_dataset(str(folder / "out"), "explanations", split="train", cache_dir=str(tmp_path / "cache"))
    assert set(told["reason"]) == {None, "no answer"}


def test_an_export_that_breaks_off_leaves_no_folder(store, tmp_path):
    broken = export_parquet(store, load_run(store), tmp_path / "out")
    next(broken)
    broken.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(NeuroexplainError, match="exists already"):
        next(export_parquet(store, load_run(store), tmp_path / "out"))
    with open_store(str(tmp_path / "y.db"), create=True) as back, pytest.raises(NeuroexplainError, match=r"no run\.json"):
        list(import_parquet(back, tmp_path / "out"))


def test_jsonl_is_what_show_prints(store, tmp_path):
    run = load_run(store)
    neurons = list_explained_ids(store, run.id)
    list(export_jsonl(store, run, neurons, tmp_path / "out"))
    lines = gzip.decompress((tmp_path / "out" / "neurons.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [show_json(load_page(store, run, n)) for n in neurons]


def test_a_cell_that_a_spreadsheet_would_run_is_text(store):
    rows = query_explanations(store, load_run(store).id, text="hyperlink")
    cell = next(csv.DictReader(io.StringIO(query_csv(rows))))["explanation"]
    assert cell.startswith("'=HYPERLINK")


def test_python_gives_objects_frames_and_pictures(hostile):
    with nx.open(str(hostile / "x.db")) as db:
        found = db.query(min_score=-1.0, limit=5)
        frame = found.to_frame()
        assert list(frame["correlation"]) == [row.correlation for row in found]
        reading = db.neuron(0, 1)
        assert len(reading.to_frame()) == len(reading.exemplars)
        assert len(reading.tokens(reading.exemplars[0])) == 64
        for html in (reading._repr_html_(), found._repr_html_()):
            assert "<script>" not in html
            assert "<img" not in html
        assert "neuron 0:1" in repr(reading)
