"""The demo end to end on the embedded model, with few segments and neurons."""

import pytest
from rich.console import Console

from neuroexplain.cli.unit_text import demo_text
from neuroexplain.demo import run as demo
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.runs import load_run

pytestmark = pytest.mark.model


def test_the_demo_explains_scores_and_does_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "N_UNITS", 3)
    monkeypatch.setattr(demo, "CANDIDATES_PER_LAYER", 4)
    db = str(tmp_path / "demo.db")
    for _ in demo.run_demo(db, None, 16):
        pass
    with open_store(db, read_only=True) as store:
        run = load_run(store)
        highlights = demo.find_highlights(store, run)
        before = list_explanations(store, run.id)
    assert len({e.unit for e in before}) == 3
    assert {e.explainer for e in before} == set(demo.EXPLAINERS)
    comparisons = dict(highlights.controls)
    assert comparisons["tokens"].n == 3
    assert 0 <= comparisons["tokens"].n_won <= 3
    assert all(row.explainer == "category" for row, _ in highlights.best)

    again = [event.stage for event in demo.run_demo(db, None, 16)]
    assert "collecting" not in again
    with open_store(db, read_only=True) as store:
        assert [e.id for e in list_explanations(store, run.id)] == [e.id for e in before]

    console = Console(width=80)
    with console.capture() as caught:
        console.print(demo_text(highlights, db, 80))
    printed = caught.get()
    assert "of 3; mean score" in printed
    assert "serve --db" in printed
