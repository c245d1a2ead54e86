"""The page and the API of two side by side, over explanations with hostile names and texts."""

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter
from sqlalchemy import insert

from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.units import UnitId
from neuroexplain.web.answers import ComparisonAnswer
from neuroexplain.web.app import make_app
from tests.conftest import ATTACK, HOSTILE_EXPLANATION
from tests.fakes import run_fields
from tests.test_comparing import SAMPLED, add, new_run
from tests.web.test_app import check

HOSTILE_MODEL = f"a/{ATTACK}"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Seven units, explained by `pairs` and by a model with a hostile name, better from unit 4 on."""
    with open_store(str(tmp_path_factory.mktemp("compared") / "x.db"), create=True) as store:
        run_id = new_run(store, run_fields(1, 7, **SAMPLED))
        for n in range(7):
            row = {"run_id": run_id, "layer": 0, "unit": n, "status": "ok", "max_activation": 1.0}
            with store.write() as connection:
                connection.execute(insert(t.units).values(**row))
            add(store, run_id, UnitId(0, n), "pairs", f"words {n}", [("lexical", "population", 0.3)])
            scores = [("lexical", "population", n / 10)]
            add(store, run_id, UnitId(0, n), "category", HOSTILE_EXPLANATION, scores, model=HOSTILE_MODEL)
        yield TestClient(make_app(store))


BOTH = {"first": "1/pairs/m", "second": f"1/category/{HOSTILE_MODEL}"}


def test_the_page_has_both_and_hostile_text_is_text(client):
    page = client.get("/compare", params=BOTH)
    assert page.status_code == 200
    check(page.text)
    assert "7 units" in page.text
    assert "for 43% of the units" in page.text  # 4, 5 and 6 of 7
    assert "+0.00" in page.text
    assert page.text.index("words 6") < page.text.index("words 5")
    assert "&lt;script&gt;" in page.text


def test_without_names_the_first_two_are_compared(client):
    assert "7 units" in client.get("/compare").text


def test_the_api_is_of_its_described_type_and_pages_give_each_unit_once(client, monkeypatch):
    monkeypatch.setattr("neuroexplain.web.reader.PAGE_SIZE", 3)
    units, number = [], 0
    while number is not None:
        answer = client.get("/api/compare", params={**BOTH, "page": number}).json()
        TypeAdapter(ComparisonAnswer).validate_python(answer)
        units += [row["unit"] for row in answer["rows"]]
        number = answer["next_page"]
    assert units == [6, 5, 4, 3, 2, 1, 0]
    assert answer["summary"]["difference"]["value"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"second": "1/nobody/m"}, 400),
        ({"second": "pairs"}, 400),
        ({"second": BOTH["first"]}, 400),
        ({"first": "9/pairs/m"}, 404),
        ({"sort": "score"}, 422),
        ({"metric": "colour"}, 400),
    ],
)
def test_what_cannot_be_compared_is_4xx_with_a_reason(client, changes, status):
    answer = client.get("/api/compare", params=BOTH | changes)
    assert answer.status_code == status
    assert answer.json()["reason"]
    assert client.get("/compare", params=BOTH | changes).status_code == 400
