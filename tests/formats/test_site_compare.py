"""The static site's pages of two side by side, over explanations with hostile texts."""

import re

import pytest
from sqlalchemy import insert

from neuroexplain.comparing import compare
from neuroexplain.formats import _site_compare
from neuroexplain.formats._site_compare import compare_pages
from neuroexplain.formatting import signed
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId
from neuroexplain.web.urls import UrlBuilder
from tests.conftest import ATTACK, HOSTILE_EXPLANATION
from tests.fakes import run_fields
from tests.test_comparing import SAMPLED, add, new_run
from tests.web.test_app import check

SITE = UrlBuilder(is_site=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Run 1: seven units by two explainers; run 2: the same units by one; run 3: another model's."""
    with open_store(str(tmp_path_factory.mktemp("compared") / "x.db"), create=True) as opened:
        for place, subject in enumerate(("s", "s", f"other {ATTACK}")):
            run_id = new_run(opened, run_fields(1, 7, **SAMPLED) | {"subject": subject})
            for n in range(7):
                row = {"run_id": run_id, "layer": 0, "unit": n, "status": "ok", "max_activation": 1.0}
                with opened.write() as connection:
                    connection.execute(insert(t.units).values(**row))
                scores = [("lexical", "population", 0.3)]
                add(opened, run_id, UnitId(0, n), "pairs", f"words {n} of run {run_id}", scores)
                if place == 0:
                    scores = [("lexical", "population", n / 10)]
                    add(opened, run_id, UnitId(0, n), "category", HOSTILE_EXPLANATION, scores)
        yield opened


def pages_of(store, n_held=7):
    return dict(compare_pages(store, load_run(store, 1), SITE, lambda unit: unit.index < n_held))


def rows_of(html, title):
    """(unit, difference) of each row of the table below a title."""
    table = html.split(f"<h2>{title}</h2>")[1].split("</table>")[0]
    rows = re.findall(r"<tr>\n<td>.*?</tr>", table, re.S)
    cells = [re.sub(r"<[^>]*>", "", cell) for row in rows for cell in re.findall(r"<td.*?</td>", row)]
    return [(cells[n], float(cells[n + 3])) for n in range(0, len(cells), 6)]


def test_every_pair_of_the_run_has_a_page_and_those_that_cannot_be_compared_a_reason(store):
    pages = pages_of(store)
    for html in pages.values():
        check(html)
    assert set(pages) == {"compare", "compare-1", "compare-2", "compare-3"}
    assert "category, m (run 1)" in pages["compare"]
    assert pages["compare"].count("pairs, m (run 3)") == 2  # with each explainer of run 1
    assert pages["compare"].count("their units are not the same") == 2
    assert set(re.findall(r'href="(compare-\d\.html)"', pages["compare"])) == {
        f"compare-{n}.html" for n in (1, 2, 3)
    }


def test_a_page_has_the_figures_and_both_ends_of_the_order(store):
    html = pages_of(store)["compare-1"]
    summary = compare(store, runs=(1,), explainers=("category", "pairs"), models=("m",)).summary
    assert f"<b>{signed(summary.difference.value)}</b>" in html
    second, first = (
        rows_of(html, f"Where the {name} is higher") for name in ("second", "first")
    )  # category: 0.0 to 0.6; pairs: 0.3
    assert second == [("0:0", 0.3), ("0:1", 0.2), ("0:2", 0.1)]
    assert first == [("0:6", -0.3), ("0:5", -0.2), ("0:4", -0.1)]


def test_only_pages_that_the_site_has_are_linked(store):
    html = pages_of(store, n_held=5)["compare-2"]  # of runs 1 and 2
    linked = set(re.findall(r'href="neuron.html\?at=(0:\d)"', html))
    assert linked == {"0:0", "0:1", "0:2", "0:4"}  # 0:3 scores the same in both
    assert "0:6" in html
    assert not re.findall(r"<a [^>]*>words \d of run 2</a>", html)


def test_rows_are_cut(store, monkeypatch):
    monkeypatch.setattr(_site_compare, "N_ROWS", 2)
    assert len(rows_of(pages_of(store)["compare-1"], "Where the first is higher")) == 2
