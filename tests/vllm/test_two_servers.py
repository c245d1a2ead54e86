"""Two real vLLM servers that answer together, of which one is killed half way."""

import os
import re
import time

import httpx
import pytest

from tests.vllm.test_real_server import (
    EXPLAIN,
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


def test_one_of_two_killed_half_way_costs_time_and_nothing_else(collected, servers):  # noqa: F811
    first, second = servers
    one = copy_of(collected, "one.db")
    done = run(one, *EXPLAIN, "--server", second.url)
    assert done.returncode == 0, done.stderr
    expected = read_results(one)

    db = copy_of(collected, "two.db")
    n_before = [n_answered(server) for server in servers]
    process = start(db, *EXPLAIN, "--server", f"{first.url},{second.url}")
    while n_answered(first) < n_before[0] + 8:  # some of them compare the two servers
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    first.kill()
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    print(err)
    assert f"at 2 servers, {first.url}/v1, {second.url}/v1 (vllm " in err
    assert f"The server at {first.url}/v1 is left out" in err
    assert n_answered(second) > n_before[1] + 8
    assert run(db, "verify").returncode == 0
    results = read_results(db)
    for neuron in NEURONS:
        for explanation, alone in zip(results[neuron], expected[neuron], strict=True):
            assert (explanation["text"], explanation["status"]) == (alone["text"], "ok")
            assert explanation["engine_version"] == alone["engine_version"]
            for score, score_alone in zip(explanation["scores"], alone["scores"], strict=True):
                assert score["status"] == score_alone["status"]
                assert score["value"] == pytest.approx(score_alone["value"], abs=0.02)  # a server's noise
