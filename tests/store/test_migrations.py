"""Each migration, on rows of the version before it."""

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import TableClause, column, create_engine, insert, select
from sqlalchemy.exc import IntegrityError

from neuroexplain.embedding.index import MeaningIndex
from neuroexplain.errors import NeuroexplainError
from neuroexplain.store import tables
from neuroexplain.store.engine import REVISION, migrations_folder, open_store, upgrade_store
from neuroexplain.store.explanations import list_explanations, list_predictions
from neuroexplain.store.hard import list_measured
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_collected import save_health
from neuroexplain.store.save_explained import save_explanations
from tests.embedding.stores import LetterEmbedder, explanation_of


def at_revision(database, revision):
    """A database with the tables of an earlier version."""
    from alembic import command
    from alembic.config import Config

    engine = create_engine(database if "://" in database else f"sqlite:///{database}")
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    return engine


def insert_row(connection, table, **values):
    """As text: the tables of this version may differ."""
    connection.execute(insert(TableClause(table, *map(column, values))).values(values))


def insert_run(connection):
    empty = {
        "layers": "[0]",
        "d_mlp": 9,
        "n_layers": 1,
        "top_k": 4,
        "n_random": 0,
        "seed": 0,
        "tokenizer_sha256": "",
    }
    empty |= {
        "config": "{}",
        "n_segments": 0,
        "n_documents": 0,
        "n_tokens": 0,
        "versions": "{}",
        "started_at": "2026",
    }
    insert_row(
        connection, "runs", id=1, status="finished", subject="s", dtype="float32", activation="act", **empty
    )


def test_0003_keeps_digit_masses_on_their_side_of_the_threshold(database):
    mass = np.concatenate(
        [np.linspace(0, 1, 29), [0.0199, 0.02, np.nextafter(np.float16(0.02), np.float16(0))]]
    ).astype("<f2")
    by = {
        "engine": "server",
        "model": "m",
        "sampling": "{}",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "seconds": 0.0,
    }
    by["created_at"] = "2026-11-24T00:00:00+00:00"
    crops = {
        "kinds": b"\0",
        "ranks": b"\3",
        "firsts": b"\1",
        "expected_levels": np.arange(32).astype("<f2").tobytes(),
    }
    engine = at_revision(database, "0002")
    with engine.begin() as connection:
        insert_run(connection)
        for n, (simulator, stored) in enumerate((("digits", mass.tobytes()), ("lexical", None)), 1):
            request = {
                "run_id": 1,
                "layer": 0,
                "neuron": n,
                "explainer": "pairs",
                "candidate": 0,
                "request_key": f"k{n}",
            }
            insert_row(
                connection, "explanations", id=n, **request, chosen=True, status="ok", text="rivers", **by
            )
            simulation = {
                "run_id": 1,
                "explanation_id": n,
                "simulator": simulator,
                "status": "ok",
                "digit_mass": stored,
            }
            insert_row(connection, "simulations", id=n, **simulation, **crops, **by)
    engine.dispose()
    with pytest.raises(NeuroexplainError, match="neuroexplain upgrade"):
        open_store(database)
    assert upgrade_store(database) == ("0002", REVISION)
    with open_store(database) as store:
        digits, lexical = list_predictions(store, [1, 2])
    masses = digits.records[0].detail
    before = mass.astype(np.float32)
    assert (masses <= before + 1e-6).all()
    assert (masses > before - 0.004).all()
    np.testing.assert_array_equal(masses >= 0.02, before >= 0.02)
    assert lexical.records[0].detail is None
    assert digits.records[0].values.tolist() == list(range(32))


def test_0004_keeps_every_peak_token(database):
    rows = {(layer, token, 5 * token + layer, 1 + token % 3) for layer in (0, 1) for token in (7, 3, 70_000)}
    engine = at_revision(database, "0003")
    with engine.begin() as connection:
        insert_run(connection)
        for layer, token, neuron, count in rows:
            insert_row(
                connection, "peak_tokens", run_id=1, token_id=token, layer=layer, neuron=neuron, count=count
            )
    engine.dispose()
    assert upgrade_store(database) == ("0003", REVISION)
    with open_store(database) as store, store.engine.connect() as connection:
        p = tables.peak_tokens.c
        assert {
            tuple(row) for row in connection.execute(select(p.layer, p.token_id, p.unit, p.count))
        } == rows
        with pytest.raises(IntegrityError):  # its key came along
            connection.execute(
                insert(tables.peak_tokens).values(run_id=1, layer=0, token_id=3, unit=15, count=1)
            )


BY = {  # of an explanation
    "explainer": "pairs",
    "candidate": 0,
    "chosen": True,
    "status": "ok",
    "engine": "none",
    "model": "m",
    "sampling": "{}",
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "seconds": 0.0,
    "created_at": "2026",
}


def insert_explained(connection, texts):
    """A run whose unit i of layer 0 is explained by the text i, in the tables of 0010 and 0011."""
    run = {
        "status": "finished",
        "subject": "s",
        "dtype": "float32",
        "layers": "[0]",
        "n_layers": 1,
        "top_k": 4,
    }
    run |= {"n_random": 0, "seed": 0, "tokenizer_sha256": "", "config": "{}", "n_segments": 0}
    run |= {"n_documents": 0, "n_tokens": 0, "versions": "{}", "started_at": "2026"}
    insert_row(connection, "runs", id=1, **run)
    source = {"kind": "mlp", "module": "m", "side": "positive", "width": len(texts), "dtype": "float32"}
    insert_row(connection, "sources", run_id=1, layer=0, **source)
    for unit, text in enumerate(texts):
        insert_row(connection, "units", run_id=1, layer=0, unit=unit, status="ok", max_activation=1.0)
        place = {"run_id": 1, "layer": 0, "unit": unit, "request_key": str(unit)}
        insert_row(connection, "explanations", **place, text=text, **BY)


def test_0011_lets_explanations_of_the_version_before_be_found_by_meaning(database):
    engine = at_revision(database, "0010")
    with engine.begin() as connection:
        insert_explained(connection, ["sea", "birds"])
    engine.dispose()
    assert upgrade_store(database) == ("0010", REVISION)
    with open_store(database) as store:
        index = MeaningIndex(store, load_run(store), LetterEmbedder())
        index.refresh()
        save_explanations(store, index.run.id, [explanation_of(0, "ships"), explanation_of(1, "fish")])
        index.refresh()
        assert sorted(index.embedder.embedded) == ["birds", "fish", "sea", "ships"]


def test_0012_leaves_explanations_of_the_version_before_without_a_rule(database):
    engine = at_revision(database, "0011")
    with engine.begin() as connection:
        insert_explained(connection, ["sea, waves and other water", "birds"])
    engine.dispose()
    assert upgrade_store(database) == ("0011", REVISION)
    with open_store(database) as store:
        run = load_run(store)
        assert [(e.text, e.rule, e.examples) for e in list_explanations(store, run.id)] == [
            ("sea, waves and other water", None, None),
            ("birds", None, None),
        ]
        rule = replace(explanation_of(0, "a and other b"), rule="b", examples=("a",))
        (saved,) = save_explanations(store, run.id, [rule])
        (back,) = [e for e in list_explanations(store, run.id) if e.rule is not None]
        assert (back.id, back.rule, back.examples) == (saved.id, "b", ("a",))


def test_0013_leaves_runs_of_the_version_before_without_a_background(database):
    engine = at_revision(database, "0012")
    with engine.begin() as connection:
        insert_explained(connection, ["sea"])
    engine.dispose()
    assert upgrade_store(database) == ("0012", REVISION)
    with open_store(database) as store:
        run = load_run(store)
        assert (run.n_background, run.health) == (0, {})
        with store.read() as reader:
            assert reader.column("SELECT histogram FROM units") == [None] * len(
                reader.rows("SELECT unit FROM units")
            )
            assert reader.rows("SELECT * FROM backgrounds") == []
        save_health(store, run.id, {"0": {"l0": 3.5, "variance_explained": None}})
        assert load_run(store).health == {"0": {"l0": 3.5, "variance_explained": None}}


def test_0014_adds_leases_of_which_nobody_has_one(database):
    engine = at_revision(database, "0013")
    with engine.begin() as connection:
        insert_explained(connection, ["sea"])
    engine.dispose()
    assert upgrade_store(database) == ("0013", REVISION)
    with open_store(database) as store, store.read() as reader:
        assert reader.column("SELECT holder FROM leases") == []
        assert reader.column("SELECT text FROM explanations") == ["sea"]


def test_0015_leaves_units_of_the_version_before_without_nearest_ones(database):
    engine = at_revision(database, "0014")
    with engine.begin() as connection:
        insert_explained(connection, ["sea"])
    engine.dispose()
    assert upgrade_store(database) == ("0014", REVISION)
    with open_store(database) as store, store.read() as reader:
        rows = reader.rows("SELECT nearest_units, nearest_cosines FROM units")
        assert rows
        assert {tuple(row) for row in rows} == {(None, None)}


def test_0016_leaves_predictions_of_the_version_before_without_hard_negatives(database):
    engine = at_revision(database, "0015")
    with engine.begin() as connection:
        insert_explained(connection, ["sea"])
    engine.dispose()
    assert upgrade_store(database) == ("0015", REVISION)
    with open_store(database) as store, store.read() as reader:
        assert list_measured(store, 1) == set()
        assert reader.rows("SELECT n_hard FROM predictions") == []
        assert reader.rows("SELECT n_hard FROM rule_predictions") == []
        assert reader.column("SELECT text FROM explanations") == ["sea"]
