"""Many rows at once: the same rows on both kinds of database."""

from itertools import starmap

import numpy as np
import pytest

from neuroexplain.store import tables as t
from neuroexplain.store.columns import safe_text
from neuroexplain.store.engine import open_store
from neuroexplain.store.rows import decode_json
from neuroexplain.store.save_collected import create_run
from neuroexplain.store.statements import delete_many, insert_many, insert_tuples, update_tuples, upsert_many
from tests.fakes import run_fields

HOSTILE = "a\tb\\N\n\0'\"; DROP TABLE runs; -- \ud800 \u202e \U0001f600"


@pytest.fixture
def store(database):
    with open_store(database, create=True) as opened:
        create_run(opened, run_fields(2, 9))
        yield opened


def explanation(unit, text, **other):
    row = {"run_id": 1, "layer": 0, "unit": unit, "explainer": "x", "candidate": 0, "request_key": "k"}
    row |= {
        "chosen": True,
        "status": "ok",
        "text": text,
        "reason": None,
        "covers": None,
        "parts": ["é", "\0"],
    }
    row |= {"engine": "none", "model": "m", "sampling": {"temperature": 0.1}, "prompt_tokens": 0}
    return row | {"completion_tokens": 0, "seconds": 1 / 3, "created_at": "2026"} | other


def rows_of(store, sql):
    with store.read() as reader:
        return [tuple(row) for row in reader.rows(sql)]


def test_an_upsert_replaces_by_key_and_the_last_of_equal_keys_stays(store):
    key = ["run_id", "layer", "unit", "request_key"]
    with store.write() as connection:
        upsert_many(connection, t.explanations, [explanation(0, "first"), explanation(1, HOSTILE)], key)
    with store.write() as connection:
        rows = [explanation(0, "second"), explanation(2, "new"), explanation(0, "third", chosen=False)]
        upsert_many(connection, t.explanations, rows, key)
        connection.exec_driver_sql("UPDATE explanations SET text = 'between' WHERE unit = 2")
        upsert_many(connection, t.explanations, [explanation(3, "later")], key)  # nothing of the last one
        upsert_many(connection, t.explanations, [], key)
    rows = rows_of(store, "SELECT unit, text, chosen, seconds FROM explanations ORDER BY unit")
    texts = [(0, "third", False), (1, safe_text(HOSTILE), True), (2, "between", True), (3, "later", True)]
    assert rows == [(*row, 1 / 3) for row in texts]
    (stored,) = rows_of(store, "SELECT parts, sampling, covers FROM explanations WHERE unit = 1")
    assert list(map(decode_json, stored)) == [["é", "\0"], {"temperature": 0.1}, None]


def test_existing_rows_are_skipped_or_an_error(store):
    def segment(number, ids):
        return 1, number, bytes(ids), None

    with store.write() as connection:
        insert_tuples(connection, t.segments, starmap(segment, [(7, [0, 1, 2])]), skip_existing=True)
    with store.write() as connection:
        rows = [segment(7, [9]), segment(8, []), segment(8, [5])]
        insert_tuples(connection, t.segments, rows, skip_existing=True)
    assert rows_of(store, "SELECT segment, token_ids FROM segments ORDER BY segment") == [
        (7, b"\0\1\2"),
        (8, b""),
    ]
    with pytest.raises(Exception, match=r"(?i)unique"), store.write() as connection:
        insert_tuples(connection, t.segments, [segment(9, []), segment(7, [])])
    assert len(rows_of(store, "SELECT segment FROM segments")) == 2


def test_rows_are_changed_and_deleted_by_their_keys(store):
    def score(unit, **other):
        row = {"run_id": 1, "layer": 0, "unit": unit, "explanation_id": unit + 1, "scorer": "s"}
        row |= {"scorer_model": "m", "metric": "correlation", "split": "report", "subset": "top"}
        return row | {"status": "ok", "value": np.float64(0.1), "n_tokens": 5, "n_records": 2} | other

    key = ["run_id", "layer", "unit", "request_key"]
    with store.write() as connection:
        upsert_many(connection, t.explanations, [explanation(n, "text") for n in range(3)], key)
        insert_many(connection, t.scores, [score(n) for n in range(3)])
        insert_many(connection, t.scores, [])
        own = ("explanation_id", "scorer", "scorer_model")
        keys = [{name: score(n)[name] for name in own} for n in (0, 2)]
        delete_many(connection, t.scores, [*keys, keys[0], {**keys[0], "scorer": "other"}])
        delete_many(connection, t.scores, [])
    assert rows_of(store, "SELECT unit, value, ci_low, n_tokens FROM scores") == [(1, 0.1, None, 5)]
    (stored,) = rows_of(store, "SELECT * FROM scores")
    changed = tuple(0.7 if c.name == "value" else v for c, v in zip(t.scores.columns, stored, strict=True))
    with store.write() as connection:
        update_tuples(connection, t.scores, [changed, (999, *changed[1:])])
        update_tuples(connection, t.scores, [])
    assert rows_of(store, "SELECT * FROM scores") == [changed]
