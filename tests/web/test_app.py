"""The viewer and its API over a real database, without a browser."""

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import Failure
from neuroexplain.formats.neuronpedia import model_id
from neuroexplain.lookup import load_page
from neuroexplain.probe import Probe
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.score_summaries import ScoreSummary
from neuroexplain.units import UnitId
from neuroexplain.web.answers import Activations, NeuronAnswer, QueryResults, RunAnswer
from neuroexplain.web.app import make_app
from neuroexplain.web.charts import score_charts
from neuroexplain.web.notebook import notebook_unit
from neuroexplain.web.reader import Summary
from neuroexplain.web.row_view import failure_view
from neuroexplain.web.templates import render
from neuroexplain.web.tokens import draw_tokens, visible
from neuroexplain.web.unit_view import unit_view
from neuroexplain.web.urls import UrlBuilder
from tests.conftest import ATTACK, HOSTILE_TEXT


@pytest.fixture(scope="module")
def store(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(store):
    return TestClient(make_app(store), raise_server_exceptions=True, follow_redirects=False)


@pytest.fixture(scope="module")
def prediction(store):
    """The id of a simulation of neuron 0:1."""
    return load_page(store, load_run(store), UnitId(0, 1)).predictions[0].id


OURS = set(  # the tags that templates write
    "html head meta title link script body a header form input main footer kbd h1 h2 h3 p ul li nav div span "
    "i b strong small figure figcaption canvas details summary table thead tbody tr th td article section dl "
    "dt dd label select option button textarea pre code br noscript style".split()
)


SITE_PAGES = ("index.html", "neuron.html", "search.html", "failed.html", "compare")


class Checker(HTMLParser):
    """Fails on any tag, attribute or link that the templates do not write."""

    def handle_starttag(self, tag, attributes):
        assert tag in OURS, tag
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("style", "srcdoc", "formaction"), (tag, name)
            if name in ("href", "src", "action"):
                assert value.startswith(("/", "?", "#", "static/", *SITE_PAGES)), value
                assert not value.startswith("//")
        if tag == "script":
            assert dict(attributes).get("src")

    handle_startendtag = handle_starttag


def check(html):
    """Hostile text is text in it."""
    Checker().feed(html)
    assert ATTACK not in html
    assert not set(html) & set("\x00\x1b\u202e\u202c")


PAGES = [
    "/",
    "/0/1",
    "/0/2",
    "/1/23",
    "/search",
    "/search?q=evil",
    "/search?q=hyperlink",
    "/search?token=river",
    "/try",
]
PAGES += [
    "/failed",
    "/failed?page=3",
    "/compare",
    "/compare?first=1/<script>/x&second=%22onload=&q=%22%3E%3Cimg%20src=x",
]
PAGES += ["/docs", "/api", "/jump?at=%3Cscript%3E", "/9/9", "/prompts/<script>"]
PAGES += ["/0/1?show=random&show=nothing", "/0/1/records/top", "/0/1/records/random"]
PAGES += ["/0/1?show=sampled", "/0/1/records/sampled", "/search?sort=lower"]
PAGES += ["/search?like=%3Cscript%3E%22%20onerror=a", "/search?like=%22%3E%3Cimg%20src=x&q=quotes"]
PAGES += ["/search?q=%3Cscript%3E&token=%22%3E%3Cimg%20src=x%20onerror=a%3E&layer=%3Cb%3E&sort=%22onload="]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_holds_hostile_text_as_text_under_a_strict_policy(client, page):
    answer = client.get(page)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    check(answer.text)


def test_hostile_names_and_tokens_are_text_too(store):
    run = load_run(store)
    names = {
        "subject": HOSTILE_TEXT,
        "config": {**run.config, "dataset": [f"/x/{HOSTILE_TEXT}"]},
        "activation": "<b>",
    }
    page = load_page(store, run, UnitId(0, 1))
    hostile = {i: replace(entry, text=HOSTILE_TEXT) for i, entry in page.tokens.items()}
    page = replace(page, run=replace(run, **names), tokens=hostile)
    urls = UrlBuilder()
    ids = [prediction.id for prediction in page.predictions]
    view = unit_view(page, urls, open_kinds=["random", "sampled"], open_simulations=ids)
    check(render("unit.html", unit=view, urls=urls, can_try=True))
    check(notebook_unit(page).split("</style>")[1])
    scores = ScoreSummary(
        *(0, *[HOSTILE_TEXT] * 6, 1, {HOSTILE_TEXT: 2}),
        **{"mean": 0.5, "ci_low": None, "ci_high": None, "n_compared": 0, "n_above_control": 0},
    )
    summary = Summary(
        charts=score_charts([(0, HOSTILE_TEXT, HOSTILE_TEXT, 0.5)]),
        n_explanations=[(HOSTILE_TEXT, HOSTILE_TEXT, HOSTILE_TEXT, 1)],
        n_units={HOSTILE_TEXT: 1},
        failures={HOSTILE_TEXT: 1},
        scores=[scores],
        totals=[scores],
    )
    start = {"run": page.run, "runs": [page.run], "best": [], "corpus": HOSTILE_TEXT}
    start |= {"headline": "population score", "dictionaries": [HOSTILE_TEXT]}
    check(render("start.html", urls=urls, summary=summary, **start))
    failure = Failure(UnitId(0, 1), HOSTILE_TEXT, HOSTILE_TEXT, HOSTILE_TEXT, HOSTILE_TEXT)
    failed = {"failures": [failure_view(run, failure, "")], "counts": summary.failures}
    check(render("failed.html", urls=urls, n_more=1, previous=None, next=None, **failed))
    assert set(model_id(page.run)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_token_is_one_box_of_text(texts):
    html = str(draw_tokens(texts, np.arange(len(texts), dtype=np.float32), 1.0))
    boxes = []

    class Boxes(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert (tag, [name for name, _ in attributes]) == ("span", ["class", "data-v"])
            boxes.append("")

        def handle_data(self, data):
            boxes[-1] += data

    Boxes().feed(html)
    assert boxes == [visible(text) for text in texts]


def test_a_lazy_section_is_the_same_fetched_and_drawn_with_the_page(client, prediction):
    for state, address in (
        ("show=random", "records/random"),
        (f"simulation={prediction}", f"simulations/{prediction}"),
    ):
        page, section = client.get(f"/0/1?{state}").text, client.get(f"/0/1/{address}").text
        assert section.strip() in page
        assert section.count('class="record"') > 0
        assert section.strip() not in client.get("/0/1").text
        assert f'href="/0/1?{state}#' in client.get("/0/1").text  # for readers without JavaScript
    assert client.get(f"/0/2/simulations/{prediction}").status_code == 404
    assert client.get("/0/2/records/sideways").status_code == 422


def test_the_simulated_crop_is_marked(client, prediction):
    record = client.get(f"/0/1/simulations/{prediction}").text.split('class="record"')[1]
    assert record.count(' crop"') == record.count("<i ") == 32
    assert record.count('class="t ') == 64


def test_the_chosen_explanation_stands_first_and_other_candidates_are_folded(client):
    page = client.get("/0/2").text
    assert "1 other candidate, not chosen" in page
    assert (
        page.index('<article class="explanation chosen">')
        < page.index("1 other candidate")
        < page.index("not chosen &lt;script")
    )


@pytest.mark.parametrize(
    ("address", "described"),
    [
        ("/api/neurons/0/1", NeuronAnswer),  # explained by two explainers, scored, with predictions
        ("/api/neurons/1/23", NeuronAnswer),  # not explained
        ("/api/query", QueryResults),
        ("/api/runs", list[RunAnswer]),
    ],
)
def test_answers_have_exactly_the_described_keys_and_types(client, address, described):
    answer = client.get(address)
    types = TypeAdapter(described)
    parsed = types.validate_json(answer.text)  # a missing key or a key too many raises
    assert types.dump_python(parsed, mode="json", exclude_unset=True) == answer.json()


def test_answers_are_of_their_described_type(client):
    described = client.get("/openapi.json").json()["paths"]["/api/neurons/{layer}/{neuron}"]["get"][
        "responses"
    ]
    assert described["200"]["content"]["application/json"]["schema"]["$ref"].endswith("NeuronAnswer")


def test_the_api_answers_what_show_json_prints(client, hostile):
    command = [
        sys.executable,
        "-m",
        "neuroexplain.cli.main",
        "show",
        "0:1",
        "--json",
        "--db",
        str(hostile / "x.db"),
    ]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert client.get("/api/neurons/0/1").json() == printed


def test_paging_gives_every_explanation_once(client, monkeypatch):
    monkeypatch.setattr("neuroexplain.web.reader.PAGE_SIZE", 7)
    ids, page = [], 0
    while page is not None:
        answer = client.get("/api/query", params={"page": page}).json()
        ids += [row["explanation_id"] for row in answer["results"]]
        page = answer["next_page"]
    assert len(ids) == len(set(ids)) == 21


def test_words_that_are_search_operators_search_for_themselves(client):
    for q in ('"quotes" OR', "NEAR(a b)", 'hyperlink("http', "quotes OR NEAR"):
        answer = client.get("/api/query", params={"q": q})
        assert answer.status_code == 200
        assert [row["explainer"] for row in answer.json()["results"]] == ["human"]
    assert client.get("/api/query", params={"q": "hyperlink NOT quotes"}).json()["results"] == []


def test_a_text_finds_the_nearest_explanations_in_pages(client, monkeypatch):
    whole = client.get("/api/query", params={"like": "a link to quotes"}).json()["results"]
    assert whole[0]["explainer"] == "human"
    assert len(whole) == 21
    monkeypatch.setattr("neuroexplain.web.reader.PAGE_SIZE", 7)
    answers = [
        client.get("/api/query", params={"like": "a link to quotes", "page": n, "sort": "unit"}).json()
        for n in range(3)
    ]
    assert [row for answer in answers for row in answer["results"]] == whole
    assert answers[-1]["next_page"] is None
    filtered = client.get("/api/query", params={"like": "quotes", "layer": "1"}).json()["results"]
    assert {row["layer"] for row in filtered} == {1}


def test_an_embedding_that_cannot_be_had_is_a_reason_and_no_500(store):
    def refuse():
        raise NeuroexplainError("wordllama is not installed")

    client = TestClient(make_app(store, open_embedder=refuse))
    answer = client.get("/api/query", params={"like": "the sea"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "wordllama is not installed")
    page = client.get("/search", params={"like": "the sea"})
    assert (page.status_code, "wordllama is not installed" in page.text) == (400, True)
    assert client.get("/search").status_code == 200


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
PATHS += ["/compare", "/api/compare", "/0/1/records/random", "/0/1/simulations/1"]
NAMES = [
    "show",
    "q",
    "like",
    "token",
    "layer",
    "min_score",
    "max_score",
    "simulator",
    "sort",
    "page",
    "run",
    "at",
    "text",
    "position",
    "first",
    "second",
]
numbers = st.one_of(st.integers().map(str), st.floats().map(str))
values = st.one_of(st.text(max_size=40), numbers, st.sampled_from(["score", "0", "1-2", "0:1"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from([*NAMES, "simulation"]), values, max_size=5))
def test_no_parameters_give_a_500(client, path, parameters):
    assert client.get(path, params=parameters).status_code < 500


def test_with_a_token_nothing_is_shown_without_it(store):
    client = TestClient(make_app(store, token="secret"), follow_redirects=False)
    assert [client.get(path).status_code for path in ("/", "/0/1", "/api/runs", "/static/viewer.js")] == [
        401
    ] * 4
    assert client.get("/api/runs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/runs", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert (
        client.get("/?token=secret").status_code == 303
    )  # the token goes into a cookie and out of the address
    assert client.get("/0/1").status_code == 200


def test_a_foreign_name_for_this_machine_is_refused(store):
    client = TestClient(make_app(store), base_url="http://attacker.example")
    assert client.get("/").status_code == 400


def test_a_text_of_ones_own_is_read_as_collecting_reads_it(store, hostile):
    client = TestClient(make_app(store, probe=Probe(str(hostile / "model"), load_run(store).dtype)))
    page = client.get("/api/neurons/0/1").json()
    request = {"text": "the river ran past the old mill", "layer": 0, "neuron": 1}
    answer = client.post("/api/activations", json=request).json()
    Activations.model_validate(answer)
    assert len(answer["tokens"]) == len(answer["activations"])
    top = max(x["activation"] for x in page["exemplars"])
    at_position = client.post("/api/activations", json={"text": request["text"], "position": 3}).json()
    Activations.model_validate(at_position)
    strongest = at_position["neurons"]
    shares = [neuron["share_of_max"] for neuron in strongest]
    assert shares == sorted(shares, reverse=True)
    same = next((s for s in strongest if (s["layer"], s["neuron"]) == (0, 1)), None)
    if same is not None:
        assert same["share_of_max"] == pytest.approx(answer["activations"][3] / top)
    assert client.get("/try", params={"text": request["text"], "at": "0:1", "position": 2}).status_code == 200
    assert client.post("/api/activations", json={"text": "a", "layer": 7, "neuron": 1}).status_code == 404
    assert client.post(
        "/api/activations", json={"text": "a" * 1999, "layer": 0, "neuron": 1}
    ).status_code in (200, 400)


def test_the_terminal_reads_a_text_as_the_api_does(store, hostile):
    def show(*words):
        command = [
            sys.executable,
            "-m",
            "neuroexplain.cli.main",
            "show",
            "0:1",
            "--text",
            "the old mill",
            "--db",
            "x.db",
            *words,
        ]
        return subprocess.run(command, cwd=hostile, capture_output=True, text=True, check=False)

    request = {"text": "the old mill", "layer": 0, "neuron": 1}
    client = TestClient(make_app(store, probe=Probe(str(hostile / "model"), load_run(store).dtype)))
    assert (
        json.loads(show("--model", "model", "--json").stdout)
        == client.post("/api/activations", json=request).json()
    )
    missing = show("--model", "nowhere")
    assert (missing.returncode, "nowhere" in missing.stderr, "Traceback" in missing.stderr) == (
        2,
        True,
        False,
    )


def test_without_a_model_a_text_is_refused(client):
    assert client.post("/api/activations", json={"text": "a", "layer": 0, "neuron": 1}).status_code == 409


def test_serve_refuses_other_machines_without_a_token(hostile):
    command = [
        sys.executable,
        "-m",
        "neuroexplain.cli.main",
        "serve",
        "--host",
        "0.0.0.0",
        "--db",
        str(hostile / "x.db"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "no token is set" in done.stderr) == (2, True)


def test_a_database_that_breaks_is_not_the_callers_fault(hostile, tmp_path):
    file = tmp_path / "x.db"
    file.write_bytes((hostile / "x.db").read_bytes())
    with open_store(str(file), read_only=True) as store:
        client = TestClient(make_app(store))
        file.write_bytes(b"\xff" * 100_000)
        answer = client.get("/api/neurons/0/1")
    assert (answer.status_code, answer.json()["error"]) == (503, "the database cannot be read")
