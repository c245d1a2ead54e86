"""The viewer and its API over a real database, without a browser."""

import json
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroexplain.pipeline.probe import Probe
from neuroexplain.store.engine import open_store
from neuroexplain.web.app import make_app
from tests.conftest import ATTACK


@pytest.fixture(scope="module")
def store(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(store):
    return TestClient(make_app(store), raise_server_exceptions=True, follow_redirects=False)


PAGES = ["/", "/0/1", "/1/23", "/search", "/search?q=evil", "/search?q=hyperlink", "/search?token=river", "/try", "/docs"]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_holds_hostile_text_as_text_under_a_strict_policy(client, page):
    answer = client.get(page)
    assert answer.status_code == 200, answer.text[:500]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert ATTACK not in answer.text
    assert "<script>" not in answer.text
    assert " style=" not in answer.text
    assert not set(answer.text) & set("\x00\x1b\u202e")


def test_the_api_answers_what_show_json_prints(client, hostile):
    command = [sys.executable, "-m", "neuroexplain.cli.main", "show", "0:1", "--json", "--db", str(hostile / "x.db")]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert client.get("/api/neurons/0/1").json() == printed


def test_paging_gives_every_explanation_once(client, monkeypatch):
    monkeypatch.setattr("neuroexplain.web.app.PAGE_SIZE", 7)
    found, page = [], 0
    while page is not None:
        answer = client.get("/api/query", params={"page": page}).json()
        found += [one["explanation_id"] for one in answer["results"]]
        page = answer["next_page"]
    assert len(found) == len(set(found)) == 21


def test_words_that_are_search_operators_search_for_themselves(client):
    for q in ('"quotes" OR', "NEAR(a b)", 'hyperlink("http', "quotes OR NEAR"):
        found = client.get("/api/query", params={"q": q})
        assert found.status_code == 200
        assert [one["explainer"] for one in found.json()["results"]] == ["human"]
    assert client.get("/api/query", params={"q": "hyperlink NOT quotes"}).json()["results"] == []


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/api/neurons/9/9", 404),
        ("/api/neurons/0/99999999999999999999", 422),
        ("/api/neurons/x/1", 422),
        ("/api/query?min_score=nan", 422),
        ("/api/query?q=***", 400),
        ("/api/query?token=notonetokenofthevocabulary", 400),
        ("/api/query?run=77", 404),
        ("/api/nothing", 404),
        ("/9/9", 404),
        ("/search?min_score=high", 400),
        ("/search?sort=colour", 400),
        ("/jump?at=here", 400),
        ("/prompts/zz", 422),
        ("/prompts/" + "0" * 64, 404),
    ],
)
def test_a_callers_fault_is_4xx_with_a_reason(client, address, status):
    answer = client.get(address)
    assert answer.status_code == status, answer.text
    if address.startswith("/api"):
        assert answer.json()["reason"]


PATHS = ["/", "/search", "/api/query", "/try", "/jump", "/random", "/0/1", "/api/neurons/0/1"]
NAMES = ["q", "token", "layer", "min_score", "max_score", "simulator", "sort", "page", "run", "at", "text", "position"]
numbers = st.one_of(st.integers().map(str), st.floats().map(str))
values = st.one_of(st.text(max_size=40), numbers, st.sampled_from(["score", "0", "1-2", "0:1"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from([*NAMES, "simulation"]), values, max_size=5))
def test_no_parameters_give_a_500(client, path, parameters):
    assert client.get(path, params=parameters).status_code < 500


def test_with_a_token_nothing_is_shown_without_it(store):
    client = TestClient(make_app(store, token="secret"), follow_redirects=False)
    assert [client.get(path).status_code for path in ("/", "/0/1", "/api/runs", "/static/viewer.js")] == [401] * 4
    assert client.get("/api/runs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/runs", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/?token=secret").status_code == 303  # the token goes into a cookie and out of the address
    assert client.get("/0/1").status_code == 200


def test_a_foreign_name_for_this_machine_is_refused(store):
    client = TestClient(make_app(store), base_url="http://attacker.example")
    assert client.get("/").status_code == 400


def test_a_text_of_ones_own_is_read_as_collecting_reads_it(store, hostile):
    client = TestClient(make_app(store, probe=Probe(str(hostile / "model"), "float32")))
    page = client.get("/api/neurons/0/1").json()
    asked = {"text": "the river ran past the old mill", "layer": 0, "neuron": 1}
    answer = client.post("/api/activations", json=asked).json()
    assert len(answer["tokens"]) == len(answer["activations"])
    top = max(x["activation"] for x in page["exemplars"])
    strongest = client.post("/api/activations", json={"text": asked["text"], "position": 3}).json()["neurons"]
    shares = [one["share_of_max"] for one in strongest]
    assert shares == sorted(shares, reverse=True)
    one = next((s for s in strongest if (s["layer"], s["neuron"]) == (0, 1)), None)
    if one is not None:
        assert one["share_of_max"] == pytest.approx(answer["activations"][3] / top)
    assert client.get("/try", params={"text": asked["text"], "at": "0:1", "position": 2}).status_code == 200
    assert client.post("/api/activations", json={"text": "a", "layer": 7, "neuron": 1}).status_code == 404
    assert client.post("/api/activations", json={"text": "a" * 1999, "layer": 0, "neuron": 1}).status_code in (200, 400)


def test_without_a_model_a_text_is_refused(client):
    assert client.post("/api/activations", json={"text": "a", "layer": 0, "neuron": 1}).status_code == 409


def test_serve_refuses_other_machines_without_a_token(hostile):
    command = [sys.executable, "-m", "neuroexplain.cli.main", "serve", "--host", "0.0.0.0", "--db", str(hostile / "x.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "no token is set" in done.stderr) == (2, True)
