"""Random and sampled records on pages and in JSON: how they were drawn, and their groups."""

import re
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from neuroexplain.as_json import unit_json
from neuroexplain.cli.progress import draw
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.lookup import load_page
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import UnitId
from neuroexplain.web.app import make_app
from tests.cli.test_unit_text import make_page


@pytest.fixture(scope="module")
def stores(hostile, tmp_path_factory):
    """By sign, a run with fewer records than its corpus has, so that probabilities lie between 0 and 1."""
    opened = {}
    for sign in ("positive", "negative", "both"):
        file = tmp_path_factory.mktemp(sign) / "x.db"
        sizes = {"random_records": 12, "sampled_records": 15, "top_k": 4, "sign": sign}
        config = CollectConfig(model=str(hostile / "model"), dataset=(str(hostile / "text.jsonl"),), **sizes)
        with open_store(str(file), create=True) as store:
            draw(run_collect(store, config))
        opened[sign] = open_store(str(file), read_only=True)
    yield opened
    for store in opened.values():
        store.close()


def page_of(store, index=3):
    return load_page(store, load_run(store), UnitId(0, index))


def expected_probability(unit, record, side):
    """By the formula of evidence.md, from what `show --json` prints of the unit alone."""
    seed, n_random = unit["run"]["seed"], {"explain": 3, "select": 3, "report": 6}[record["split"]]
    (sample,) = [s for s in unit["samples"] if (s["side"], s["split"]) == (side, record["split"])]

    def ratio(x):
        half = 32 * (stable_hash(seed, "half", x["segment"]) % 2)
        values = np.array(x["activations"][half : half + 32]) * (-1 if side == "negative" else 1)
        size = float((np.maximum(values, 0) ** 2).sum())
        return size, size / ((stable_hash(seed, "sampled", x["segment"]) + 1) / 2**64)

    of_sample = [
        x
        for x in unit["exemplars"]
        if x["kind"] == "sampled" and (x["side"], x["split"]) == (side, record["split"])
    ]
    last = min(ratio(x)[1] for x in of_sample)
    size, own = ratio(record)
    bound = sample["threshold"] if own >= last * (1 - 1e-6) else last
    by_size = 1.0 if bound == 0 else min(1.0, size / bound)
    return 1 - (1 - by_size) * (1 - n_random / sample["n_segments"])


@pytest.mark.parametrize("sign", ["positive", "negative", "both"])
def test_each_random_and_sampled_record_tells_its_probability(stores, sign):
    unit = unit_json(page_of(stores[sign]))
    drawn = [x for x in unit["exemplars"] if x["kind"] in ("random", "sampled")]
    n_sides = 2 if sign == "both" else 1
    assert [x["kind"] for x in drawn].count("sampled") == 15 * n_sides
    for x in drawn:
        own_side = "negative" if sign == "negative" else "positive"
        if x["kind"] == "sampled":
            assert x["side"] in (("positive", "negative") if sign == "both" else (own_side,))
            own_side = x["side"]
            half = 32 * (stable_hash(unit["run"]["seed"], "half", x["segment"]) % 2)
            values = np.array(x["activations"][half : half + 32]) * (-1 if own_side == "negative" else 1)
            assert x["size"] == pytest.approx((np.maximum(values, 0) ** 2).sum(), rel=1e-5)
        else:
            assert (x["side"], x["size"]) == (None, None)
        assert x["probability"] == pytest.approx(expected_probability(unit, x, own_side), rel=1e-5)
        if x["kind"] == "random" and sign == "both":
            assert x["probability_negative"] == pytest.approx(
                expected_probability(unit, x, "negative"), rel=1e-5
            )
        else:
            assert x["probability_negative"] is None
    assert len({round(x["probability"], 6) for x in drawn}) > 10
    others = [x for x in unit["exemplars"] if x["kind"] in ("top", "bottom")]
    assert {x["probability"] for x in others} == {x["side"] for x in others} == {None}


def test_runs_that_split_by_rank_do_not_tell():
    """They do not say of how many segments their records were drawn."""
    page = make_page()
    (record,) = unit_json(replace(page, splits={x.key: None for x in page.unit.exemplars}))["exemplars"]
    assert (record["probability"], record["side"]) == (None, None)


@pytest.mark.parametrize("kind", ["sampled", "random"])
def test_records_stand_in_groups_with_what_they_stand_for(stores, kind):
    """A heading gives the range of the peaks below it; sides of a run with two follow each other."""
    for sign, store in stores.items():
        html = TestClient(make_app(store)).get(f"/0/3/records/{kind}").text
        page = page_of(store)
        records = [x for x in page.unit.exemplars if x.kind == kind]
        assert html.count('class="record"') == len(records)
        peaks: list[float] = []
        for title, body in re.findall(r"<h3>(.*?)</h3>(.*?)(?=<h3>|\Z)", html, re.S):
            own = [float(text) for text in re.findall(r'<strong class="num">(.*?)</strong>', body)]
            ends = [float(text) for text in title.split(" of ")[-1].split(" to ")]
            assert (ends[0], ends[-1]) == pytest.approx((own[-1], own[0]), rel=0.01)
            assert title.startswith(("positive side, ", "negative side, ")) == (
                sign == "both" and kind == "sampled"
            )
            peaks += own
        assert len(peaks) == len(records)
        strengths = [-x if sign == "negative" and kind == "sampled" else x for x in peaks]
        if sign != "both":
            assert strengths == sorted(strengths, reverse=True)
        for x in records:
            n = 1 / page.probabilities[x.key, x.side or page.run.sides[0]]
            line = re.search(rf"{kind} {x.rank}, kept for [^<]*", html)[0]
            assert_stands_for(n, line.split(" · ")[1].split(", on the negative side ")[0])
            if kind == "random" and sign == "both":
                second = 1 / page.probabilities[x.key, "negative"]
                assert_stands_for(
                    second, f"stands {line.split(', on the negative side ')[1]}".split(" · ")[0]
                )


def assert_stands_for(n, text):
    if text == "stands for itself":
        assert n < 1.05
    else:
        assert float(re.fullmatch(r"stands for ([\d.]+) segments", text)[1]) == pytest.approx(n, rel=0.05)


def test_a_page_names_its_scores_and_says_what_they_mean(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        client = TestClient(make_app(store))
        page, search, start = (client.get(path).text for path in ("/0/1", "/search", "/"))
    measures = re.findall(r'<ul class="measures".*?</ul>', page, re.S)[0]
    names = ["population score", "beyond its words", "Bills&#39; score"]
    places = [measures.index(name) for name in names]
    assert places == sorted(places)
    assert re.search(r'<li class="headline"[^>]*>population score <strong', measures)
    meanings = page.split("What the scores mean")[1].split("</details>")[0]
    for name in (*names, "95% interval", "control"):
        assert f"<dt>{name}</dt>" in meanings
    assert "beyond its words" in search
    totals, by_layer = (part.split("</table>")[0] for part in start.split('class="summaries"')[1:])
    trust = "wins 7 of 12 known neurons (guessing wins 4), margin 0.25"
    assert f"model {trust}" in start
    assert f"model, which {trust}" in measures
    assert len(re.findall("<tr>", totals)) == 2  # the head, and one explainer
    assert len(re.findall("<tr>", by_layer)) == 3  # the head, and two layers
