"""A width in slices, or sparse, gives what the whole gives; a new source is one file that no other names."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.collecting.collector import Collector
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.base import SOURCES, dense_slices
from neuroexplain.sources.mlp import Mlp
from neuroexplain.subject.load import load_subject
from neuroexplain.units import Source
from tests.fakes import tiny_subject, words
from tests.runs import content, merge

OPTIONS = {
    "activation": "act",
    "sign": "both",
    "top_k": 4,
    "positions": range(64, 97),
    "special_peaks": False,
    "n_sampled": 10,
}


class Sliced(Mlp):
    """The neurons, so many at a time."""

    def __init__(self, at_once):
        self.at_once = at_once

    def encode(self, subject, source, values):
        for first in range(0, source.width, self.at_once):
            yield (
                slice(first, min(first + self.at_once, source.width)),
                values[..., first : first + self.at_once],
            )


class Strongest(Mlp):
    """The neurons, all but the strongest few of each token silent: sparse, or as the same numbers in full."""

    def __init__(self, at_once):
        self.at_once = at_once

    def encode(self, subject, source, values):
        kept = values.topk(5, dim=-1)
        if self.at_once is None:
            return (
                (slice(0, source.width), torch.zeros_like(values).scatter(-1, kept.indices, kept.values)),
            )
        return dense_slices(kept.indices, kept.values, source.width, self.at_once)


class BeforeTheMlp:
    """What enters the MLP: a source of a kind that nobody else knows."""

    activations = ("before",)
    sign = "both"

    def find(self, subject, layer, activation):
        width = subject.unembedding.shape[1]
        return Source(
            layer, "before-mlp", subject.path(layer, "mlp"), "input", width, subject.dtype_name, group_size=4
        )

    def encode(self, subject, source, values):
        return ((slice(0, source.width), values),)

    def write_vectors(self, subject, source):
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sliced")
    tiny_subject(folder / "model")
    (folder / "text.txt").write_text(words(6_000))
    return folder


@pytest.fixture(autouse=True)
def registered():
    kinds = {
        "slices-1": Sliced(1),
        "slices-7": Sliced(7),
        "strongest": Strongest(None),
        "before-mlp": BeforeTheMlp(),
    }
    kinds |= {"sparse-1": Strongest(1), "sparse-10": Strongest(10), "sparse-24": Strongest(24)}
    for name, kind in kinds.items():
        SOURCES.register(name, kind)
    yield
    for name in kinds:
        SOURCES.unregister(name)


def collected(subject, source, cut=None):
    ids = torch.randint(2, 300, (40, 128), generator=torch.Generator().manual_seed(0))
    ids[30] = ids[2]
    collectors = [Collector(subject, (0, 1), source=source, **OPTIONS, n_random=3, seed=0) for _ in range(2)]
    collector = collectors[0]
    splits = np.random.default_rng(0).integers(-1, 3, 40).astype(np.int8)
    for number, (token_ids, numbers) in enumerate(zip(ids.split(8), torch.arange(40).split(8), strict=True)):
        if number == cut:
            collectors[1].restore(collector.state())
            collector = collectors[1]
        collector.read(token_ids, numbers, splits[numbers])
    return list(collector.finish(lambda segments, positions, starts: (segments, positions, segments)))


def assert_same(layers, expected):
    for a, b in zip(layers, expected, strict=True):
        for kind, x in a.exemplars.items():
            for name in ("counts", "segments", "starts", "peaks", "activations"):
                np.testing.assert_array_equal(getattr(x, name), getattr(b.exemplars[kind], name))
        for group, sample in a.samples.items():
            for name in ("counts", "segments", "activations"):
                np.testing.assert_array_equal(
                    getattr(sample.records, name), getattr(b.samples[group].records, name)
                )
            np.testing.assert_array_equal(sample.sizes, b.samples[group].sizes)
            np.testing.assert_array_equal(sample.thresholds, b.samples[group].thresholds)
        for name in ("mean", "std", "min", "max", "share_positive"):
            np.testing.assert_allclose(getattr(a.stats, name), getattr(b.stats, name), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ("slices-1", "mlp"),
        ("slices-7", "mlp"),
        ("sparse-1", "strongest"),
        ("sparse-10", "strongest"),
        ("sparse-24", "strongest"),
    ],
)
def test_slices_and_sparse_activations_fold_as_the_whole_does(folder, parts, whole):
    subject = load_subject(str(folder / "model"), "float32")
    assert_same(collected(subject, parts), collected(subject, whole))


@pytest.mark.parametrize("source", ["slices-7", "heads"])
def test_going_on_from_what_was_kept_changes_nothing(folder, source):
    subject = load_subject(str(folder / "model"), "float32")
    if source == "heads":
        OPTIONS["activation"] = "heads"
    try:
        assert_same(collected(subject, source, cut=2), collected(subject, source))
    finally:
        OPTIONS["activation"] = "act"


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 2**32))
def test_sparse_activations_are_zero_elsewhere(width, at_once, seed):
    draw = torch.Generator().manual_seed(seed)
    n = min(width, 4)
    indices = torch.stack([torch.randperm(width, generator=draw)[:n] for _ in range(6)]).view(2, 3, n)
    values = torch.randn(2, 3, n, generator=draw)
    parts = list(dense_slices(indices, values, width, at_once))
    assert [(units.start, units.stop) for units, _ in parts] == [
        (a, min(a + at_once, width)) for a in range(0, width, at_once)
    ]
    dense = torch.cat([acts for _, acts in parts], dim=-1)
    assert torch.equal(dense, torch.zeros(2, 3, width).scatter(-1, indices, values))


def typed(*given, status=0):
    done = CliRunner().invoke(app, list(map(str, given)))
    assert done.exit_code == status, (done.output, done.exception)
    return done


def test_a_new_source_goes_through_every_command(folder, tmp_path):
    options = (
        "--model",
        folder / "model",
        "--dataset",
        folder / "text.txt",
        "--source",
        "before-mlp",
        "--batch-size",
        "4",
    )
    typed("collect", *options, "--db", tmp_path / "x.db")
    for part in (1, 2):
        typed("collect", *options, "--shard", f"{part}/2", "--db", tmp_path / f"{part}.db")
    merge(tmp_path / "1.db", tmp_path / "2.db", tmp_path / "m.db")
    whole, run = content(tmp_path / "x.db")
    merged, _ = content(tmp_path / "m.db")
    assert (run.kind, run.activation, run.sides) == ("before-mlp", "before", ("positive", "negative"))
    assert all(whole[table] == merged[table] for table in ("exemplars", "peak_tokens"))
    typed("explain", "--units", "0:1.2", "--explainer", "tokens", "--no-score", "--db", tmp_path / "x.db")
    page = json.loads(typed("show", "0:1.2", "--json", "--db", tmp_path / "x.db").stdout)
    assert (page["unit"], page["source"]["kind"], page["source"]["width"]) == (6, "before-mlp", 16)
    assert page["explanations"]
    assert "0:1.2" in typed("query", "--db", tmp_path / "x.db").stdout
    typed("export", "parquet", tmp_path / "out", "--db", tmp_path / "x.db")
    typed("import", "parquet", tmp_path / "out", "--db", tmp_path / "y.db")
    assert content(tmp_path / "y.db")[0]["exemplars"] == whole["exemplars"]
    typed("verify", "--db", tmp_path / "y.db")
    stdout = typed("show", "0:1.2", "--text", "the river ran", "--db", tmp_path / "x.db").stdout
    assert "river" in stdout


def test_a_sample_is_the_same_each_time_and_holds_smaller_ones(folder, tmp_path):
    options = ("--model", folder / "model", "--dataset", folder / "text.txt", "--batch-size", "4")
    explained = {}
    for n in (3, 8):
        typed("collect", *options, "--db", tmp_path / f"{n}.db")
        typed(
            "explain",
            "--layers",
            "0-1",
            "--sample",
            n,
            "--explainer",
            "tokens",
            "--no-score",
            "--db",
            tmp_path / f"{n}.db",
        )
        rows = json.loads(
            typed("query", "--units", "0:0-23,1:0-23", "--json", "--db", tmp_path / f"{n}.db").stdout
        )
        explained[n] = {(row["layer"], row["unit"]) for row in rows}
    assert [len(explained[n]) for n in (3, 8)] == [3, 8]
    assert explained[3] < explained[8]
    assert json.loads(typed("query", "--units", "0:0-5", "--json", "--db", tmp_path / "8.db").stdout) == [
        row for row in rows if row["layer"] == 0 and row["unit"] <= 5
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "clt"}, r"--source 'clt' is not known. There is .*heads, mlp, residual"),
        ({"activation": "gate"}, r"'gate' is not read of --source mlp: there is act, post"),
        ({"source": "heads", "activation": "act"}, r"'act' is not read of --source heads: there is heads"),
    ],
)
def test_what_cannot_be_read_is_said(options, message):
    with pytest.raises(NeuroexplainError, match=message):
        CollectConfig(model="m", dataset=("d",), **options)
