"""The demo end to end on the embedded model, with few segments and neurons."""

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from neuroexplain.cli.demo_picture import save_demo_picture
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
    (_, by_llm), (name, by_tokens) = highlights.controls
    assert name == "the baseline (tokens, no LLM)"
    assert by_tokens.n == 3
    assert by_tokens.n_won == sum(own > control for own, control in by_tokens.pairs)
    assert by_llm.n <= 3
    assert all(row.explainer == "category" for row, _ in highlights.best)

    again = [event.stage for event in demo.run_demo(db, None, 16)]
    assert "collecting" not in again
    with open_store(db, read_only=True) as store:
        assert [e.id for e in list_explanations(store, run.id)] == [e.id for e in before]

    picture = tmp_path / "demo.png"
    console = Console(width=80)
    with console.capture() as caught:
        console.print(demo_text(highlights, "demo.db", str(picture.name), 80))
    printed = caught.get()
    assert "of 3; mean score" in printed
    assert "serve --db" in printed
    assert printed.count("\n") <= 30  # a screen

    save_demo_picture(highlights, picture)
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    save_demo_picture(highlights, picture)
    assert picture.read_bytes() == first
    save_demo_picture(replace(highlights, best=[]), picture)  # the LLM had no answer that could be used
    assert picture.read_bytes() != first


def test_interrupted_while_it_collects_it_goes_on_and_two_at_once_are_refused(tmp_path):
    command = [sys.executable, "-m", "neuroexplain.cli.main", "demo", "--segments", "96"]
    command += ["--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        stderr = ""
        while running.poll() is None and "segments at once" not in stderr:
            stderr += running.stderr.readline()
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        running.send_signal(signal.SIGINT)
        stderr += running.stderr.read()
    assert second.returncode == 2
    assert "Somebody writes to collections" in second.stderr
    assert f"neuroexplain demo, process {running.pid}" in second.stderr
    assert running.returncode == 130, stderr
    assert "the same command goes on from there" in stderr
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as again:
        line = "Loading"
        while line and not line.startswith(("continuing", "Reading")):
            line = again.stderr.readline()
        again.kill()
    assert line in ("continuing: 32 of 96 segments done\n", "continuing: 64 of 96 segments done\n")
