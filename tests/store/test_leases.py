"""Leases: one process at a time works on a side, and stores nothing when its time is over."""

import threading
import time

import pytest

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Explanation, ExplanationResult, Provenance
from neuroexplain.store import leases as leases_module
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.leases import Leases, open_leases
from neuroexplain.store.save_collected import create_run
from neuroexplain.store.save_explained import save_explained
from neuroexplain.units import UnitId
from tests.fakes import run_fields

SIDES = [(UnitId(layer, n), side) for layer in (0, 1) for n in (3, 1) for side in ("positive", "negative")]
NOWHERE = Provenance("none", None, "m", None, None)


@pytest.fixture
def store(postgresql):
    with open_store(postgresql, create=True) as opened:
        create_run(opened, run_fields(2, 9))
        yield opened


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", 0.5)


def holders(store):
    with store.read() as reader:
        return {row.holder for row in reader.rows("SELECT holder FROM leases")}


def result(side, text):
    return ExplanationResult(Explanation(side[0], "x", "ok", text, NOWHERE, side=side[1]))


def stored(store):
    return {(e.unit_side, e.text) for e in list_explanations(store, 1)}


def test_a_side_is_claimed_by_one_process(store):
    first, second = Leases(store, 1), Leases(store, 1)
    assert first.claim(SIDES[:5]) == set(SIDES[:5])
    assert second.claim(SIDES) == set(SIDES[5:])
    first.release(SIDES[:2])
    assert second.claim(SIDES) == set(SIDES[:2])
    assert first.take_lost() == second.take_lost() == set()
    second.release_all()
    assert first.claim(SIDES) == set(SIDES) - set(SIDES[2:5])  # those it has already stay as they are


def test_other_runs_have_leases_of_their_own(store):
    create_run(store, run_fields(2, 9))
    assert Leases(store, 1).claim(SIDES) == Leases(store, 2).claim(SIDES) == set(SIDES)


def test_who_has_the_lease_stores_and_ends_it(store):
    leases = Leases(store, 1)
    leases.claim(SIDES[:2])
    save_explained(store, 1, [result(SIDES[0], "text")], leases)
    assert stored(store) == {(SIDES[0], "text")}
    assert Leases(store, 1).claim(SIDES[:2]) == {SIDES[0]}


def test_an_ended_lease_stores_nothing_even_if_nobody_else_has_it(store, short):
    leases = Leases(store, 1)
    leases.claim(SIDES[:1])
    time.sleep(0.7)
    leases.claim(SIDES[1:2])
    both = [result(side, "late") for side in SIDES[:2]]
    saved = save_explained(store, 1, both, leases)
    assert [r.explanation.unit_side for r in saved] == [SIDES[1]]
    assert stored(store) == {(SIDES[1], "late")}
    assert leases.take_lost() == {SIDES[0]}
    assert holders(store) == set()


def test_a_lease_that_another_process_took_over_stores_nothing(store, short):
    slow, quick = Leases(store, 1), Leases(store, 1)
    slow.claim(SIDES[:1])
    time.sleep(0.7)
    assert quick.claim(SIDES[:1]) == {SIDES[0]}
    slow.renew()  # what has ended is not renewed
    assert save_explained(store, 1, [result(SIDES[0], "slow")], slow) == []
    assert len(save_explained(store, 1, [result(SIDES[0], "quick")], quick)) == 1
    assert stored(store) == {(SIDES[0], "quick")}
    assert (slow.take_lost(), quick.take_lost()) == ({SIDES[0]}, set())


def test_a_living_process_keeps_its_leases_and_ends_them(store, short):
    with open_leases(store, 1) as leases:
        leases.claim(SIDES)
        time.sleep(1.5)
        assert Leases(store, 1).claim(SIDES) == set()
        save_explained(store, 1, [result(SIDES[0], "after three times its length")], leases)
        assert leases.take_lost() == set()
    assert len(stored(store)) == 1
    assert holders(store) == set()


def test_while_results_are_stored_nobody_takes_the_side_and_then_sees_them(store, short):
    slow, quick, seen = Leases(store, 1), Leases(store, 1), []
    slow.claim(SIDES[:1])

    def take_over():
        seen.append((quick.claim(SIDES[:1]), len(stored(store))))

    with store.write() as connection:
        assert slow.end(connection, SIDES[:1]) == {SIDES[0]}
        time.sleep(0.7)  # the lease ends while the transaction goes on
        other = threading.Thread(target=take_over)
        other.start()
        time.sleep(0.3)
        assert seen == []
        sql = (
            "INSERT INTO explanations SELECT 1, 1, 0, 3, 'x', 0, 'k', true, 'ok', 'text', null, null, 'none',"
            " null, 'm', null, null, '{}', 0, 0, 0, '2026'"
        )
        connection.exec_driver_sql(sql)
    other.join()
    assert seen == [({SIDES[0]}, 1)]


def test_a_transaction_that_stands_still_is_broken_off(store, short, monkeypatch):
    monkeypatch.setattr(leases_module, "STANDSTILL_SECONDS", 0.5)
    slow = Leases(store, 1)
    slow.claim(SIDES[:1])
    taken = []

    def stand_still():
        with store.write() as connection:
            assert slow.end(connection, SIDES[:1]) == {SIDES[0]}
            time.sleep(0.7)
            taken.append(Leases(store, 1).claim(SIDES[:1]))  # while the first transaction seems to go on
            connection.exec_driver_sql("SELECT 1")

    with pytest.raises(NeuroexplainError, match="Could not write"):
        stand_still()
    assert taken == [{SIDES[0]}]


def test_many_processes_share_all_sides_out_without_waiting_for_each_other_forever(store):
    sides = [(UnitId(layer, n), "positive") for layer in range(4) for n in range(50)]
    claimed = []

    def work(seed):
        leases = Leases(store, 1)
        for first in range(0, len(sides), 10):
            batch = sides[first : first + 10]
            own = leases.claim(batch[seed:] + batch[:seed])
            leases.renew()
            claimed.extend(own)
            if own:
                save_explained(store, 1, [result(side, f"by {seed}") for side in own], leases)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(claimed) == set(sides)
    assert {side for side, _ in stored(store)} == set(sides)


def test_on_sqlite_there_are_none(tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store, open_leases(store, 1) as leases:
        assert leases is None
