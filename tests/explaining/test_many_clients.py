"""Several clients explain into one PostgreSQL database: the content is that of one, whatever befalls them."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.explaining.plan import list_chosen
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.score import run_score
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.store.copy_rows import copy_collection
from neuroexplain.store.engine import open_store
from neuroexplain.store.leases import Leases
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId
from tests.answering import AnsweringServer
from tests.conftest import new_postgresql

LEASE = 3.0
N_UNITS, N_EXPLANATIONS = 24, 48
COMMAND = f"""
from neuroexplain.store import leases
leases.LEASE_SECONDS = leases.STANDSTILL_SECONDS = {LEASE}
from neuroexplain.cli.main import main
main()
"""
TABLES = ("explanations", "predictions", "rule_predictions", "scores", "rule_scores", "prompts")
# When a thing was done, and ids, which depend on the order in which answers come.
NOT_CONTENT = {"id", "created_at", "seconds", "explanation_id", "control_explanation_id", "prediction_id"}
NOT_CONTENT |= {"prompt_tokens"}  # a question that two predictions share counts for the first of them


@pytest.fixture
def database(postgresql, collected):
    copy(collected, postgresql)
    return postgresql


def copy(collected, url):
    with (
        open_store(str(collected / "x.db")) as source,
        open_store(url, create=True) as into,
        into.bulk_writing(),
    ):
        list(copy_collection(source, load_run(source), into))


def start(database, server, *more):
    options = ("--units", "0:0-11,1:0-11", "--explainer", "pairs", "--candidates", "2", "--control")
    engine = ("--scorer", "words", "--server", server.url, "--in-flight", "4")
    command = [sys.executable, "-c", COMMAND, "explain", "--db", database, *options, *engine, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def end(process, status=0):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return errors


def rows_of(database, sql):
    with open_store(database, read_only=True) as store, store.read() as reader:
        return reader.rows(sql)


def content(database):
    rows = {}
    with open_store(database, read_only=True) as store, store.read() as reader:
        for table in TABLES:
            read = [row._asdict() for row in reader.rows(f"SELECT * FROM {table}")]  # noqa: S608  (our own)
            kept = [{k: v for k, v in row.items() if k not in NOT_CONTENT} for row in read]
            rows[table] = sorted(map(repr, kept))
        assert reader.column("SELECT holder FROM leases") == []
        assert list(verify_run(store, load_run(store))) == []
    return rows


def wait_until_in_work(database, n_clients):
    """Until some units are explained and these clients work on others."""
    sql = "SELECT (SELECT count(DISTINCT holder) FROM leases) AS n, count(*) AS n_stored FROM explanations"
    for _ in range(3000):
        (row,) = rows_of(database, sql)
        if row.n == n_clients and row.n_stored:
            return
        time.sleep(0.05)
    pytest.fail("the clients are not at work")


@pytest.fixture(scope="module")
def expected(collected):
    """What one client makes of it, and the number of texts that it asks for."""
    for url in new_postgresql():
        copy(collected, url)
        server = AnsweringServer(collected / "model")
        end(start(url, server))
        server.kill()
        stored = content(url)
        assert len(stored["explanations"]) == N_EXPLANATIONS
        controls = "SELECT scorer, count(control_explanation_id) AS n FROM predictions GROUP BY scorer"
        assert {row.scorer: row.n for row in rows_of(url, controls)} == {"words": N_UNITS}
        yield stored, server.n_texts


def test_two_clients_share_the_units_and_ask_for_none_twice(database, serve, expected):
    stored, n_texts = expected
    server = serve(slow=0.02)
    for process in [start(database, server), start(database, server)]:
        errors = end(process)
        assert "24/24" in errors or "24 of 24" in errors
    assert content(database) == stored
    assert server.n_texts == n_texts
    shares = rows_of(
        database, "SELECT n_neurons, scorer, explainer FROM sessions WHERE explainer IS NOT NULL"
    )
    assert len(shares) == 2
    assert sum(row.n_neurons for row in shares) == N_UNITS


def test_when_one_is_killed_the_other_takes_its_units_over(database, serve, expected):
    server = serve(slow=0.15)
    dying, other = start(database, server), start(database, server)
    wait_until_in_work(database, 2)
    dying.kill()
    dying.communicate()
    end(other)
    assert content(database) == expected[0]


def test_a_client_that_stood_still_stores_nothing_of_what_others_took_over(database, serve, expected):
    server = serve(slow=0.15)
    still, other = start(database, server), start(database, server)
    wait_until_in_work(database, 2)
    still.send_signal(signal.SIGSTOP)
    end(other)
    everything = "SELECT * FROM explanations ORDER BY id"
    before = rows_of(database, everything)
    predicted = rows_of(database, "SELECT * FROM predictions ORDER BY id")
    assert len(before) == N_EXPLANATIONS
    still.send_signal(signal.SIGCONT)
    still.communicate(timeout=300)
    assert still.returncode in (0, 2)  # 2: it stood still in a transaction, which the server has broken off
    assert rows_of(database, everything) == before
    assert rows_of(database, "SELECT * FROM predictions ORDER BY id") == predicted
    assert content(database) == expected[0]


def test_other_writers_are_told_who_explains(database, serve):
    server = serve(slow=0.2)
    process = start(database, server)
    wait_until_in_work(database, 1)
    errors = end(start(database, server, "--retry-failed"), status=2)
    assert f"already: neuroexplain explain, process {process.pid} on " in errors
    process.send_signal(signal.SIGINT)
    end(process, status=130)
    assert rows_of(database, "SELECT holder FROM leases") == []


def test_a_client_says_that_it_waits_for_others(database):
    with open_store(database) as store, open_store(database) as store_of_other:
        run = load_run(store)
        other = Leases(store_of_other, run.id)
        units = tuple(UnitId(0, n) for n in range(5))
        other.claim([(unit, "positive") for unit in units[:2]])
        seen = []
        for progress in run_explain(store, run, ExplainConfig(units, "tokens"), None, None):
            seen.append(progress)
            if sum(earlier == progress for earlier in seen) == 3:  # it has waited for some seconds
                other.release_all()
    notes = [progress.note for progress in seen if progress.note]
    assert notes[0] == "Waiting for other processes, which have the 2 that are left."
    assert len(notes) == 2  # and the summary
    assert [progress.done for progress in seen if progress.note] == [3, 5]


def test_scoring_and_controls_are_shared_out_too(database, collected, local, tmp_path):
    units = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(12))
    config = ExplainConfig(units, "tokens")
    (tmp_path / "x.db").write_bytes((collected / "x.db").read_bytes())
    scores = []
    for url, n_clients in ((str(tmp_path / "x.db"), 1), (database, 2)):
        with open_store(url) as store:
            run = load_run(store)
            list(run_explain(store, run, config, None, None))

        def score(url=url, run=run):
            with open_store(url) as store:
                scorer = LexicalSimulator(local, run.tokenizer_sha256)
                chosen = list_chosen(store, run, config, None)
                *_, last = run_score(store, run, chosen, scorer)
                assert (last.done, last.total) == (len(units), len(units))

        clients = [threading.Thread(target=score) for _ in range(n_clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        sql = (
            "SELECT e.layer, e.unit, s.split, s.subset, s.metric, s.value, s.control, s.control_reason"
            " FROM scores s JOIN explanations e ON e.id = s.explanation_id ORDER BY 1, 2, 3, 4, 5"
        )
        scores.append([tuple(row) for row in rows_of(url, sql)])
        done = rows_of(url, "SELECT n_neurons FROM sessions WHERE scorer = 'lexical'")
        assert len(done) == n_clients
        assert sum(row.n_neurons for row in done) == len(units)
    assert any(control is not None for *_, control, _ in scores[0])
    assert scores[0] == scores[1]
