"""Nearest latents equal those of all cosines at once, and stay with the latent wherever it goes."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.collecting.merge import run_merge
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.formats._parquet_layers import _nearest_arrays
from neuroexplain.formats.base import ReadOptions
from neuroexplain.formats.parquet import FORMAT as PARQUET
from neuroexplain.formats.site import FORMAT as SITE
from neuroexplain.sources._nearest import nearest_by_cosine
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from neuroexplain.web.app import make_app
from neuroexplain.web.urls import UrlBuilder
from tests.sources.test_latents import tensors


def all_cosines(directions):
    """Every cosine in float64, -1 of a direction with itself and of one without a length."""
    lengths = np.linalg.norm(directions, axis=1)
    cosines = directions @ directions.T / np.maximum(np.outer(lengths, lengths), 1e-300)
    np.fill_diagonal(cosines, -1)
    return cosines


def brute_force(directions, n):
    """(unit, cosine) of each row's n nearest with a cosine above 0, by looking at every pair."""
    cosines = all_cosines(np.asarray(directions, np.float64))
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :n]
    return [[(int(j), row[j]) for j in own if row[j] > 0] for row, own in zip(cosines, order, strict=True)]


def pairs(nearest):
    """(unit, cosine) of the used places."""
    rows = zip(nearest.units, nearest.cosines, strict=True)
    return [[(int(j), float(c)) for j, c in zip(*row, strict=True) if c > 0] for row in rows]


def assert_near(mine, expected):
    assert [[unit for unit, _ in row] for row in mine] == [[unit for unit, _ in row] for row in expected]
    for row, right in zip(mine, expected, strict=True):
        assert [c for _, c in row] == pytest.approx([c for _, c in right], abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 37, 200, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_block_size_gives_the_nearest_of_all_pairs(at_once, dtype):
    directions = torch.randn(50, 7, generator=torch.Generator().manual_seed(1), dtype=dtype)
    directions *= torch.linspace(0.1, 30, 50, dtype=dtype)[:, None]  # of any length
    assert_near(pairs(nearest_by_cosine(directions, 5, at_once)), brute_force(directions, 5))


def test_what_points_elsewhere_or_nowhere_is_near_nothing():
    directions = torch.tensor([[1.0, 0], [2, 0], [-1, 0], [0, 0], [1, 1]])
    own = pairs(nearest_by_cosine(directions, 3))
    assert [{unit for unit, _ in row} for row in own] == [{1, 4}, {0, 4}, set(), set(), {0, 1}]
    assert own[0][0] == (1, 1.0)


def test_a_dictionary_may_be_smaller_than_the_number_of_nearest():
    assert pairs(nearest_by_cosine(torch.tensor([[1.0, 0], [1, 0]]), 5)) == [[(1, 1.0)], [(0, 1.0)]]
    assert pairs(nearest_by_cosine(torch.ones(1, 3), 5)) == [[]]


def test_they_are_collected_from_the_decoder(latents):
    with open_store(str(latents / "x.db"), read_only=True) as store:
        run = load_run(store)
        for layer in run.layers:
            expected = brute_force(tensors(layer)["W_dec"], 5)
            collected = load_collected_layer(store, run, layer)
            assert_near(pairs(collected.nearest), expected)
            units = [load_unit(store, run, UnitId(layer, n)).nearest for n in range(run.width(layer))]
            assert_near([list(own) for own in units], expected)


def test_neurons_have_none(hostile):
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        run = load_run(store)
        assert load_collected_layer(store, run, 0).nearest is None
        assert load_unit(store, run, UnitId(0, 1)).nearest == ()


def test_merged_parts_keep_them(latents, tmp_path):
    parts = []
    for number in (1, 2):
        store = open_store(str(tmp_path / f"{number}.db"), create=True)
        config = CollectConfig(
            model=str(latents / "model"),
            dataset=(str(latents / "text.jsonl"),),
            source="sae",
            dictionary=str(latents / "saes"),
            background_records=64,
            batch_size=8,
            shard=(number, 2),
        )
        list(run_collect(store, config))
        parts.append((store, load_run(store)))
    with open_store(str(tmp_path / "whole.db"), create=True) as whole:
        list(run_merge(parts, whole))
        run = load_run(whole)
        assert_near(pairs(load_collected_layer(whole, run, 1).nearest), brute_force(tensors(1)["W_dec"], 5))
    for store, _ in parts:
        store.close()


def test_parquet_brings_them_back(latents, tmp_path):
    with open_store(str(latents / "x.db"), read_only=True) as store:
        run = load_run(store)
        list(PARQUET.write(store, run, [], tmp_path / "out"))
        before = load_collected_layer(store, run, 1).nearest
    with open_store(str(tmp_path / "back.db"), create=True) as back:
        list(PARQUET.read(back, tmp_path / "out", ReadOptions()))
        again = load_collected_layer(back, load_run(back), 1).nearest
    np.testing.assert_array_equal(before.units, again.units)
    np.testing.assert_array_equal(before.cosines, again.cosines)


@pytest.mark.parametrize(
    ("unit", "cosine", "fault"),
    [(99, 0.5, "a nearest unit is not one of"), (1, 1.5, "not above 0"), (1, float("nan"), "not above 0")],
)
def test_damaged_parquet_is_refused(unit, cosine, fault):
    table = pa.table({"nearest_units": [[1], [unit]], "nearest_cosines": [[0.5], [cosine]]})
    with pytest.raises(ValueError, match=fault):
        _nearest_arrays(table, 2)
    table = pa.table({"nearest_units": [[1], [0, 0]], "nearest_cosines": [[0.5], [0.5]]})
    with pytest.raises(ValueError, match="another number"):
        _nearest_arrays(table, 2)


def test_they_are_shown_with_links_to_pages_that_exist(latents, tmp_path):
    unit = UnitId(1, 2)
    with open_store(str(latents / "x.db"), read_only=True) as store:
        run = load_run(store)
        (first, cosine), (second, _), *_ = load_unit(store, run, unit).nearest
        page = TestClient(make_app(store)).get(UrlBuilder(None).unit(unit)).text
        answer = TestClient(make_app(store)).get("/api/neurons/1/2").json()
        list(SITE.write(store, run, [unit, UnitId(1, first)], tmp_path / "site"))
    assert f'<a href="{UrlBuilder(None).unit(UnitId(1, first))}">1:{first}</a>' in page
    assert f"{cosine:.2f}</span>" in page
    assert answer["nearest"][0] == {"unit": first, "cosine": cosine}
    site = json.loads((tmp_path / "site" / "data" / "neurons" / "1-0.json").read_text())[str(unit)]
    assert f'<a href="neuron.html?at=1:{first}">1:{first}</a>' in site
    assert f"<li>1:{second} " in site  # no page of the site
    shown = CliRunner().invoke(app, ["show", str(unit), "--db", str(latents / "x.db")])
    assert f"1:{first} {cosine:.2f}  1:{second}" in shown.output
