"""The published arrays come in and go out again; overlapping segments are never on both sides of a split."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import select

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, PredictedRecord, Prediction, Provenance, VocabularyEntry
from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.llama3_neurons import export_llama3_neurons, import_llama3_neurons
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.scorers.base import compute_scores
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.scoring.splits import assign_splits
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store import tables
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_scores
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.save_explained import save_explanation, save_prediction
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from tests.fakes import tiny_subject, words

L, N, K = 3, 40, 32
FACTS = {
    "subject": "published",
    "tokenizer_sha256": "0" * 64,
    "vocabulary": [VocabularyEntry(i, f" w{i}", False) for i in range(500)],
}


@pytest.fixture
def folder(tmp_path):
    """Arrays like the published: bfloat16 values of overlapping segments at random places in a stream."""
    random = np.random.default_rng(0)
    stream = random.integers(0, 500, 20_000).astype(np.uint32)
    index = np.stack([random.choice(6_000, K, replace=False) for _ in range(L * N)]).reshape(L, N, K)
    act = random.normal(size=(L, N, K, 64)).astype(np.float32)
    act[..., 32] = np.sort(np.abs(act[..., 32]), axis=-1)[..., ::-1] + 3
    act = (act.view(np.uint32) & 0xFFFF0000).view(np.float32)
    index = np.take_along_axis(index, np.lexsort((index, -act[..., 32]), axis=-1), -1)  # ties in our order
    token = stream[index[..., None] + 64 + np.arange(64)]
    data = tmp_path / "data"
    data.mkdir()
    for name, array in (("index", index), ("act", act), ("token", token)):
        np.save(data / f"{name}.npy", array)
    return data


def imported(folder, db, layers=None):
    store = open_store(str(db), create=True)
    list(import_llama3_neurons(store, folder, layers, **FACTS))
    return store, load_run(store)


def test_what_comes_in_goes_out_again(folder, tmp_path):
    store, run = imported(folder, tmp_path / "x.db")
    assert (run.dtype, run.layers, run.width(0)) == ("bfloat16", (0, 1, 2), N)
    list(export_llama3_neurons(store, run, tmp_path / "out"))
    for name in ("act", "token", "index"):
        np.testing.assert_array_equal(
            np.load(tmp_path / "out" / f"{name}.npy"), np.load(folder / f"{name}.npy")
        )
    assert not (tmp_path / "out.partial").exists()


def test_it_goes_through_parquet_as_well(folder, tmp_path):
    """Its segments hold 64 tokens, not 128."""
    store, run = imported(folder, tmp_path / "x.db")
    list(export_parquet(store, run, tmp_path / "out"))
    with open_store(str(tmp_path / "y.db"), create=True) as back:
        list(import_parquet(back, tmp_path / "out"))
        again = load_run(back)
        assert again == replace(run, id=again.id)
        mine, its = (load_unit(a, r, UnitId(1, 7)).exemplars for a, r in ((back, again), (store, run)))
        for x, y in zip(mine, its, strict=True):
            np.testing.assert_array_equal(x.token_ids, y.token_ids)
            np.testing.assert_array_equal(x.activations, y.activations)


def test_one_layer_alone(folder, tmp_path):
    store, run = imported(folder, tmp_path / "x.db", [1])
    unit = load_unit(store, run, UnitId(1, 7))
    assert run.layers == (1,)
    assert (unit.stats, unit.status, len(unit.exemplars)) == (None, "ok", K)
    np.testing.assert_array_equal(unit.exemplars[4].activations, np.load(folder / "act.npy")[1, 7, 4])


def test_overlapping_windows_are_never_on_both_sides_of_a_split(folder, tmp_path):
    """Neither of one neuron nor of two: a split is one of a place in the stream."""
    store, run = imported(folder, tmp_path / "x.db")
    places = {split: set() for split in ("explain", "select", "report", None)}
    for n in range(N):
        for x in load_unit(store, run, UnitId(0, n)).exemplars:
            assert x.start == 0
            passages = {place // 1024 for place in (x.segment - 64, x.segment + 63)}
            eighths = [stable_hash(run.seed, "passage", passage) % 8 for passage in passages]
            splits = {"explain" if e < 3 else "select" if e < 5 else "report" for e in eighths}
            assert x.split == (splits.pop() if len(splits) == 1 else None)
            places[x.split] |= set(range(x.segment, x.segment + 64))
    assert all(places.values())
    for a, b in (("explain", "select"), ("explain", "report"), ("select", "report")):
        assert places[a].isdisjoint(places[b])


def test_of_arrays_that_an_earlier_version_imported_no_windows_overlap_either(folder, tmp_path):
    store, run = imported(folder, tmp_path / "x.db")
    kept = 0
    for n in range(N):
        exemplars = load_unit(store, run, UnitId(0, n)).exemplars
        splits = assign_splits(exemplars)
        by_split = {
            s: [x.segment for x in exemplars if splits[x.kind, x.rank] == s]
            for s in ("explain", "select", "report")
        }
        for before, after in (("explain", "select"), ("explain", "report"), ("select", "report")):
            assert all(abs(a - b) >= 128 for a in by_split[before] for b in by_split[after])
        kept += len(by_split["report"])
    assert 0 < kept < N * K // 4  # some are dropped, not all


def test_without_random_records_only_top_has_a_score_and_the_others_say_why(folder, tmp_path):
    store, run = imported(folder, tmp_path / "x.db", [1])
    neuron = load_unit(store, run, UnitId(1, 7))
    by = Provenance("none", None, "m", None, None)
    e = save_explanation(store, run.id, Explanation(neuron.id, "human", "ok", "rivers", by))
    evidence = SideEvidence.of(run, neuron, "positive")
    records = [
        PredictedRecord(x.kind, x.rank, 9, np.round(x.activations[9:41]))
        for x in neuron.exemplars
        if x.split == "report" and x.key not in evidence.leaking
    ]
    prediction = as_stored(Prediction(e.id, neuron.id, "lexical", "ok", tuple(records), by))
    scores = compute_scores(evidence, prediction)
    save_prediction(store, run.id, prediction, scores)
    scores = {s.score.subset: s.score for s in list_scores(store, [e.id]) if s.score.split == "report"}
    for kind in ("random", "top_and_random"):
        assert (scores[kind].status, scores[kind].value) == ("no_records", None)
        assert "no random records" in scores[kind].reason
    assert scores["top"].status == "ok"
    assert scores["top"].value > 0.9
    assert list(verify_run(store, run)) == []


def test_peak_tokens_are_those_of_the_arrays(folder, tmp_path):
    store, _ = imported(folder, tmp_path / "x.db", [2])
    token = np.load(folder / "token.npy")[2, :, :, 32]
    p = tables.peak_tokens.c
    with store.engine.connect() as connection:
        stored = {
            tuple(row) for row in connection.execute(select(p.token_id, p.unit, p.count).where(p.layer == 2))
        }
    assert stored == {(int(t), n, list(row).count(t)) for n, row in enumerate(token) for t in row}


def test_an_import_that_was_cut_off_goes_on(folder, tmp_path):
    store = open_store(str(tmp_path / "x.db"), create=True)
    events = import_llama3_neurons(store, folder, None, **FACTS)
    next(event for event in events if event.done == 2)
    events.close()
    assert [run.status for run in list_runs(store)] == ["running"]
    list(import_llama3_neurons(store, folder, None, **FACTS))
    list(export_llama3_neurons(store, load_run(store), tmp_path / "out"))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "act.npy"), np.load(folder / "act.npy"))


@pytest.mark.parametrize("positions", [(96, 97), (32, 97)])
def test_a_collected_run_survives_the_way_out_and_in(tmp_path, positions):
    texts = [words(600, seed=n) for n in range(6)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with open_store(str(tmp_path / "a.db"), create=True) as store:
        options = {
            "model": str(tiny_subject(tmp_path / "model")),
            "dataset": (str(tmp_path / "text.jsonl"),),
            "top_k": 5,
        }
        list(run_collect(store, CollectConfig(**options, positions=positions)))
        run = load_run(store)
        list(export_llama3_neurons(store, run, tmp_path / "out"))
        if positions == (96, 97):  # the published rule
            assert (np.load(tmp_path / "out" / "index.npy") % 128 == 0).all()
        again, back = imported(tmp_path / "out", tmp_path / "b.db")
        for n in range(run.width(0)):
            before = [x for x in load_unit(store, run, UnitId(1, n)).exemplars if x.kind == "top"]
            after = load_unit(again, back, UnitId(1, n)).exemplars
            for x, y in zip(before, after, strict=True):
                assert (x.activation, x.segment * 128 + x.start) == (y.activation, y.segment)
                assert x.token_ids.tolist() == y.token_ids.tolist()
                np.testing.assert_array_equal(x.activations, y.activations)


def test_arrays_that_do_not_fit_are_refused(folder, tmp_path):
    np.save(folder / "index.npy", np.zeros((L, N, K - 1), np.int64))
    with pytest.raises(NeuroexplainError, match="do not fit together"):
        imported(folder, tmp_path / "x.db")
    (folder / "act.npy").unlink()
    with pytest.raises(NeuroexplainError, match=r"There is no .*act\.npy"):
        imported(folder, tmp_path / "x.db")
    (folder / "index.npy").write_bytes(b"no array")
    with pytest.raises(NeuroexplainError, match="Cannot read"):
        imported(folder, tmp_path / "x.db")


def test_who_imports_the_arrays_tells_their_activation(folder, tmp_path):
    store, run = imported(folder, tmp_path / "x.db")
    list(import_llama3_neurons(store, folder, None, **FACTS, activation="post"))
    assert [run.activation for run in list_runs(store)] == ["act", "post"]
    events = export_llama3_neurons(store, load_run(store, 2), tmp_path / "out")
    notes = [event.note for event in events if event.note]
    assert "--activation post" in notes[0]
    assert not any(event.note for event in export_llama3_neurons(store, run, tmp_path / "other"))
    with pytest.raises(NeuroexplainError, match="no activation 'pre'"):
        list(import_llama3_neurons(store, folder, None, **FACTS, activation="pre"))


def test_an_import_again_does_nothing(folder, tmp_path):
    store, _ = imported(folder, tmp_path / "x.db")
    (event,) = import_llama3_neurons(store, folder, None, **FACTS)
    assert "nothing to do" in event.note
    assert len(list_runs(store)) == 1


@pytest.mark.parametrize(("name", "value"), [("token", 1 << 24), ("index", (1 << 63) - 1), ("index", -65)])
def test_values_beyond_their_range_are_refused(folder, tmp_path, name, value):
    array = np.load(folder / f"{name}.npy")
    array.reshape(-1)[7] = value
    np.save(folder / f"{name}.npy", array)
    with pytest.raises(NeuroexplainError, match=f"{name}.npy, layer 0, holds"):
        imported(folder, tmp_path / "x.db")


def test_a_run_without_top_records_is_not_exported(tmp_path):
    (tmp_path / "text.txt").write_text(words(3_000))
    config = CollectConfig(
        model=str(tiny_subject(tmp_path / "model")), dataset=(str(tmp_path / "text.txt"),), sign="negative"
    )
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        list(run_collect(store, config))
        with pytest.raises(NeuroexplainError, match="no top records"):
            list(export_llama3_neurons(store, load_run(store), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_export_leaves_alone_what_others_put_beside_it(folder, tmp_path):
    store, run = imported(folder, tmp_path / "x.db")
    before = sorted(tmp_path.iterdir())
    (tmp_path / "out.partial").mkdir()
    list(export_llama3_neurons(store, run, tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out", tmp_path / "out.partial"])
    with pytest.raises(NeuroexplainError, match="Cannot write"):
        list(export_llama3_neurons(store, run, tmp_path / "none" / "out"))
