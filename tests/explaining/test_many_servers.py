"""Several servers are as good as one: what is stored does not depend on how many answer, or on which does."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest

from neuroexplain.config import EngineConfig, ExplainConfig, ScoreConfig
from neuroexplain.errors import EngineError, EngineLost
from neuroexplain.explaining.engines import open_engines
from neuroexplain.explaining.run import run_explain
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId
from tests.answering import AnsweringServer

UNITS = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(8))
TABLES = ("explanations", "predictions", "scores")
# When a thing was done, and ids, which depend on the order in which answers come.
NOT_CONTENT = {"id", "created_at", "seconds", "explanation_id", "control_explanation_id", "prediction_id"}
# A question that two predictions share counts for the first of them: only the sum is always the same.
NOT_CONTENT |= {"prompt_tokens"}

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("neuroexplain.llm.gate.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("neuroexplain.llm.replicas.FIRST_PAUSE", 0.05)
    monkeypatch.setattr("neuroexplain.llm.replicas.WATCH_EVERY", 0.05)


def explain(collected, db, during=lambda progress, lines: None, **engine):
    """Explain the units in a copy of the collected database. Returns the lines that a person is shown.

    during: called with each step's progress and the lines up to then.
    """
    db.write_bytes((collected / "x.db").read_bytes())
    lines = []
    config = EngineConfig(**{"max_wait": 20.0, "in_flight": 4, **engine})
    with open_store(str(db)) as store:
        run = load_run(store)
        opened = open_engines(run, config, ScoreConfig(("words",)), explains=True, tell=lines.append)
        with opened as (llm, scorers):
            explain_config = ExplainConfig(UNITS, "pairs", candidates=2)
            for progress in run_explain(store, run, explain_config, llm, scorers[0]):
                during(progress, lines)
    return lines


def content(db):
    """The rows of what was explained and scored, and the tokens that it took."""
    with closing(sqlite3.connect(db)) as connection:
        connection.row_factory = sqlite3.Row
        rows = {}
        for table in TABLES:
            read = connection.execute(f"SELECT * FROM {table}")  # noqa: S608  (our own names)
            kept = [{k: row[k] for k in row.keys() if k not in NOT_CONTENT} for row in read]  # noqa: SIM118
            rows[table] = sorted(map(repr, kept))
        tokens = "SELECT sum(prompt_tokens), sum(completion_tokens) FROM sessions"
        return rows, [tuple(row) for row in connection.execute(tokens)]


@pytest.fixture(scope="session")
def expected(collected, tmp_path_factory):
    """What one server's answers come to."""
    server, db = AnsweringServer(collected / "model"), tmp_path_factory.mktemp("one") / "x.db"
    lines = explain(collected, db, server=server.url)
    server.kill()
    assert lines[0] == f"Asking tiny at {server.url}/v1 (vllm 0.32.0)."
    rows, _ = stored = content(db)
    assert len(rows["explanations"]) == 2 * len(UNITS)
    assert "vllm 0.32.0, logprob_token_ids" in rows["predictions"][0]
    return stored


def urls(*servers):
    return ",".join(server.url for server in servers)


def test_three_servers_store_what_one_does(collected, serve, tmp_path, expected):
    servers = [serve() for _ in range(3)]
    seen = []
    lines = explain(collected, tmp_path / "x.db", lambda p, _: seen.append(p.servers), server=urls(*servers))
    assert content(tmp_path / "x.db") == expected
    assert lines[0].startswith(f"Asking tiny at 3 servers, {servers[0].url}/v1, ")
    assert set(seen[1:]) == {(3, 3)}
    assert min(server.n_texts for server in servers) >= 3


def test_one_of_two_killed_half_way_costs_no_answer(collected, serve, tmp_path, expected):
    dying, other = serve(kill_after=16), serve()
    seen = []
    lines = explain(
        collected, tmp_path / "x.db", lambda p, _: seen.append(p.servers), server=urls(dying, other)
    )
    assert content(tmp_path / "x.db") == expected
    assert any(f"{dying.url}/v1 is left out" in line and "1 of 2 servers answer" in line for line in lines)
    assert seen[-2] == (1, 2)


def test_a_server_that_comes_back_is_used_again(collected, serve, tmp_path, expected):
    dying, slow = serve(kill_after=12), serve(slow=0.1)
    again = []

    def restart(progress, lines):
        if progress.servers == (1, 2) and not again:
            again.append(serve(port=dying.server_port))
            wait_until(lambda: any("2 of 2" in line for line in lines))

    lines = explain(collected, tmp_path / "x.db", restart, server=urls(dying, slow))
    assert content(tmp_path / "x.db") == expected
    assert any(f"{dying.url}/v1 answers. 2 of 2 servers answer" in line for line in lines)
    assert len(again[0].bodies) >= 4


def test_a_server_that_joins_by_the_file_takes_its_part_and_one_that_leaves_gets_nothing_more(
    collected, serve, tmp_path, expected
):
    first, second, file = serve(slow=0.02), serve(), tmp_path / "servers.txt"
    file.write_text(f"# the first alone\n{first.url}   # on this machine\n")
    n_of_first = []

    def change(progress, lines):
        if progress.done == 3 and progress.servers == (1, 1):
            file.write_text(f"{first.url}\n{second.url}\n{second.url}/v1\n")
            wait_until(lambda: len(second.bodies) > 3)
        elif progress.servers == (2, 2) and progress.done >= 8 and not n_of_first:
            file.write_text(f"{second.url}\n")
            wait_until(lambda: any("No longer listed" in line for line in lines))
            time.sleep(0.3)
            n_of_first.append(len(first.bodies))

    lines = explain(collected, tmp_path / "x.db", change, servers=str(file))
    assert content(tmp_path / "x.db") == expected
    assert f"The server at {second.url}/v1 answers. 2 of 2 servers answer." in lines
    assert f"No longer listed: {first.url}/v1. 1 of 1 servers answer." in lines
    assert len(first.bodies) == n_of_first[0]
    assert len(second.bodies) > 20


def wait_until(holds, seconds=5.0):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)


def test_a_slow_server_gets_the_smaller_part(collected, serve, tmp_path, expected):
    slow, quick, other = serve(slow=1.0), serve(), serve()
    explain(collected, tmp_path / "x.db", server=urls(slow, quick, other))
    assert content(tmp_path / "x.db") == expected
    assert 0 < len(slow.bodies) < min(len(quick.bodies), len(other.bodies))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"card": {"id": "other", "max_model_len": 4096}}, "serves other, and {first}/v1 serves tiny"),
        ({"version": "0.31.0"}, "runs vllm 0.31.0, and {first}/v1 runs vllm 0.32.0"),
        ({"exact": False}, "gives no probabilities by logprob_token_ids"),
        ({"shift": -3.0}, "gives other probabilities by logprob_token_ids"),
    ],
)
def test_a_server_that_would_answer_otherwise_is_refused(
    collected, serve, tmp_path, expected, answers, message
):
    first, other, file = serve(slow=0.01), serve(**answers), tmp_path / "servers.txt"
    with pytest.raises(EngineError) as refused:
        explain(collected, tmp_path / "x.db", server=urls(first, other))
    assert f"{other.url}/v1 {message.format(first=first.url)}" in str(refused.value)
    file.write_text(f"{first.url}\n")

    def join(progress, lines):
        if progress.done == 2 and progress.servers == (1, 1):
            file.write_text(f"{first.url}\n{other.url}\n")
            wait_until(lambda: any(other.url in line for line in lines))

    lines = explain(collected, tmp_path / "x.db", join, servers=str(file))
    assert sum("1 of 2 servers answer" in line and other.url in line for line in lines) == 1
    assert content(tmp_path / "x.db") == expected
    assert other.n_texts == 0


def test_without_any_server_the_command_waits_and_ends_as_with_one(collected, serve, tmp_path):
    dying, other = serve(kill_after=20), serve(kill_after=20)
    began = time.monotonic()
    with pytest.raises(EngineLost, match=r"None of 2 servers answered for 1\.5 seconds"):
        explain(collected, tmp_path / "x.db", server=urls(dying, other), max_wait=1.5)
    assert 1.5 < time.monotonic() - began < 15


def test_without_any_server_for_a_while_the_command_goes_on(collected, serve, tmp_path, expected):
    dying, other = serve(kill_after=20), serve(kill_after=20)
    timer = threading.Timer(3.0, lambda: serve(port=other.server_port))
    timer.start()
    explain(collected, tmp_path / "x.db", server=urls(dying, other))
    assert content(tmp_path / "x.db") == expected
