"""Exports that others read, and the one that comes back."""

import csv
import gc
import gzip
import io
import json
import shutil
import tracemalloc
from dataclasses import asdict, replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import neuroexplain as nx
from neuroexplain.arrays import CollectedLayer, ExemplarArrays
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import (
    SUBSETS,
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    Segment,
    VocabularyEntry,
)
from neuroexplain.explaining.score import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.jsonl import export_jsonl
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.formatting import query_csv, show_json
from neuroexplain.lookup import load_page
from neuroexplain.runs import Run
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.save_collected import (
    create_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.save_explained import save_explanations, save_predictions
from neuroexplain.store.search import query_explanations
from neuroexplain.store.units import list_explained_ids, list_unit_ids
from neuroexplain.units import Source, UnitId
from tests.fakes import run_fields


@pytest.fixture(scope="module")
def store(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as opened:
        yield opened


def without_ids(value):
    """What show --json says, without ids, run and times."""
    if isinstance(value, dict):
        return {
            k: without_ids(v) for k, v in value.items() if k not in ("run", "id", "control_explanation_id")
        }
    return [without_ids(one) for one in value] if isinstance(value, list) else value


def tell(folder, *without, **changed):
    """Change what run.json says."""
    told = json.loads((folder / "run.json").read_text()) | changed
    (folder / "run.json").write_text(
        json.dumps({name: value for name, value in told.items() if name not in without})
    )


def change(folder, table, damage):
    """Damage the table's first file."""
    (file, *_) = sorted((folder / table).glob("*.parquet"))
    rows = pq.read_table(file)
    if callable(damage):
        rows = damage(rows)
    elif isinstance(damage, dict):
        for name, value in damage.items():
            kind = pa.string() if name == "created_at" else rows.schema.field(name).type
            kind = pa.list_(pa.float32()) if name == "activations" else kind
            column = pa.array(
                [value, *rows[name].to_pylist()[1:]], kind if not isinstance(value, int) else pa.int64()
            )
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        return
    else:
        n = rows.num_rows
        taken = {
            "half": range(n // 2),
            "none": range(0),
            "backwards": range(n)[::-1],
            "twice": [*range(n), *range(n)],
        }
        rows = (
            rows.take(pa.array(taken[damage], pa.int64())) if damage in taken else rows.drop_columns([damage])
        )
    pq.write_table(rows, file)


def explain_by_hand(store, run, text):
    mine = Provenance("none", None, "human", None, None)
    save_explanations(store, run.id, [Explanation(UnitId(0, 0), "human", "ok", text, mine)])


def test_parquet_comes_back_as_it_was_and_loads_as_a_data_set(store, tmp_path, database):
    run = load_run(store)
    list(export_parquet(store, run, tmp_path / "out"))
    with open_store(database, create=True) as back:
        list(import_parquet(back, tmp_path / "out"))
        again = load_run(back)
        same = {"id": 0, "started_at": "", "finished_at": ""}
        assert replace(again, **same) == replace(run, **same)
        for neuron in list_unit_ids(store, run.id):
            assert without_ids(show_json(load_page(back, again, neuron))) == without_ids(
                show_json(load_page(store, run, neuron))
            )
        assert list(verify_run(back, again)) == []
        token = nx.open(str(store.file)).query(peak_token="river")
        assert [r.unit for r in token] == [r.unit for r in nx.open(database).query(peak_token="river")]
    exemplars = datasets.load_dataset(
        str(tmp_path / "out"), "exemplars", split="train", cache_dir=str(tmp_path / "cache")
    )
    first = load_page(store, run, list_unit_ids(store, run.id)[0]).unit.exemplars[0]
    assert exemplars[0]["activations"] == first.activations.tolist()
    assert len(exemplars[0]["tokens"]) == 64
    scores = datasets.load_dataset(
        str(tmp_path / "out"), "scores", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert {"metric", "value", "status", "reason"} <= set(scores.column_names)


def several_layers(where, n_layers):
    """A run of layers of 60 neurons, each with an explanation, 16 simulated records and three scores."""
    with open_store(where, create=True) as store:
        run_id = create_run(store, run_fields(n_layers, 60, top_k=2))
        save_vocabulary(store, run_id, [VocabularyEntry(i, f" {i}", False) for i in range(128)])
        save_segments(store, run_id, [Segment(n, np.arange(128, dtype=np.uint32)) for n in range(2)])
        places = {"starts": np.full((60, 2), 32, np.uint8), "documents": np.zeros((60, 2), np.int32)}
        places |= {
            "token_offsets": np.zeros((60, 2), np.int32),
            "segments": np.tile(np.arange(2, dtype=np.uint32), (60, 1)),
        }
        values = {"peaks": np.ones((60, 2), np.float32), "activations": np.ones((60, 2, 64), np.float32)}
        top = ExemplarArrays(np.full(60, 2), **places, **values)
        by = Provenance("none", None, "m", None, None)
        for layer in range(n_layers):
            save_collected_layer(store, run_id, CollectedLayer(layer, {"top": top}, None, None))
            reason = "no answer" if layer else None  # a column that is empty in the first file
            asked = [
                Explanation(UnitId(layer, n), "pairs", "ok", f"words {n}", by, reason=reason)
                for n in range(60)
            ]
            asked = save_explanations(store, run_id, asked)
            records = tuple(
                PredictedRecord("top", rank, 1, np.linspace(0, 1, 32, dtype=np.float32)) for rank in range(16)
            )
            scores = [
                Score("report", kind, "correlation", "ok", 0.5, 512, 16) for kind in SUBSETS["positive"]
            ]
            made = [
                (
                    Prediction(e.id, e.unit, "lexical", "ok", records, by, control_explanation_id=other.id),
                    scores,
                )
                for e, other in zip(asked, [*asked[1:], asked[0]], strict=True)
            ]
            save_predictions(store, run_id, made)
        finish_run(store, run_id, n_segments=2, n_documents=1, n_tokens=256)


@pytest.fixture
def collecting_garbage():
    """Python's own thresholds: the command line, once imported, lets 100,000 objects wait."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_memory_does_not_grow_with_what_is_exported_or_imported(tmp_path, monkeypatch, collecting_garbage):
    monkeypatch.setattr("neuroexplain.formats._parquet_tables.AT_ONCE", 20)
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
        page = load_page(back, load_run(back), UnitId(11, 59))
    assert len(page.predictions[0].records) == 16
    assert [s.score.subset for s in page.scores] == sorted(SUBSETS["positive"])
    assert page.predictions[0].control_explanation_id == page.explanations[0].id - 59
    told = datasets.load_dataset(
        str(folder / "out"), "explanations", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(told["reason"]) == {None, "no answer"}


def test_an_export_that_breaks_off_leaves_no_folder(store, tmp_path):
    broken = export_parquet(store, load_run(store), tmp_path / "out")
    next(broken)
    broken.close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(NeuroexplainError, match="exists already"):
        next(export_parquet(store, load_run(store), tmp_path / "out"))
    with (
        open_store(str(tmp_path / "y.db"), create=True) as back,
        pytest.raises(NeuroexplainError, match=r"no run\.json"),
    ):
        list(import_parquet(back, tmp_path / "out"))


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    list(export_parquet(store, load_run(store), folder))
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of an export, to be damaged."""
    shutil.copytree(exported, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def back(tmp_path):
    with open_store(str(tmp_path / "back.db"), create=True) as opened:
        yield opened


def test_what_is_imported_again_is_left_as_it_is(back, folder):
    list(import_parquet(back, folder))
    explain_by_hand(back, load_run(back), "mine")
    (told,) = import_parquet(back, folder)
    assert told.note == f"Run 1 of {back.name} is this run already: nothing to do."
    assert len(list_runs(back)) == 1
    assert "mine" in {e.text for e in list_explanations(back, 1)}


def test_the_run_it_was_exported_from_is_not_imported_beside_itself(store, folder):
    assert "nothing to do" in next(import_parquet(store, folder)).note


def test_an_import_that_is_cut_off_goes_on(back, folder, store):
    cut = import_parquet(back, folder)
    next(one for one in cut if one.stage == "importing")
    cut.close()
    assert [run.status for run in list_runs(back)] == ["running"]
    list(import_parquet(back, folder))
    (run,) = list_runs(back)
    for neuron in list_unit_ids(store, 1):
        mine, its = (show_json(load_page(a, r, neuron)) for a, r in ((back, run), (store, load_run(store))))
        assert without_ids(mine) == without_ids(its)


def test_times_are_kept(back, folder):
    change(folder, "explanations", {"created_at": "2024-01-01T00:00:00+00:00"})
    change(folder, "predictions", {"created_at": "2024-02-02T00:00:00+00:00"})
    tell(folder, "files", started_at="2023-12-31T00:00:00+00:00", finished_at="2023-12-31T09:00:00+00:00")
    list(import_parquet(back, folder))
    run, explanations = load_run(back), list_explanations(back, 1)
    assert (run.started_at[:10], run.finished_at[11:13]) == ("2023-12-31", "09")
    assert explanations[0].provenance.created_at == "2024-01-01T00:00:00+00:00"
    made = list_predictions(back, [e.id for e in explanations])
    assert made[0].provenance.created_at == "2024-02-02T00:00:00+00:00"


def test_an_export_of_an_earlier_version_is_imported(back, folder):
    """Without hashes, and without the times of explanations and simulations."""
    tell(folder, "files")
    for table in ("explanations", "predictions"):
        change(folder, table, lambda rows: rows.drop_columns(["created_at"]))
    list(import_parquet(back, folder))
    assert list_explanations(back, 1)[0].provenance.created_at is not None


SOURCE = asdict(Source(0, "mlp", None, "output", 24, "float32"))
TABLES = (
    "vocabulary",
    "segments",
    "neurons",
    "exemplars",
    "explanations",
    "predictions",
    "scores",
    "prompts",
)


@pytest.mark.parametrize("table", TABLES)
def test_a_file_that_is_missing_or_has_changed_is_named(back, folder, table):
    (first, *_) = sorted((folder / table).glob("*.parquet"))
    whole = first.read_bytes()
    for damage, said in (
        (lambda: first.write_bytes(whole[:-9] + b"x" + whole[-8:]), "changed since it was exported"),
        (lambda: first.rename(first.with_name("zzz.parquet")), "is missing"),
        (lambda: first.write_bytes(whole), r"zzz\.parquet is damaged: it does not belong"),
    ):
        damage()
        with pytest.raises(NeuroexplainError, match=f"{table}/.* is damaged: .*{said}|{said}"):
            list(import_parquet(back, folder))
        assert list_runs(back) == []


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {name: None}
            for name in Run.__dataclass_fields__
            if name not in ("subject_revision", "finished_at")
        ),
        *Run.__dataclass_fields__,
        *({"layers": layers} for layers in ("abc", [], [0, 0], [0, 1, 2], [-1], [[0]], [True])),
        *({"sources": [{**SOURCE, "width": width}]} for width in (-1, 0, "x", 1.5, 1000, 1 << 62, 1 << 99)),
        *(
            {"sources": sources}
            for sources in ("x", [], [1], [SOURCE, SOURCE], [{**SOURCE, "side": "up"}], [{"layer": 0}])
        ),
        *({"format": 1, "d_mlp": d_mlp} for d_mlp in (-1, 0, "x", 1.5, 1000, 1 << 62, 1 << 99)),
        *(
            {"n_layers": 1 << 62, "layers": [5]},
            {"subject": ["x"]},
            {"dtype": "int4"},
            {"activation": ""},
            {"files": 3},
        ),
        *({"config": {"segment_stride": stride}} for stride in ("x", 0, None)),
    ],
    ids=repr,
)
def test_a_run_json_that_says_something_impossible_is_refused(back, folder, changed):
    if isinstance(changed, str):
        tell(folder, changed)  # is left out
    else:
        tell(folder, **changed)
    with pytest.raises(NeuroexplainError, match="is damaged: "):
        list(import_parquet(back, folder))
    assert list_runs(back) == []


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "null",
        "[" * 100_000,
        "{",
        "",
        '{"format": 1, "subject": "\\ud800"}',
        '{"format": 1, "seed": NaN}',
        "\xff",
    ],
)
def test_a_run_json_of_something_else_is_refused(back, folder, text):
    (folder / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(NeuroexplainError, match=r"run\.json|another version"):
        list(import_parquet(back, folder))


DAMAGES = (
    ("vocabulary", [{"text": None}, {"token_id": 1 << 24}, {"token_id": 7}, "text", "none", "gone"]),
    (
        "segments",
        [{"token_ids": [1, 2]}, {"token_ids": [-5] * 128}, {"token_ids": [None] * 128}, {"token_ids": None}],
    ),
    ("segments", [{"token_ids": [5] * 64}, {"segment": -1}, "token_ids", "gone", "cut"]),
    (
        "neurons",
        [
            {"neuron": 3},
            {"mean": None},
            {"promoted_ids": [1]},
            {"promoted_ids": [None] * 10},
            "mean",
            "promoted_ids",
        ],
    ),
    ("neurons", ["half", "gone", "backwards"]),
    (
        "exemplars",
        [
            {"neuron": 9999},
            {"neuron": -1},
            {"rank": -3},
            {"rank": 10**6},
            {"rank": 1},
            {"segments": 4_000_000},
        ],
    ),
    (
        "exemplars",
        [{"starts": 250}, {"kind": "weird"}, {"kind": None}, {"layer": 1}, {"activation": float("nan")}],
    ),
    ("exemplars", [{"activation": 1e39}, {"activations": [1.0] * 63 + [None]}, "activation", "activations"]),
    ("exemplars", ["none", "gone", "cut"]),
    (
        "explanations",
        [
            {"layer": 99},
            {"neuron": 9999},
            {"sampling": "{bad"},
            {"sampling": "[]"},
            {"sampling": "[" * 100_000},
        ],
    ),
    (
        "explanations",
        [
            {"text": None},
            {"explainer": None},
            {"prompt_sha256": "no"},
            {"status": None},
            "status",
            "explainer",
        ],
    ),
    ("explanations", ["half", "gone", "cut"]),
    (
        "predictions",
        [
            {"layer": 99},
            {"records": None},
            {"records": [None]},
            {"explanation_id": 9999},
            {"prompt_sha256": "no"},
        ],
    ),
    ("predictions", ["records", "half", "gone", "backwards", "cut"]),
    (
        "scores",
        [{"layer": 99}, {"neuron": -1}, {"explanation_id": 9999}, {"scorer": "other"}, {"status": None}],
    ),
    ("scores", ["value", "twice", "backwards", "cut"]),
    ("prompts", [{"text": "other"}, "text", "gone"]),
)


@pytest.mark.parametrize(
    ("table", "damage"),
    [(table, one) for table, some in DAMAGES for one in some],
    ids=lambda one: str(one)[:40],
)
def test_damage_that_no_hash_tells_of_is_found_and_nothing_is_left(back, folder, table, damage):
    """As in an export of an earlier version: a value of the first row, a column or rows that are missing."""
    tell(folder, "files")
    if damage == "gone":
        shutil.rmtree(folder / table)
    else:
        change(folder, table, damage)
    with pytest.raises(NeuroexplainError, match="is damaged: "):
        list(import_parquet(back, folder))
    assert list_runs(back) == []


@pytest.mark.parametrize(
    "changed",
    [
        *({"kind": kind} for kind in ("weird", None)),
        *({"rank": rank} for rank in (-1, 256, None)),
        *({"first": first} for first in (-1, 33, None)),
        *({"values": levels} for levels in (None, [1.0], [1e9] * 32)),
        *({"detail": mass} for mass in ([1.0], [2.0] * 32, [None] * 32)),
        {"control": [1.0]},
    ],
    ids=repr,
)
def test_a_simulated_record_that_is_none_is_refused(back, folder, changed):
    tell(folder, "files")
    records = pq.read_table(folder / "predictions" / "layer-000.parquet")["records"][0].as_py()
    change(folder, "predictions", {"records": [records[0] | changed, *records[1:]]})
    with pytest.raises(NeuroexplainError, match=r"predictions/layer-000\.parquet is damaged: "):
        list(import_parquet(back, folder))
    assert list_runs(back) == []


def test_jsonl_is_what_show_prints(store, tmp_path):
    run = load_run(store)
    neurons = list_explained_ids(store, run.id)
    list(export_jsonl(store, run, neurons, tmp_path / "out"))
    lines = gzip.decompress((tmp_path / "out" / "neurons.jsonl.gz").read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [show_json(load_page(store, run, n)) for n in neurons]


def test_a_cell_that_a_spreadsheet_would_run_is_text(store):
    rows = query_explanations(store, load_run(store), text="hyperlink")
    cell = next(csv.DictReader(io.StringIO(query_csv(rows))))["explanation"]
    assert cell.startswith("'=HYPERLINK")


def test_python_gives_objects_frames_and_pictures(hostile):
    with nx.open(str(hostile / "x.db")) as db:
        found = db.query(min_score=-1.0, limit=5)
        frame = found.to_frame()
        assert list(frame["correlation"]) == [row.correlation for row in found]
        assert list(db.query("nobody wrote this").to_frame().columns) == list(frame.columns)
        reading = db.neuron(0, 1)
        assert len(reading.to_frame()) == len(reading.exemplars)
        assert len(reading.tokens(reading.exemplars[0])) == 64
        for html in (reading._repr_html_(), found._repr_html_()):
            assert "<script>" not in html
            assert "<img" not in html
        assert "mlp unit 0:1" in repr(reading)
