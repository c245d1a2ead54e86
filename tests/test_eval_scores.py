"""The script that compares scores with their true values, on a small corpus."""

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.model
def test_it_prints_bias_error_coverage_and_what_falls(tmp_path):
    with gzip.open(ROOT / "neuroexplain" / "demo" / "corpus.jsonl.gz", "rt", encoding="utf-8") as rows:
        texts = list(islice(rows, 24))
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(texts), encoding="utf-8")
    command = [sys.executable, ROOT / "scripts" / "eval_scores.py", "--corpus", corpus]
    options = ["--units", "6", "--layers", "4", "--segments", "100000", "--records", "6", "--json"]
    done = subprocess.run([*command, *options], check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    for key in ("population", "bills"):
        assert set(results[key]) == {"bias", "rmse", "coverage", "n"}
        assert results[key]["n"] > 0
        assert abs(results[key]["bias"]) < 0.5
    assert results["segments"] < 400
    assert f"The corpus has {results['segments']} segments, not 100,000: it is read whole." in done.stderr
    assert {group.split(",")[0] for group in results["groups"]} >= {"layer 4 act", "layer 4 post positive"}
    made, without = (
        results["groups"][f"made by rules{name}"]["population"] for name in ("", ", no background")
    )
    assert made["rmse"] < without["rmse"]
    checks = results["sanity"]["made"]["correlation, population"]
    assert set(checks) <= {"half dropped", "as many wrong", "five times too broad"}
    assert checks["half dropped"]["n"] > 0


def test_rare_latents_are_scored_by_what_is_read_of_the_background():
    command = [
        sys.executable,
        ROOT / "scripts" / "eval_scores.py",
        "--rare",
        "6000",
        "--units",
        "6",
        "--json",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert (results["segments"], results["units"]) == (6000, 6)
    with_background, without = (
        results["readings"][name]["1% false and more"]
        for name in ("all: 16 + 1,040", "no background: 16 + 16")
    )
    assert with_background["n"] >= 9
    assert with_background["rmse"] < without["rmse"] / 2
    assert with_background["bias"] < without["bias"] / 2
    assert results["readings"]["all: 16 + 1,040"]["all"]["coverage"] > 0.8
