"""Records for others: JSON lines, CSV for spreadsheets, and objects and frames in Python."""

import csv
import gzip
import io
import json

import neuroexplain as nx
from neuroexplain.as_json import query_csv, unit_json
from neuroexplain.formats.jsonl import export_jsonl
from neuroexplain.lookup import load_page
from neuroexplain.store.runs import load_run
from neuroexplain.store.search import query_explanations
from neuroexplain.store.units import list_explained_ids


def test_jsonl_is_what_show_prints(store, tmp_path):
    run = load_run(store)
    neurons = list_explained_ids(store, run.id)
    list(export_jsonl(store, run, neurons, tmp_path / "out"))
    lines = gzip.decompress((tmp_path / "out" / "neurons.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [unit_json(load_page(store, run, n)) for n in neurons]


def test_a_cell_that_a_spreadsheet_would_run_is_text(store):
    rows = query_explanations(store, load_run(store), text="hyperlink")
    cell = next(csv.DictReader(io.StringIO(query_csv(rows))))["explanation"]
    assert cell.startswith("'=HYPERLINK")


def test_python_gives_objects_frames_and_pictures(hostile):
    with nx.open(str(hostile / "x.db")) as db:
        rows = db.query(min_score=-1.0, limit=5)
        frame = rows.to_frame()
        assert list(frame["correlation"]) == [row.correlation for row in rows]
        assert list(db.query("nobody wrote this").to_frame().columns) == list(frame.columns)
        reading = db.neuron(0, 1)
        assert len(reading.to_frame()) == len(reading.exemplars)
        assert len(reading.tokens(reading.exemplars[0])) == 64
        for html in (reading._repr_html_(), rows._repr_html_()):
            assert "<script>" not in html
            assert "<img" not in html
        assert "mlp unit 0:1" in repr(reading)
