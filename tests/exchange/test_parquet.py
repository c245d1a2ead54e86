"""Exports that others read, and the one that comes back."""

import csv
import gzip
import io
import json
from dataclasses import replace

import datasets
import pytest

import neuroexplain as nx
from neuroexplain.errors import NeuroexplainError
from neuroexplain.exchange.jsonl import export_jsonl
from neuroexplain.exchange.parquet import export_parquet, import_parquet
from neuroexplain.pipeline.page import load_page
from neuroexplain.present import query_csv, show_json
from neuroexplain.store.engine import open_store
from neuroexplain.store.read import list_explained_ids, list_neuron_ids, load_run, query_explanations


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
