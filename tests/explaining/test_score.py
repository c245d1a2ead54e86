"""What verify finds of a database that was damaged by hand."""

import re
import sqlite3

import pytest

from neuroexplain.errors import StoreUnreadable
from neuroexplain.explaining.verify import verify_run
from neuroexplain.lookup import load_page
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId

NAMED = {  # in the SQL below
    "here": "layer = 0 AND unit = 3",
    "its": "explanation_id = (SELECT id FROM explanations WHERE layer = 0 AND unit = 3)",
    "copy": "run_id, layer, unit, explainer, 1, 'other', 1, status, text, reason, reply, engine, "
    "engine_version, model, model_revision, prompt_sha256, sampling, prompt_tokens, completion_tokens, "
    "seconds, created_at, covers, parts, side, rule, examples",
}
UNREADABLE = [  # damages of neuron 0:3 alone
    ("DELETE FROM exemplars WHERE {here} AND kind = 'top'", "is not among the positive side's exemplars"),
    (
        "UPDATE exemplars SET activations = substr(activations, 1, 100) WHERE {here}",
        "A row of exemplars .* cannot be read",
    ),
    ("UPDATE exemplars SET starts = x'' WHERE {here}", "A row of exemplars .* cannot be read"),
    (
        "UPDATE exemplars SET segments = substr(segments, 1, 5) WHERE {here}",
        "A row of exemplars .* cannot be read",
    ),
    (
        "UPDATE predictions SET predicted = substr(predicted, 1, 10) WHERE {its}",
        "A row of predictions .* cannot be",
    ),
    ("UPDATE predictions SET ranks = x'00' WHERE {its}", "A row of predictions .* cannot be read"),
    (
        "UPDATE predictions SET kinds = replace(hex(kinds), '0', 'f') WHERE {its}",
        "A row of predictions .* cannot be read",
    ),
    (
        "UPDATE predictions SET firsts = zeroblob(length(firsts)) || x'40' WHERE {its}",
        "A row of predictions .* cannot be read",
    ),
    (
        "UPDATE predictions SET firsts = CAST(replace(hex(zeroblob(length(firsts))), '00', '?') AS BLOB) "
        "WHERE {its}",
        "too late",
    ),
    ("UPDATE predictions SET sampling = '[' WHERE {its}", "A row of predictions .* cannot be read"),
    ("UPDATE explanations SET parts = '[bad' WHERE {here}", "A row of explanations .* cannot be read"),
    ("DELETE FROM units WHERE {here}", "No unit 0:3"),
]
MISPLACED = [
    ("UPDATE scores SET unit = 11 WHERE {its}", "score .* stands under another unit or run"),
    ("UPDATE scores SET run_id = 7 WHERE {its}", "score .* stands under another unit or run"),
    ("UPDATE predictions SET run_id = 7 WHERE {its}", "prediction .* stands under another run"),
    (
        "UPDATE explanations SET status = 'llm_error' WHERE {here}",
        "has scores, though its status is llm_error",
    ),
    (
        "INSERT INTO explanations SELECT 999, {copy} FROM explanations WHERE {here}",
        "0:3: 2 explanations by tokens",
    ),
    ("UPDATE explanations SET chosen = 0 WHERE {here}", "0:3: 0 explanations by tokens"),
    (
        "UPDATE predictions SET control_explanation_id = 9999 WHERE {its}",
        "prediction .* explanation 9999, which is missing",
    ),
    (
        "UPDATE scores SET control_explanation_id = 9999 WHERE {its}",
        "score .* explanation 9999, which is missing",
    ),
    (
        "UPDATE explanations SET prompt_sha256 = 'no' WHERE {here}",
        "explanation .* the prompt no, which is missing",
    ),
    ("DELETE FROM prompts", "prediction .* of the prompt .*, which is missing"),
    (
        "INSERT INTO explanations_fts(explanations_fts) VALUES ('delete-all')",
        "22 explanations are not found by the search",
    ),
    ("DELETE FROM predictions WHERE {its}", "0:3, explanation .* scores of .* without their prediction"),
    ("UPDATE scores SET value = value + 1e-9 WHERE {its}", "0:3, .* differs from the recomputed"),
]


@pytest.fixture
def damaged(hostile, tmp_path):
    """Opens a copy of a database of 22 explanations, 20 of them scored, in which some SQL was run."""

    def open_damaged(sql):
        (tmp_path / "x.db").write_bytes((hostile / "x.db").read_bytes())
        with sqlite3.connect(tmp_path / "x.db") as connection:
            assert connection.execute(sql.format(**NAMED)).rowcount
        return open_store(str(tmp_path / "x.db"), read_only=True)

    return open_damaged


def test_an_undamaged_database_has_no_fault(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        assert list(verify_run(store, load_run(store))) == []


@pytest.mark.parametrize(("sql", "message"), UNREADABLE)
def test_a_row_that_cannot_be_read_is_one_fault_and_the_rest_is_verified(damaged, sql, message):
    with damaged(sql) as store:
        fault, *others = verify_run(store, load_run(store))
    assert fault.startswith("0:3")
    assert_found(message, [fault])
    assert len(others) <= 1  # the records of all units of a layer are checked together
    assert all("layer 0: its records were not checked together" in line for line in others)


@pytest.mark.parametrize(("sql", "message"), MISPLACED)
def test_a_row_in_the_wrong_place_is_a_fault(damaged, sql, message):
    with damaged(sql) as store:
        assert_found(message, list(verify_run(store, load_run(store))))


@pytest.mark.parametrize(
    "sql", ["DELETE FROM segments", "UPDATE segments SET token_ids = substr(token_ids, 1, 9)"]
)
def test_without_segments_every_explained_neuron_is_a_fault(damaged, sql):
    with damaged(sql) as store:
        faults = list(verify_run(store, load_run(store)))
    assert len([line for line in faults if re.match(r"[01]:\d+: ", line)]) == 20
    assert all("not checked together" in line for line in faults[20:])


def test_an_unknown_dtype_is_said_for_every_explained_neuron(damaged):
    with damaged("UPDATE runs SET dtype = 'int4'") as store:
        faults = list(verify_run(store, load_run(store)))
    assert len(faults) == 22
    assert all("there is no dtype 'int4'" in line for line in faults)


@pytest.mark.parametrize("sql", ["UPDATE runs SET config = '[bad'", """UPDATE runs SET layers = '"x"'"""])
def test_a_run_that_cannot_be_read_is_named(damaged, sql):
    with (
        damaged(sql) as store,
        pytest.raises(StoreUnreadable, match=r"A row of runs \(id 1\) cannot be read"),
    ):
        load_run(store)


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("UPDATE vocabulary_readings SET promoted_ids = x'00' WHERE {here}", load_page),
        ("UPDATE exemplars SET peaks = x'00' WHERE {here}", load_page),
        ("UPDATE explanations SET covers = '[' WHERE {here}", load_page),
        ("UPDATE predictions SET detail = x'00' WHERE {its}", load_page),
        (
            "UPDATE exemplars SET peaks = x'00' WHERE {here}",
            lambda store, run, _: load_collected_layer(store, run, 0),
        ),
        (
            "UPDATE vocabulary_readings SET promoted_ids = x'00' WHERE {here}",
            lambda s, run, _: load_collected_layer(s, run, 0),
        ),
        (
            "UPDATE explanations SET sampling = '3' WHERE {here}",
            lambda store, run, _: list_explanations(store, run.id),
        ),
    ],
)
def test_whoever_reads_a_damaged_row_is_told_which_it_is(damaged, sql, read):
    with damaged(sql) as store, pytest.raises(StoreUnreadable, match=r"A row of .* cannot be read"):
        read(store, load_run(store), UnitId(0, 3))


def assert_found(pattern, lines):
    assert any(re.search(pattern, line) for line in lines), lines
