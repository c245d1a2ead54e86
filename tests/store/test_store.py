"""The store's layout, searches and refusals."""

import sqlite3

import numpy as np
import pytest
from sqlalchemy import event, insert

from neuroexplain.errors import NeuroexplainError
from neuroexplain.store import tables
from neuroexplain.store.engine import REVISION, open_store
from neuroexplain.store.packing import pack_activations, pack_token_ids, unpack_activations, unpack_token_ids
from neuroexplain.store.read import list_explanations, query_explanations
from neuroexplain.store.write import create_run, save_explanation, save_simulation
from neuroexplain.types import Explanation, NeuronId, Provenance, Score, Simulation

NOWHERE = Provenance("none", None, "m", None, None)


@pytest.fixture
def store(database):
    with open_store(database, create=True) as opened:
        yield opened


@pytest.fixture
def run_id(store):
    return new_run(store)


def new_run(store):
    fields = {"subject": "s", "dtype": "float32", "activation": "act", "layers": [0], "d_mlp": 9, "n_layers": 1, "top_k": 4}
    run_id = create_run(store, fields | {"n_random": 2, "seed": 0, "tokenizer_sha256": "", "config": {}, "versions": {}})
    stats = {"status": "ok", "mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "share_positive": 0.5, "max_activation": 1.0}
    with store.write() as connection:
        connection.execute(insert(tables.neurons), [{"run_id": run_id, "layer": 0, "neuron": n, **stats} for n in range(9)])
    return run_id


def explain(store, run_id, neuron, text):
    return save_explanation(store, run_id, Explanation(NeuronId(0, neuron), "human", "ok", text, NOWHERE))


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


def test_the_same_request_has_one_row(store, run_id):
    first, again = explain(store, run_id, 1, "rivers"), explain(store, run_id, 1, "rivers")
    assert first.id == again.id
    assert len(list_explanations(store, run_id)) == 1


@pytest.mark.parametrize("text", ['a" OR "b', "NOT rivers", "riv*", "'; DROP TABLE runs; --", "text:rivers", "NEAR(rivers"])
def test_search_words_are_data(store, run_id, text):
    explain(store, run_id, 1, "rivers")
    explain(store, run_id, 2, f"says {text} literally")
    assert [row.neuron.neuron for row in query_explanations(store, run_id, text=text)] == [2]


def test_text_that_no_database_holds_is_replaced(store, run_id):
    explain(store, run_id, 1, "nul\0 and \ud800 here")
    assert list_explanations(store, run_id)[0].text == "nul\ufffd and \ufffd here"


def test_a_filter_by_score_uses_an_index(store, run_id):
    e = explain(store, run_id, 1, "rivers")
    scores = [Score("report", "top_and_random", "ok", 0.5, 320, 10)]
    save_simulation(store, run_id, Simulation(e.id, e.neuron, "lexical", "ok", (), NOWHERE), scores)
    asked = []
    event.listen(
        store.engine,
        "before_cursor_execute",
        lambda c, cur, statement, parameters, *rest: asked.append((statement, parameters)),
    )
    assert query_explanations(store, run_id, min_score=0.4, layers=[0])[0].correlation == 0.5
    assert query_explanations(store, run_id, max_score=0.4) == []
    for statement, parameters in list(asked):
        with store.engine.connect() as connection:
            if store.dialect == "postgresql":
                connection.exec_driver_sql("SET enable_seqscan = off")  # a table of one row needs no index
            explain_plan = "EXPLAIN QUERY PLAN " if store.dialect == "sqlite" else "EXPLAIN "
            plan = connection.exec_driver_sql(explain_plan + statement, parameters).all()
        assert any("ix_scores_headline" in row[-1] for row in plan), plan


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
        found = compare_metadata(MigrationContext.configure(connection), tables.metadata)
        assert [x for x in found if "explanations_fts" not in repr(x)] == []
    assert sorted(migrations_folder().glob("versions/*.py"))[-1].name.startswith(REVISION)
