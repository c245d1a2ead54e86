"""The store's layout, searches and refusals."""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import delete, insert, select, text, update

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, StatsArrays, VocabularyArrays
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, Prediction, Provenance, Score, Segment
from neuroexplain.scoring.codecs import pack_mass, unpack_mass
from neuroexplain.store import tables
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import REVISION, open_store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.integrity import list_misplaced
from neuroexplain.store.packing import pack_activations, pack_token_ids, unpack_activations, unpack_token_ids
from neuroexplain.store.reader import Reader
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.save_collected import create_run, finish_run, save_collected_layer, save_segments
from neuroexplain.store.save_explained import save_explanation, save_prediction
from neuroexplain.store.search import query_explanations
from neuroexplain.store.units import list_segments
from neuroexplain.units import UnitId
from tests.fakes import run_fields

NOWHERE = Provenance("none", None, "m", None, None)


@pytest.fixture
def store(database):
    with open_store(database, create=True) as opened:
        yield opened


@pytest.fixture
def run_id(store):
    return new_run(store)


def new_run(store, dtype="float32"):
    run_id = create_run(store, run_fields(2, 9, dtype=dtype, n_random=2))
    stats = {
        "status": "ok",
        "mean": 0.0,
        "std": 1.0,
        "min": -1.0,
        "max": 1.0,
        "share_positive": 0.5,
        "max_activation": 1.0,
    }
    with store.write() as connection:
        connection.execute(
            insert(tables.units), [{"run_id": run_id, "layer": 0, "unit": n, **stats} for n in range(9)]
        )
    return run_id


def explain(store, run_id, neuron, text):
    return save_explanation(store, run_id, Explanation(UnitId(0, neuron), "human", "ok", text, NOWHERE))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_activations_are_packed_without_loss(dtype):
    values = np.array([0.0, -1.5, 3.0, 0.0078125], np.float32)
    np.testing.assert_array_equal(unpack_activations(pack_activations(values, dtype), dtype), values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_value_that_would_be_rounded_is_refused(dtype):
    with pytest.raises(ValueError, match="is not a"):
        pack_activations(np.array([0.1], np.float32), dtype)


def test_token_ids_take_three_bytes():
    ids = np.array([0, 255, 65_536, 2**24 - 1], np.uint32)
    assert len(pack_token_ids(ids)) == 12
    np.testing.assert_array_equal(unpack_token_ids(pack_token_ids(ids)), ids)
    with pytest.raises(ValueError, match="3 bytes"):
        pack_token_ids(np.array([2**24]))


def test_digit_masses_stay_on_their_side_of_the_threshold_and_change_once():
    steps = np.arange(251).astype(np.uint8)
    np.testing.assert_array_equal(pack_mass(unpack_mass(steps)), steps)
    mass = np.array([0.0, 0.0199, 0.02, 0.5, 1.0, 1.0000001], np.float32)
    np.testing.assert_array_equal(unpack_mass(pack_mass(mass)) >= 0.02, mass >= 0.02)
    assert np.abs(unpack_mass(pack_mass(mass)) - mass).max() < 0.004


def a_layer(d_mlp, dtype, seed, with_peaks):
    """A collected layer whose neurons have 0 to 4 top records, and the 9 segments that they come from."""
    draw = np.random.default_rng(seed)
    segments = [Segment(3 * i, draw.integers(0, 50, 128).astype(np.uint32)) for i in range(9)]
    exemplars = {}
    for kind, k in (("top", 4), ("random", 2)):
        counts = draw.integers(0, k + 1, d_mlp) if kind == "top" else np.full(d_mlp, k)
        used = np.arange(k) < counts[:, None]
        activations = np.where(used[..., None], draw.normal(size=(d_mlp, k, 64)).astype(np.float32), 0)
        if dtype == "bfloat16":
            activations = (activations.view(np.uint32) & 0xFFFF0000).view(np.float32)
        places = draw.integers(0, 9, (d_mlp, k))
        starts = np.where(used, draw.integers(32, 65, (d_mlp, k)), 0).astype(np.uint8)
        tokens = np.stack([s.token_ids for s in segments])[places, starts.astype(np.int64) + 32]
        exemplars[kind] = ExemplarArrays(
            counts=counts,
            segments=np.where(used, 3 * places, 0).astype(np.uint32),
            starts=starts,
            documents=np.where(used, draw.integers(-1, 99, (d_mlp, k)), -1).astype(np.int32),
            token_offsets=np.where(used, draw.integers(-9, 99, (d_mlp, k)), 0).astype(np.int32),
            peaks=activations[..., 32],
            activations=activations,
            peak_token_ids=tokens if with_peaks else None,
        )
    numbers = draw.normal(size=(5, d_mlp))
    ids, logits = (
        draw.integers(0, 50, (d_mlp, 10)).astype(np.uint32),
        draw.normal(size=(d_mlp, 10)).astype(np.float32),
    )
    return CollectedLayer(
        1, exemplars, StatsArrays(*numbers), VocabularyArrays(ids, logits, ids[::-1], -logits)
    ), segments


@pytest.mark.parametrize(
    ("dtype", "with_peaks"), [("float32", True), ("bfloat16", True), ("bfloat16", False)]
)
def test_a_layer_comes_back_as_it_was_saved_however_often(store, dtype, with_peaks):
    layers = [a_layer(9, dtype, seed, with_peaks) for seed in (0, 1)]
    run_id = new_run(store, dtype)
    for collected, segments in layers:  # the second in place of the first
        with store.write() as connection:
            connection.execute(delete(tables.segments))
        save_segments(store, run_id, [*segments, Segment(1_000, segments[0].token_ids)])
        save_segments(store, run_id, segments[:2])  # stored already
        save_collected_layer(store, run_id, collected)
    finish_run(store, run_id, n_segments=9, n_documents=1, n_tokens=9 * 128)
    again = load_collected_layer(store, load_run(store, run_id), 1)
    for kind, arrays in collected.exemplars.items():
        for name in ("counts", "segments", "starts", "documents", "token_offsets", "peaks", "activations"):
            np.testing.assert_array_equal(
                getattr(again.exemplars[kind], name), getattr(arrays, name), err_msg=name
            )
    for part in ("stats", "vocabulary"):
        for name in getattr(collected, part).__dataclass_fields__:
            np.testing.assert_array_equal(
                getattr(getattr(again, part), name), getattr(getattr(collected, part), name)
            )
    top, ids = collected.exemplars["top"], {s.segment: s.token_ids for s in segments}
    peaks = Counter(
        (int(ids[int(top.segments[n, r])][top.starts[n, r] + 32]), n)
        for n in range(9)
        for r in range(top.counts[n])
    )
    p = tables.peak_tokens.c
    with store.engine.connect() as connection:
        stored = connection.execute(
            select(p.token_id, p.unit, p.count).where(p.run_id == run_id, p.layer == 1)
        ).all()
        statuses = connection.execute(select(tables.units).where(tables.units.c.layer == 1)).all()
    assert {(token, n): count for token, n, count in stored} == peaks
    for row in statuses:
        strongest = float(top.peaks[row.unit, 0]) if top.counts[row.unit] else None
        assert row.max_activation == strongest
        assert row.status == ("ok" if strongest is not None and strongest > 0 else "dead")
    used = {int(s) for x in collected.exemplars.values() for s in x.segments[x.counts_mask()]}
    assert [s.segment for batch in list_segments(store, run_id) for s in batch] == sorted(used)


def run_of(store, run_id):
    """The run, finished or not."""
    return next(run for run in list_runs(store) if run.id == run_id)


def test_the_same_request_has_one_row(store, run_id):
    first, again = explain(store, run_id, 1, "rivers"), explain(store, run_id, 1, "rivers")
    assert first.id == again.id
    assert len(list_explanations(store, run_id)) == 1


@pytest.mark.parametrize(
    "text", ['a" OR "b', "NOT rivers", "riv*", "'; DROP TABLE runs; --", "text:rivers", "NEAR(rivers"]
)
def test_search_words_are_data(store, run_id, text):
    explain(store, run_id, 1, "rivers")
    explain(store, run_id, 2, f"says {text} literally")
    assert [row.unit.index for row in query_explanations(store, run_of(store, run_id), text=text)] == [2]


def test_text_that_no_database_holds_is_replaced(store, run_id):
    explain(store, run_id, 1, "nul\0 and \ud800 here")
    assert list_explanations(store, run_id)[0].text == "nul\ufffd and \ufffd here"


def test_a_filter_by_score_uses_an_index(store, run_id, monkeypatch):
    e = explain(store, run_id, 1, "rivers")
    scores = [Score("report", "top_and_random", "correlation", "ok", 0.5, 320, 10)]
    save_prediction(store, run_id, Prediction(e.id, e.unit, "lexical", "ok", (), NOWHERE), scores)
    queries, run = [], run_of(store, run_id)
    rows = Reader.rows
    monkeypatch.setattr(
        Reader, "rows", lambda self, sql, **values: queries.append((sql, values)) or rows(self, sql, **values)
    )
    assert query_explanations(store, run, min_score=0.4, layers=[0])[0].correlation == 0.5
    assert query_explanations(store, run, max_score=0.4) == []
    by_score = [(sql, values) for sql, values in queries if "ORDER BY s.value" in sql]
    assert len(by_score) == 2
    for sql, values in by_score:
        with store.engine.connect() as connection:
            if store.dialect == "postgresql":
                connection.exec_driver_sql("SET enable_seqscan = off")  # a table of one row needs no index
            explain_plan = "EXPLAIN QUERY PLAN " if store.dialect == "sqlite" else "EXPLAIN "
            plan = connection.execute(text(explain_plan + sql), values).all()
        assert any("ix_scores_headline" in row[-1] for row in plan), plan


def test_misplaced_scores_and_explanations_chosen_twice_are_listed(store, run_id):
    e, other = explain(store, run_id, 3, "rivers"), explain(store, run_id, 4, "mills")
    scores = [
        Score("report", "top_and_random", "correlation", "ok", 0.5, 320, 10, control_explanation_id=other.id)
    ]
    save_prediction(store, run_id, Prediction(e.id, e.unit, "lexical", "ok", (), NOWHERE), scores)
    assert list_misplaced(store, run_id) == []
    for candidate in (0, 1):
        save_explanation(store, run_id, replace(e, explainer="pairs", candidate=candidate))
    with store.write() as connection:
        connection.execute(update(tables.scores).values(unit=5, control_explanation_id=99))
    moved, twice, missing = list_misplaced(store, run_id)
    assert "stands under another unit" in moved
    assert twice == "0:3: 2 explanations by pairs, m, of the positive side are chosen, not one"
    assert "was compared with explanation 99, which is missing" in missing


def test_another_schema_version_is_refused_with_the_command(tmp_path):
    open_store(str(tmp_path / "x.db"), create=True).close()
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(NeuroexplainError, match="neuroexplain upgrade --db"):
        open_store(str(tmp_path / "x.db"))


def test_the_migrations_add_up_to_the_tables(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from neuroexplain.store.engine import migrations_folder

    with open_store(str(tmp_path / "x.db"), create=True) as store, store.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), tables.metadata)
        assert [x for x in differences if "explanations_fts" not in repr(x)] == []
    assert sorted(migrations_folder().glob("versions/*.py"))[-1].name.startswith(REVISION)


def test_a_file_with_other_tables_is_left_alone(tmp_path):
    """Also by collect, which would remove the file if it failed."""
    file = tmp_path / "theirs.db"
    with sqlite3.connect(file) as theirs:
        theirs.execute("CREATE TABLE recipes (name TEXT)")
    theirs.close()
    before = file.read_bytes()
    with pytest.raises(NeuroexplainError, match="not one of neuroexplain's"):
        open_store(str(file), create=True)
    assert file.read_bytes() == before


def test_a_file_whose_making_was_interrupted_is_made_again(tmp_path):
    """The header is written before the tables are."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    assert path.stat().st_size
    with pytest.raises(NeuroexplainError, match="not one of neuroexplain's"):
        open_store(str(path))
    with open_store(str(path), create=True):
        pass
    with open_store(str(path)) as store:
        assert list_runs(store) == []
