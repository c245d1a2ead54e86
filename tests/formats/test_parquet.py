"""A Parquet export: it is a data set, and an import restores the run."""

import gc
import tracemalloc
from dataclasses import replace

import datasets
import numpy as np
import pytest

import neuroexplain as nx
from neuroexplain.arrays import CollectedLayer, ExemplarArrays
from neuroexplain.as_json import unit_json
from neuroexplain.config import ExplainConfig
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
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.llm.local import LocalEngine
from neuroexplain.lookup import load_page
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import list_checks, list_runs, load_run
from neuroexplain.store.save_collected import (
    create_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.save_explained import save_explanations, save_predictions
from neuroexplain.store.units import list_segments, list_unit_ids
from neuroexplain.units import UnitId
from tests.explaining.conftest import collect, write_documents
from tests.fakes import ScriptedLlm, run_fields, tiny_subject
from tests.formats.parquet_changes import change_run_json, change_table


def without_ids(value):
    """The output of show --json without ids and run."""
    if isinstance(value, dict):
        return {
            k: without_ids(v) for k, v in value.items() if k not in ("run", "id", "control_explanation_id")
        }
    return [without_ids(item) for item in value] if isinstance(value, list) else value


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
            assert without_ids(unit_json(load_page(back, again, neuron))) == without_ids(
                unit_json(load_page(store, run, neuron))
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


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A store of a run of both sides whose special tokens are barred, with every kind of prediction."""
    folder = tmp_path_factory.mktemp("sampled")
    write_documents(folder / "text.jsonl", 60)
    model = str(tiny_subject(folder / "model"))
    collect(folder, folder / "x.db", model, sign="both", activation="post", special_peaks=False)
    engine = LocalEngine(model)
    with open_store(str(folder / "x.db")) as store:
        run, units = load_run(store), (UnitId(0, 1), UnitId(1, 2))
        lexical, digits = LexicalSimulator(engine, run.tokenizer_sha256), DigitsSimulator(engine)
        list(run_explain(store, run, ExplainConfig(units, "tokens"), None, lexical))
        llm = ScriptedLlm(lambda messages, sampling: f"mills and geese {sampling['seed']}")
        list(run_explain(store, run, ExplainConfig(units, "excerpts", candidates=2), llm, digits))
        yield store


def test_samples_come_back_as_they_were(sampled, tmp_path, database):
    run = load_run(sampled)
    list(export_parquet(sampled, run, tmp_path / "out"))
    with open_store(database, create=True) as back:
        list(import_parquet(back, tmp_path / "out"))
        again = load_run(back)
        assert again == replace(run, id=again.id)
        assert again.n_sampled > 0 < min(again.split_segments.values())
        assert again.barred_ids
        for layer in run.layers:
            before, after = (load_collected_layer(a, r, layer) for a, r in ((sampled, run), (back, again)))
            assert list(before.samples) == list(after.samples)
            assert len(before.samples) == 6
            for group, sample in before.samples.items():
                np.testing.assert_array_equal(after.samples[group].sizes, sample.sizes)
                np.testing.assert_array_equal(after.samples[group].thresholds, sample.thresholds)
                for name in ExemplarArrays.__dataclass_fields__:
                    mine, its = (getattr(s.records, name) for s in (after.samples[group], sample))
                    np.testing.assert_array_equal(mine, its, err_msg=name)
        assert sample_rows(back) == sample_rows(sampled)
        segments = [
            [(s.segment, s.split, s.token_ids.tolist()) for batch in list_segments(a, 1) for s in batch]
            for a in (sampled, back)
        ]
        assert segments[0] == segments[1]
        assert {split for _, split, _ in segments[0]} == {"explain", "select", "report", None}
        read = [
            {
                (p.unit, p.scorer, p.n_read, p.with_bills, p.has_report, p.text, p.control_text)
                for p in list_predictions(a, [e.id for e in list_explanations(a, 1)])
            }
            for a in (sampled, back)
        ]
        assert read[0] == read[1]
        assert {(scorer, *more[:3]) for _, scorer, *more in read[0]} == {
            ("lexical", 16, True, True),
            ("digits", 8, False, True),
            ("digits", 8, False, False),
        }
        scores = [
            sorted(repr((s.unit, s.scorer, replace(s.score, control_explanation_id=None))) for s in stored)
            for stored in (list_scores(a, range(1, 100)) for a in (sampled, back))
        ]
        assert scores[0] == scores[1]
        assert len(scores[0]) > 40
        assert any(s.score.effective_records for s in list_scores(back, range(1, 100)))
        assert list(verify_run(back, again)) == []


def sample_rows(store):
    """All values of the table, checksums too."""
    with store.read() as reader:
        names = "layer, unit, side, counts, sizes, thresholds, checksum"
        rows = reader.rows(f"SELECT {names} FROM samples ORDER BY layer, unit, side")  # noqa: S608
    return [tuple(value if isinstance(value, int | str) else bytes(value) for value in row) for row in rows]


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
            explanations = [
                Explanation(UnitId(layer, n), "pairs", "ok", f"words {n}", by, reason=reason)
                for n in range(60)
            ]
            explanations = save_explanations(store, run_id, explanations)
            records = tuple(
                PredictedRecord("top", rank, 1, np.linspace(0, 1, 32, dtype=np.float32)) for rank in range(16)
            )
            scores = [
                Score("report", kind, "correlation", "ok", 0.5, 512, 16) for kind in SUBSETS["positive"]
            ]
            predictions = [
                (
                    Prediction(e.id, e.unit, "lexical", "ok", records, by, control_explanation_id=other.id),
                    scores,
                )
                for e, other in zip(explanations, [*explanations[1:], explanations[0]], strict=True)
            ]
            save_predictions(store, run_id, predictions)
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
    explanations = datasets.load_dataset(
        str(folder / "out"), "explanations", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(explanations["reason"]) == {None, "no answer"}


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


def test_what_is_imported_again_is_left_as_it_is(back, folder):
    list(import_parquet(back, folder))
    explain_by_hand(back, load_run(back), "mine")
    (event,) = import_parquet(back, folder)
    assert event.note == f"Run 1 of {back.name} is this run already: nothing to do."
    assert len(list_runs(back)) == 1
    assert "mine" in {e.text for e in list_explanations(back, 1)}


def test_the_run_it_was_exported_from_is_not_imported_beside_itself(store, folder):
    assert "nothing to do" in next(import_parquet(store, folder)).note


def test_an_import_that_is_cut_off_goes_on(back, folder, store):
    cut = import_parquet(back, folder)
    next(event for event in cut if event.stage == "importing")
    cut.close()
    assert [run.status for run in list_runs(back)] == ["running"]
    list(import_parquet(back, folder))
    (run,) = list_runs(back)
    for neuron in list_unit_ids(store, 1):
        mine, its = (unit_json(load_page(a, r, neuron)) for a, r in ((back, run), (store, load_run(store))))
        assert without_ids(mine) == without_ids(its)


def test_times_are_kept(back, folder):
    change_table(folder, "explanations", {"created_at": "2024-01-01T00:00:00+00:00"})
    change_table(folder, "predictions", {"created_at": "2024-02-02T00:00:00+00:00"})
    change_run_json(
        folder, "files", started_at="2023-12-31T00:00:00+00:00", finished_at="2023-12-31T09:00:00+00:00"
    )
    list(import_parquet(back, folder))
    run, explanations = load_run(back), list_explanations(back, 1)
    assert (run.started_at[:10], run.finished_at[11:13]) == ("2023-12-31", "09")
    assert explanations[0].provenance.created_at == "2024-01-01T00:00:00+00:00"
    predictions = list_predictions(back, [e.id for e in explanations])
    assert predictions[0].provenance.created_at == "2024-02-02T00:00:00+00:00"


def test_checks_of_simulators_come_back(store, back, folder):
    list(import_parquet(back, folder))
    assert list_checks(back, 1) == list_checks(store, 1)
    assert list_checks(back, 1)


def test_an_export_of_an_earlier_version_is_imported(back, folder):
    """Without hashes and checks, and without the times of explanations and simulations."""
    change_run_json(folder, "files", "checks")
    for table in ("explanations", "predictions"):
        change_table(folder, table, lambda rows: rows.drop_columns(["created_at"]))
    list(import_parquet(back, folder))
    assert list_explanations(back, 1)[0].provenance.created_at is not None
