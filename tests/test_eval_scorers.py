"""The scripts that compare scorers with one another, with the truth, and with worse explanations."""

import gzip
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from score_truth.agreement import (  # noqa: E402
    ScoredPair,
    agreement,
    as_text,
    rank_correlation,
    ranks,
    true_beats_false,
)


def pair(unit, place, scorer, value, tokens=10):
    return ScoredPair(unit, place, scorer, "m", value, tokens, tokens // 2, 0.5)


def test_equal_values_share_their_rank():
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [2.5, 0, 2.5, 1]


def test_a_rank_correlation_is_that_of_a_slow_version():
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 5, 30).astype(float), draw.integers(0, 5, 30).astype(float)

    def slow(values):
        return [sum(x < v for x in values) + (sum(x == v for x in values) - 1) / 2 for v in values]

    assert rank_correlation(first, second) == pytest.approx(np.corrcoef(slow(first), slow(second))[0, 1])
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


def test_a_true_explanation_is_compared_with_the_false_ones_of_its_unit():
    values = {("a", 0): 0.5, ("a", 1): 0.4, ("a", 2): 0.5, ("b", 0): 0.1, ("b", 1): 0.0, ("c", 1): 0.9}
    share, n_won, n_units, n = true_beats_false(values)
    assert (share, n_won, n_units, n) == (pytest.approx(2.5 / 3), 1, 2, 3)
    assert true_beats_false({("a", 0): 1.0}) is None


def test_scorers_are_compared_where_both_have_a_score():
    pairs = [pair("a", n, "x", value) for n, value in enumerate((0.9, 0.2, 0.1, None))]
    pairs += [pair("a", n, "y", value) for n, value in enumerate((0.3, 0.2, None, 0.9))]
    pairs += [pair("b", 0, "y", 0.25, tokens=30), pair("b", 0, "x", 0.5)]
    results = agreement(pairs)
    own = results["scorers"]["x"]
    assert (own["n"], own["undefined"], own["true_above_false"], own["wins"]) == (5, 1, 1.0, 1)
    assert own["mean_true"] == pytest.approx(0.7)
    assert results["scorers"]["y"]["prompt_tokens"] == pytest.approx(14)
    assert results["correlations"]["x"]["y"] == {"rho": pytest.approx(1), "n": 3}
    assert "1 of 1" in as_text(results)


@pytest.mark.model
def test_made_judges_lose_where_an_explanation_is_made_worse(tmp_path):
    with gzip.open(ROOT / "neuroexplain" / "demo" / "corpus.jsonl.gz", "rt", encoding="utf-8") as rows:
        texts = list(islice(rows, 60))
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("".join(texts), encoding="utf-8")
    command = [sys.executable, ROOT / "scripts" / "eval_scores.py", "--corpus", corpus, "--judges"]
    options = ["--segments", "100000", "--records", "16", "--json"]
    done = subprocess.run([*command, *options], check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert results["units"] > 0
    metrics = {f"{j}, {m}" for j in ("detection", "fuzzing") for m in ("auroc", "auprc", "f1", "brier")}
    assert metrics <= set(results["whole corpus"])
    dropped = results["whole corpus"]["detection, auroc"]["half dropped"]
    assert dropped["median_loss"] > 0.2
    marked = results["whole corpus"]["fuzzing, auroc"]["as many wrong"]
    assert abs(marked["median_loss"]) < 0.1 < marked["median_true_loss"]  # the wrong tokens are hardly marked
