"""Statuses in words: one table, and no name of a status where people read."""

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.evidence import SPLITS, Explanation, Prediction, Provenance, Score, Status
from neuroexplain.formatting import explanations_text, units_text
from neuroexplain.runtime.part_progress import combine
from neuroexplain.runtime.progress import Progress
from neuroexplain.scorers.base import main_metrics
from neuroexplain.status_words import WORDS, status_count, status_counts, status_words
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.failures import count_failures, list_failures
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_collected import create_run, finish_run
from neuroexplain.store.save_explained import save_explanation, save_prediction
from neuroexplain.units import UnitId
from neuroexplain.web.app import make_app
from tests.fakes import run_fields
from tests.test_comparing import SAMPLED

UNDEFINED = (Status.CONSTANT_SIMULATION, Status.FEW_RECORDS)


def test_every_status_has_words_of_its_own():
    assert set(WORDS) == set(Status)
    words = [status_words(status) for status in Status]
    assert len(set(words)) == len(words)
    assert not [text for forms in WORDS.values() for text in forms if "_" in text]


def test_counts_are_sentences():
    assert status_count("parse_error", 1) == "1 answer could not be read"
    assert status_count("parse_error", 2_000) == "2,000 answers could not be read"
    assert status_counts({"parse_error": 2, "dead": 0, "llm_error": 1}) == (
        "2 answers could not be read, 1 request failed"
    )
    assert status_words("a_status_of_later") == "a status of later"
    assert units_text({"ok": 46_066, "dead": 14}, "neurons") == "46,080 neurons, of which 14 never fire"
    counts = [("pairs", "m", "ok", 1), ("pairs", "m", "parse_error", 1), ("tokens", "tokens", "ok", 30)]
    assert explanations_text(counts) == [
        "1 explanation by pairs, m; 1 answer could not be read",
        "30 explanations by tokens",
    ]


def test_parts_add_up_what_failed():
    parts = [
        {"explaining": Progress("explaining", 5, 9, "units", {"parse_error": 1})},
        {"explaining": Progress("explaining", 5, 9, "units", {"parse_error": 2, "llm_error": 1})},
    ]
    whole = combine(parts, ["explaining"], ["explaining"])
    assert (dict(whole.failures), whole.n_failed) == ({"parse_error": 3, "llm_error": 1}, 4)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A database: each status that fails is that of an explanation; two scores are undefined; one failed."""
    db = str(tmp_path_factory.mktemp("failed") / "x.db")
    by = Provenance("none", None, "m", None, None)
    failing = [status for status in Status if status.failed]
    with open_store(db, create=True) as store:
        run_id = create_run(store, run_fields(1, 40, **SAMPLED))
        visited = dict.fromkeys(SPLITS, 1)
        finish_run(store, run_id, n_segments=3, n_documents=1, n_tokens=384, split_segments=visited)
        for n in range(40):
            row = {"run_id": run_id, "layer": 0, "unit": n, "status": "dead" if n == 39 else "ok"}
            with store.write() as connection:
                connection.execute(insert(t.units).values(**row, max_activation=1.0))
        for n, status in enumerate(failing):
            e = Explanation(UnitId(0, n), "pairs", status, None, by, reason="a reason", reply="a reply")
            save_explanation(store, run_id, e)
        for n, status in enumerate((*UNDEFINED, Status.LLM_ERROR, Status.OK), len(failing)):
            e = save_explanation(store, run_id, Explanation(UnitId(0, n), "pairs", "ok", "words", by))
            failed = status == Status.LLM_ERROR
            prediction = Prediction(
                *(e.id, e.unit, "lexical", status if failed else Status.OK, (), by),
                reason="a request's reason" if failed else None,
                reply="a request's reply" if failed else None,
            )
            value = 0.5 if status == Status.OK else None
            score = Score(
                "report", "population", "correlation", status, value, 9, 9, reason="undefined since"
            )
            save_prediction(store, run_id, prediction, [score])
        e = save_explanation(store, run_id, Explanation(UnitId(0, 30), "pairs", "ok", "words", by))
        judged = Prediction(e.id, e.unit, "detection", Status.LLM_ERROR, (), by, reason="a judge's reason")
        undefined = Score("report", "population", "auroc", Status.LLM_ERROR, None, 0, 0, reason="a judge's")
        save_prediction(store, run_id, judged, [undefined])
    return db


def test_failures_are_failed_explanations_and_undefined_scores(failed):
    with open_store(failed, read_only=True) as store:
        run = load_run(store)
        rows = list_failures(store, run, main_metrics(), None, 99)
        counts = count_failures(store, run, main_metrics())
        pages = [
            list_failures(store, run, main_metrics(), None, 4, first) for first in range(0, len(rows), 4)
        ]
        assert list_failures(store, run, main_metrics(), (1,), 99) == []
    n = len([status for status in Status if status.failed])
    assert [row.unit.index for row in rows] == [*range(n + 3), 30]
    assert [row.status for row in rows[n:]] == [*UNDEFINED, Status.LLM_ERROR, Status.LLM_ERROR]
    assert [row.reply for row in rows[n:]] == [None, None, "a request's reply", None]
    assert [row.what for row in rows[n - 1 :]] == ["pairs", *["lexical"] * 3, "detection"]
    assert [row for page in pages for row in page] == rows
    assert sum(counts.values()) == len(rows)
    assert counts["llm_error"] == 3
    assert next(iter(counts.values())) == max(counts.values())


@pytest.mark.parametrize("words", [("query", "--failed"), ("runs",), ("show", "0:1"), ("show", "0:9")])
def test_the_terminal_has_words_and_json_has_names(failed, words):
    runner = CliRunner(env={"COLUMNS": "300"})
    text = runner.invoke(app, [*words, "--db", failed]).stdout
    as_json = runner.invoke(app, [*words, "--db", failed, "--json"]).stdout
    assert not [status for status in Status if "_" in status and status in text]
    assert any(status in as_json for status in Status if "_" in status)


@pytest.mark.parametrize("address", ["/", "/failed", "/0/1", "/0/9", "/0/39"])
def test_pages_have_words(failed, address):
    with open_store(failed, read_only=True) as store:
        page = TestClient(make_app(store)).get(address).text
    assert not [status for status in Status if "_" in status and status in page]


def test_the_start_page_leads_to_the_weakest_and_to_what_failed(failed):
    with open_store(failed, read_only=True) as store:
        client = TestClient(make_app(store))
        start, page = client.get("/").text, client.get("/failed").text
    n = len([status for status in Status if status.failed]) + 4
    assert 'href="/search?sort=weakest"' in start
    assert "lowest of 1 score first" in start
    assert 'href="/failed"' in start
    assert f"Failed or undefined: {n}" in start
    assert "3 requests failed" in start
    assert "a request&#39;s reply" in page
    assert page.count("<tr>") == n + 1
