"""Two real vLLM servers that answer together, of which one is killed half way."""

import os
import re
import sqlite3
import time
from contextlib import closing

import httpx
import pytest

from tests.vllm.test_real_server import (
    EXPLAIN,
    MODEL,
    NEURONS,
    Served,
    collected,  # noqa: F401  (a fixture)
    copy_of,
    read_results,
    run,
    start,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def servers():
    """Two servers of the same model, with a cache of 1 GiB each."""
    before = os.environ["VLLM_CPU_KVCACHE_SPACE"]
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    both = []
    try:
        both += [Served(), Served()]
        yield both
    finally:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = before
        for server in both:
            if server.process.poll() is None:
                server.kill()


def n_answered(server):
    """Requests that the server has answered since it was started."""
    metrics = httpx.get(f"{server.url}/metrics").text
    return sum(map(float, re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", metrics, re.MULTILINE)))


def engine_versions(db):
    """What answered, as it is stored with explanations and predictions."""
    with closing(sqlite3.connect(db)) as connection:
        tables = [
            connection.execute(f"SELECT DISTINCT engine, engine_version FROM {table}").fetchall()  # noqa: S608
            for table in ("explanations", "predictions")
        ]
    assert all(len(versions) == 1 for versions in tables)
    return tables


def test_one_of_two_killed_half_way_costs_time_and_nothing_else(collected, servers):  # noqa: F811
    first, second = servers
    one = copy_of(collected, "one.db")
    done = run(one, *EXPLAIN, "--server", second.url)
    assert done.returncode in (0, 1), done.stderr  # 1: so small a model may repeat itself in an answer
    expected = read_results(one)

    db = copy_of(collected, "two.db")
    process = start(db, *EXPLAIN, "--server", f"{first.url},{second.url}")
    asking, reading = process.stderr.readline(), process.stderr.readline()
    assert asking.startswith(f"Asking {MODEL} at 2 servers, {first.url}/v1, {second.url}/v1 (vllm ")
    assert reading.startswith("Reading probabilities by ")
    n_before = [n_answered(server) for server in servers]
    while n_answered(first) == n_before[0]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    first.kill()
    _, err = process.communicate(timeout=900)
    assert process.returncode == done.returncode, err
    print(err)
    assert f"The server at {first.url}/v1 is left out" in err
    assert n_answered(second) > n_before[1] + 3
    assert run(db, "verify").returncode == 0
    assert engine_versions(db) == engine_versions(one)
    results = read_results(db)
    for neuron in NEURONS:
        for explanation, alone in zip(results[neuron], expected[neuron], strict=True):
            assert (explanation["text"], explanation["status"]) == (alone["text"], alone["status"])
            for score, score_alone in zip(explanation["scores"], alone["scores"], strict=True):
                assert score["status"] == score_alone["status"]
                assert score["value"] == pytest.approx(score_alone["value"], abs=0.02)  # a server's noise
    assert any(s["value"] is not None for e in results[NEURONS[0]] + results[NEURONS[2]] for s in e["scores"])
