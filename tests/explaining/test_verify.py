"""verify on new runs: sound ones of every sign have no fault, and a changed value of a record is one."""

import sqlite3

import numpy as np
import pytest
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.config import ExplainConfig
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.verify import verify_run
from neuroexplain.llm.local import LocalEngine
from neuroexplain.scorers.base import SCORERS
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from tests.explaining.conftest import collect, write_documents
from tests.fakes import tiny_subject

EXPLAINED, OTHER = UnitId(0, 3), UnitId(1, 17)  # the second has no explanation


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that makes the database of a run with these options, three of its units explained."""
    folder = tmp_path_factory.mktemp("verified")
    write_documents(folder / "text.jsonl", 120)
    model = str(tiny_subject(folder / "model", bos=True))
    engine = LocalEngine(model)

    def make(sign, special_peaks):
        file = folder / f"{sign}-{special_peaks}.db"
        if not file.exists():
            collect(folder, file, model, sign=sign, special_peaks=special_peaks, activation="post")
            with open_store(str(file)) as store:
                run = load_run(store)
                scorer = SCORERS.load("lexical").open(engine, run)
                units = (EXPLAINED, UnitId(0, 4), UnitId(1, 1))
                list(run_explain(store, run, ExplainConfig(units, "tokens"), None, scorer))
        return file

    return make


@pytest.mark.parametrize("special_peaks", [True, False])
@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_a_sound_database_has_no_fault(made, sign, special_peaks):
    with open_store(str(made(sign, special_peaks)), read_only=True) as store:
        run = load_run(store)
        assert bool(run.barred_ids) is not special_peaks
        assert list(verify_run(store, run)) == []
        values = [s.score.value for s in list_scores(store, range(1, 100)) if s.score.subset == "population"]
        assert len([value for value in values if value is not None]) > 6
        sampled = [x for x in load_unit(store, run, OTHER).exemplars if x.kind == "sampled"]
        assert {x.side for x in sampled} == set(run.sides)


def change_blob(connection, sql, column, dtype, change):
    """Change an array of one row. sql: FROM table WHERE ..."""
    (blob,) = connection.execute(f"SELECT {column} FROM {sql}").fetchone()  # noqa: S608  (our own names)
    values = np.frombuffer(blob, dtype).copy()
    change(values)
    table, where = sql.split(" WHERE ")
    done = connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (values.tobytes(),))  # noqa: S608
    assert done.rowcount == 1


def of_unit(table, unit, more=""):
    return f"{table} WHERE layer = {unit.layer} AND unit = {unit.index}{more}"


def other_segment(connection, values):
    """In place of the first number that of a stored segment which is none of them."""
    stored = {number for (number,) in connection.execute("SELECT segment FROM segments")}
    values[0] = min(stored - set(values.tolist()))


def scale(place, factor):
    def change(values):
        values[place] *= factor

    return change


def add(place, term):
    def change(values):
        values[place] += term

    return change


def move_one(values):
    """From one split's count to the next."""
    values[0] -= 1
    values[1] += 1


RANDOM, TOP = " AND kind = 'random'", " AND kind = 'top'"
CHANGES = {
    "a size": lambda c, u: change_blob(c, of_unit("samples", u), "sizes", "<f4", scale(0, 1.001)),
    "the last size": lambda c, u: change_blob(c, of_unit("samples", u), "sizes", "<f4", scale(-1, 0.999)),
    "a threshold": lambda c, u: change_blob(
        c, of_unit("samples", u), "thresholds", "<f8", scale(2, 1 - 1e-9)
    ),
    "a greater threshold": lambda c, u: change_blob(
        c, of_unit("samples", u), "thresholds", "<f8", scale(0, 1e9)
    ),
    "two counts": lambda c, u: change_blob(c, of_unit("samples", u), "counts", "u1", move_one),
    "a count": lambda c, u: change_blob(c, of_unit("samples", u), "counts", "u1", add(0, 1)),
    "a random record's segment": lambda c, u: change_blob(
        c, of_unit("exemplars", u, RANDOM), "segments", "<u4", lambda values: other_segment(c, values)
    ),
    "the order of random records": lambda c, u: change_blob(
        c, of_unit("exemplars", u, RANDOM), "segments", "<u4", lambda v: v.__setitem__([0, 1], v[[1, 0]])
    ),
    "a top record's offset": lambda c, u: change_blob(
        c, of_unit("exemplars", u, TOP), "token_offsets", "<i4", add(0, 1)
    ),
    "a random record's offset": lambda c, u: change_blob(
        c, of_unit("exemplars", u, RANDOM), "token_offsets", "<i4", add(5, -3)
    ),
    "a far offset": lambda c, u: change_blob(
        c, of_unit("exemplars", u, TOP), "token_offsets", "<i4", lambda v: v.__setitem__(0, 2**31 - 1)
    ),
    "a sample that is missing": lambda c, u: c.execute(f"DELETE FROM {of_unit('samples', u)}"),  # noqa: S608
    "a sample of another side": lambda c, u: c.execute(
        f"UPDATE samples SET side = 'negative' WHERE {of_unit('samples', u).split(' WHERE ')[1]}"  # noqa: S608
    ),
}


@pytest.mark.parametrize("unit", [EXPLAINED, OTHER], ids=["explained", "not explained"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_value_of_a_record_is_a_fault(made, tmp_path, name, unit):
    copy = tmp_path / "x.db"
    copy.write_bytes(made("positive", True).read_bytes())
    with sqlite3.connect(copy) as connection:
        CHANGES[name](connection, unit)
    connection.close()
    done = CliRunner().invoke(app, ["verify", "--db", str(copy)])
    assert done.exit_code == 1, done.output
    assert any(
        f"{unit.layer}:{unit.index}" in line or f"ayer {unit.layer}" in line
        for line in done.stdout.splitlines()
    )


@pytest.mark.parametrize("kind", ["top", "random", "sampled"])
@pytest.mark.parametrize("split", ["explain", "select", "report"])
def test_a_changed_split_of_a_segment_is_a_fault(made, tmp_path, kind, split):
    """Also of a segment of which a unit without an explanation has a record, and no other unit."""
    copy = tmp_path / "x.db"
    copy.write_bytes(made("positive", True).read_bytes())
    with open_store(str(copy), read_only=True) as store:
        records = load_unit(store, load_run(store), OTHER).exemplars
    segment = next(x.segment for x in records if x.kind == kind and x.split not in (split, None))
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE segments SET split = ? WHERE segment = ?", (split, segment))
    connection.close()
    done = CliRunner().invoke(app, ["verify", "--db", str(copy)])
    assert done.exit_code == 1
    assert f"its segment {segment} is {split}, and its passage" in done.stdout


@pytest.mark.parametrize("kind", ["random", "sampled"])
def test_a_split_that_is_gone_is_a_fault(made, tmp_path, kind):
    copy = tmp_path / "x.db"
    copy.write_bytes(made("both", True).read_bytes())
    with open_store(str(copy), read_only=True) as store:
        records = load_unit(store, load_run(store), OTHER).exemplars
    segment = next(x.segment for x in records if x.kind == kind)
    with sqlite3.connect(copy) as connection:
        connection.execute("UPDATE segments SET split = NULL WHERE segment = ?", (segment,))
    connection.close()
    assert CliRunner().invoke(app, ["verify", "--db", str(copy)]).exit_code == 1


def test_random_records_in_another_order_in_every_unit_are_a_fault(made, tmp_path):
    copy = tmp_path / "x.db"
    copy.write_bytes(made("positive", True).read_bytes())
    with sqlite3.connect(copy) as connection:
        (n_units,) = connection.execute("SELECT count(*) FROM exemplars WHERE layer = 0 AND kind = 'random'")
        for unit in range(n_units[0]):
            where = of_unit("exemplars", UnitId(0, unit), RANDOM)
            change_blob(connection, where, "segments", "<u4", lambda v: v.__setitem__([0, 1], v[[1, 0]]))
    connection.close()
    done = CliRunner().invoke(app, ["verify", "--db", str(copy)])
    assert done.exit_code == 1
    assert "layer 0: random records are not in the order of splits and hashes" in done.stdout
