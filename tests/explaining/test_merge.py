"""Parts of explaining, merged: the content of one machine's database."""

import sqlite3
from contextlib import ExitStack
from functools import partial

import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Status
from neuroexplain.explaining.controls import find_controls, find_controls_of, list_comparable, run_controls
from neuroexplain.explaining.merge import find_run, run_merge_explained
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.selection import units_of_shard
from neuroexplain.store.copy_rows import COLLECTED
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import PREDICTION_TABLES, SCORE_TABLES, list_predictions
from neuroexplain.store.parts import open_part
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId
from tests.explaining.conftest import collect
from tests.explaining.explained import by_words
from tests.fakes import ScriptedLlm

UNITS = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(4))
ID_COLUMNS = ("id", "run_id", "explanation_id", "control_explanation_id")
COSTS = ("seconds", "created_at", "started_at")


@pytest.fixture(scope="module")
def both_sides(collected):
    """A collected run of both sides, of which nothing is explained."""
    file = collected / "both.db"
    collect(collected, file, str(collected / "model"), sign="both", top_k=8, random_records=16)
    return file


class Machine:
    """Explains parts of one run, each in a file of its own, as several machines would."""

    def __init__(self, folder, collected, local, refusals=()):
        self.folder, self.local = folder, local
        self.whole = folder / "whole.db"
        self.whole.write_bytes(collected.read_bytes())
        self.refusals = set(refusals)  # requests to which an LLM once has no answer
        self.n_asked = 0
        self.controls_later, self.explainer = True, "excerpts"

    def answer(self, messages, sampling):
        text = by_words(messages, sampling)
        if text in self.refusals:
            return ""
        return text

    def explain(self, shard=None, part=None, **options):
        llm = ScriptedLlm(self.answer)
        with ExitStack() as stack:
            store = stack.enter_context(open_store(str(self.whole)))
            run = load_run(store)
            own = units_of_shard(UNITS, shard)
            target = store
            if part is not None:
                target = stack.enter_context(open_part(str(part), store, run, own))
            if own:
                scorer = LexicalSimulator(self.local, run.tokenizer_sha256)
                config = ExplainConfig(tuple(own), self.explainer, **options)
                later = shard is not None and self.controls_later
                list(run_explain(target, run, config, llm, scorer, records=store, controls_later=later))
        self.n_asked += len(llm.requests)

    def make_controls(self, shard=None, part=None):
        with ExitStack() as stack:
            store = stack.enter_context(open_store(str(self.whole)))
            run = load_run(store)
            among = list_comparable(store, run)
            units = set(units_of_shard({e.unit for e in among}, shard))
            own = [e for e in among if e.unit in units]
            controls = {e.id for of_part in find_controls(own, among).values() for e in of_part.values()}
            target = store
            if part is not None:
                target = stack.enter_context(open_part(str(part), store, run, units, controls))
            scorer = LexicalSimulator(self.local, run.tokenizer_sha256)
            list(run_controls(target, run, own, scorer, records=store))

    def in_parts(self, n, name, work):
        """Files of n parts on which `work(shard, file)` was done."""
        files = [self.folder / f"{name}{i}of{n}.db" for i in range(1, n + 1)]
        for number, file in enumerate(files, 1):
            work(shard=(number, n), part=file)
        return files


def merge(files, into):
    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(str(file), read_only=True)) for file in files]
        target = stack.enter_context(open_store(str(into), create=True))
        parts = [(store, load_run(store)) for store in stores]
        notes = [p.note for p in run_merge_explained(parts, target) if p.note]
        assert find_run(parts, target) is not None
        return notes


def content(file):
    """Every row that explaining wrote, by table, without ids and times; references by unit and request."""
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    keys = {
        row["id"]: (row["layer"], row["unit"], row["request_key"])
        for row in connection.execute("SELECT * FROM explanations")
    }
    tables = {}
    explained = ("explanations", *PREDICTION_TABLES.values(), *SCORE_TABLES.values())
    for table in (*explained, "prompts"):
        rows = []
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608  (our own names)
            values = {name: row[name] for name in row.keys() if name not in (*ID_COLUMNS, *COSTS)}  # noqa: SIM118
            for name in ("explanation_id", "control_explanation_id"):
                if name in row.keys():  # noqa: SIM118
                    values[name] = keys.get(row[name])
            rows.append(values)
        tables[table] = sorted(rows, key=repr)
    connection.close()
    return tables


def assert_sound(file):
    with open_store(str(file), read_only=True) as store:
        assert list(verify_run(store, load_run(store))) == []


def refused_texts(file):
    """The answers to three of the requests of the first candidate, of both sides."""
    rows = [row for row in content(file)["explanations"] if row["candidate"] == 0 and row["text"]]
    assert len({row["text"] for row in rows}) == len(rows)
    return [row["text"] for row in rows[::4]]


@pytest.fixture(scope="module")
def alone(both_sides, local, tmp_path_factory):
    """One machine: some requests fail, then --retry-failed, with three candidates; controls at the end."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "first").mkdir()
    first = Machine(folder / "first", both_sides, local)
    first.explain(candidates=3)
    machine = Machine(folder, both_sides, local, refused_texts(first.whole))
    machine.explain(candidates=3)
    before = content(machine.whole)
    assert {row["status"] for row in before["explanations"]} >= {"ok", "parse_error"}
    sides = {row["side"] for row in before["explanations"]}
    assert sides == {"positive", "negative"}
    assert any(row["control_explanation_id"] for row in before["predictions"])
    assert_sound(machine.whole)
    return machine, before


@pytest.mark.parametrize("n", [2, 3])
def test_merged_parts_with_their_controls_equal_one_machine(alone, both_sides, local, tmp_path, n):
    alone_machine, expected = alone
    many = Machine(tmp_path, both_sides, local, alone_machine.refusals)
    files = many.in_parts(n, "explained", partial(many.explain, candidates=3))
    assert many.n_asked == alone_machine.n_asked
    assert all(row["control_explanation_id"] is None for f in files for row in content(f)["predictions"])
    merge(files, many.whole)
    once = content(many.whole)
    assert once["explanations"] == expected["explanations"]
    merge(files[::-1], many.whole)  # again, in another order
    assert content(many.whole) == once
    controls = many.in_parts(n, "controls", many.make_controls)
    merge(controls, many.whole)
    assert content(many.whole) == expected
    merge([*controls, *files], many.whole)  # parts without controls take none away
    assert content(many.whole) == expected
    assert_sound(many.whole)


def test_rules_of_merged_parts_and_their_controls_equal_those_of_one_machine(both_sides, local, tmp_path):
    machines = []
    for name in ("alone", "many"):
        (tmp_path / name).mkdir()
        machines.append(Machine(tmp_path / name, both_sides, local))
        machines[-1].explainer = "category"
    alone, many = machines
    alone.explain()
    expected = content(alone.whole)
    assert len(expected["rule_scores"]) > len(expected["rule_predictions"]) > 0
    assert all(row["control_explanation_id"] for row in expected["rule_predictions"])
    merge(many.in_parts(2, "explained", many.explain), many.whole)
    merge(many.in_parts(2, "controls", many.make_controls), many.whole)
    assert content(many.whole) == expected
    assert_sound(many.whole)


def test_controls_can_be_made_where_the_parts_were_merged(alone, both_sides, local, tmp_path):
    alone_machine, expected = alone
    many = Machine(tmp_path, both_sides, local, alone_machine.refusals)
    merge(many.in_parts(3, "explained", partial(many.explain, candidates=3)), many.whole)
    many.make_controls()
    assert content(many.whole) == expected


def test_copies_of_the_whole_are_merged_into_a_new_database(alone, both_sides, local, tmp_path):
    """Machines without a shared disk: each has a copy, and what is merged has the records too."""
    alone_machine, expected = alone
    files = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        machine = Machine(tmp_path / str(number), both_sides, local, alone_machine.refusals)
        machine.explain(shard=(number, 2), candidates=3)
        files.append(machine.whole)
    many = Machine(tmp_path, both_sides, local)
    many.whole = tmp_path / "new.db"
    merge(files, many.whole)
    merge([many.whole, files[0]], many.whole)  # what was merged is a part too
    many.make_controls()
    assert content(many.whole) == expected
    assert_sound(many.whole)
    assert records_of(many.whole) == records_of(both_sides)


def records_of(file):
    """What collecting wrote, by table, without ids."""
    with sqlite3.connect(file) as connection:
        tables = [table.name for table in COLLECTED]
        rows = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in tables}  # noqa: S608
    connection.close()
    return {name: sorted(own[name == "exemplars" :] for own in rows[name]) for name in tables}


def test_an_attempt_that_succeeded_replaces_the_failed_one_everywhere(alone, both_sides, local, tmp_path):
    """--retry-failed in a part, or on the merged database, equals that of one machine."""
    alone_machine, _ = alone
    expected = Machine(tmp_path, alone_machine.whole, local)
    expected.explain(candidates=3, retry_failed=True)
    (tmp_path / "many").mkdir()
    many = Machine(tmp_path / "many", alone_machine.whole, local)
    n_failed = sum(row["status"] == "parse_error" for row in content(many.whole)["explanations"])
    assert n_failed
    files = many.in_parts(2, "retried", partial(many.explain, candidates=3, retry_failed=True))
    assert many.n_asked == expected.n_asked == n_failed
    merge(files, many.whole)
    many.make_controls()
    assert content(many.whole) == content(expected.whole)
    merge([alone_machine.whole], many.whole)  # the failed attempts do not come back
    assert content(many.whole) == content(expected.whole)
    assert_sound(many.whole)


def test_a_part_goes_on_where_it_was_and_can_be_merged_half_way(alone, both_sides, local, tmp_path):
    alone_machine, expected = alone
    many = Machine(tmp_path, both_sides, local, alone_machine.refusals)
    file = tmp_path / "part.db"
    many.explain(shard=(1, 2), part=file, candidates=1)
    merge([file], many.whole)
    many.explain(shard=(1, 2), part=file, candidates=3)  # other candidates are chosen now
    n_asked = many.n_asked
    many.explain(shard=(1, 2), part=file, candidates=3)
    assert many.n_asked == n_asked
    many.explain(shard=(2, 2), part=tmp_path / "other.db", candidates=3)
    merge([file, tmp_path / "other.db"], many.whole)
    many.make_controls()
    assert content(many.whole)["scores"] == expected["scores"]
    chosen = lambda tables: [r for r in tables["explanations"] if r["chosen"]]  # noqa: E731
    assert chosen(content(many.whole)) == chosen(expected)


def test_either_kind_of_database_takes_parts_and_is_one(database, alone, both_sides, local, tmp_path):
    """Copies into a new database, PostgreSQL where there is one, and that into a new file."""
    alone_machine, expected = alone
    many = Machine(tmp_path, both_sides, local, alone_machine.refusals)
    many.explain(shard=(1, 2), candidates=3)
    other = many.in_parts(2, "explained", partial(many.explain, candidates=3))[1]
    many.whole.rename(tmp_path / "first.db")
    many.whole = database
    merge([tmp_path / "first.db", other], database)
    many.make_controls()
    controls = many.in_parts(2, "controls", many.make_controls)  # of what has controls
    merge([*controls, other], database)
    merge([database], tmp_path / "back.db")
    assert content(tmp_path / "back.db") == expected
    assert records_of(tmp_path / "back.db") == records_of(both_sides)
    assert_sound(database)


def test_sessions_are_merged_once(both_sides, local, tmp_path):
    many = Machine(tmp_path, both_sides, local)
    files = many.in_parts(2, "explained", many.explain)
    for _ in range(2):
        merge(files, many.whole)
        rows = sqlite3.connect(many.whole).execute("SELECT n_neurons FROM sessions").fetchall()
        assert sum(n for (n,) in rows) == 2 * len(UNITS)  # sides
        assert len(rows) == 2


def test_another_answer_to_the_same_request_does_not_replace_a_scored_one(both_sides, local, tmp_path):
    many = Machine(tmp_path, both_sides, local)
    many.explain()
    before = content(many.whole)
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other", both_sides, local)
    other.answer = lambda messages, sampling: "something else"
    other.explain()
    (note,) = merge([other.whole], many.whole)
    n = sum(row["status"] == Status.OK for row in before["explanations"])
    assert note.startswith(f"{n} explanations of ")
    assert content(many.whole) == before


def test_parts_with_other_records_are_refused(both_sides, local, tmp_path):
    many = Machine(tmp_path, both_sides, local)
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other", both_sides, local)
    other.explain(shard=(1, 2))
    with sqlite3.connect(other.whole) as connection:  # a bit of one activation
        unit = units_of_shard(UNITS, (1, 2))[-1]
        where = f"layer = {unit.layer} AND unit = {unit.index} AND kind = 'random'"
        sql = f"SELECT activations FROM exemplars WHERE {where}"  # noqa: S608  (our own numbers)
        ((data,),) = connection.execute(sql).fetchall()
        changed = data[:-1] + bytes([data[-1] ^ 1])
        connection.execute(f"UPDATE exemplars SET activations = ? WHERE {where}", (changed,))  # noqa: S608
    connection.close()
    before = content(many.whole)
    with pytest.raises(NeuroexplainError, match=f"different records of unit {unit}:"):
        merge([other.whole], many.whole)
    assert content(many.whole) == before


def test_parts_of_other_runs_are_refused(collected, both_sides, local, tmp_path):
    many = Machine(tmp_path, both_sides, local)
    file = tmp_path / "part.db"
    many.explain(shard=(1, 2), part=file)
    with pytest.raises(NeuroexplainError, match=r"part\.db is a part without records.*--into FILE"):
        merge([file], tmp_path / "new.db")
    with pytest.raises(NeuroexplainError, match=r"different collections\. top_k: 8 in"):
        merge([file, collected / "x.db"], tmp_path / "new.db")
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE runs SET started_at = '2020-01-01T00:00:00+00:00'")
    connection.close()
    with pytest.raises(NeuroexplainError, match="explained from a collection of 2020-01-01"):
        merge([file], many.whole)
    with pytest.raises(NeuroexplainError, match="is no part of this run"):
        many.explain(shard=(1, 2), part=file)


def test_every_unit_is_in_one_part():
    units = [UnitId(layer, index) for layer in range(3) for index in range(1000)]
    parts = [units_of_shard(units, (number, 7)) for number in range(1, 8)]
    assert sorted(unit for part in parts for unit in part) == units
    assert all(350 < len(part) < 510 for part in parts)
    assert units_of_shard(units[5:9], None) == units[5:9]


def test_controls_do_not_depend_on_the_command(both_sides, local, tmp_path):
    """Explained in two commands, the second one's controls come from the whole run."""
    machine = Machine(tmp_path, both_sides, local)
    machine.controls_later = False
    machine.explain(shard=(1, 2))
    machine.explain(shard=(2, 2))
    with open_store(str(machine.whole)) as store:
        run = load_run(store)
        among = list_comparable(store, run)
        last = [e for e in among if units_of_shard([e.unit], (2, 2))]
        controls = {e.id: control.id for e in last for control in find_controls_of([e], among).values()}
        predictions = list_predictions(store, [e.id for e in last])
    assert controls == {p.explanation_id: p.control_explanation_id for p in predictions}
    assert not set(controls.values()) <= {e.id for e in last}
