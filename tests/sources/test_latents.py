"""Latents are collected as a pass over all of them gives, for every rule; and the whole way to the store."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.collecting import background as background_module
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.histogram import EDGES
from neuroexplain.sources import _encoding
from neuroexplain.sources._choice import Choice
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import load_subject
from neuroexplain.subject.probe import read_text
from tests.fakes import tiny_subject, words
from tests.sources.dictionaries.made import save, write
from tests.sources.test_brute_force import (
    N_RANDOM,
    SEED,
    assert_random,
    assert_samples,
    assert_top,
    collect,
    segments,
    splits_of,
)

D, N = 16, 22
RULES = ("standard", "jumprelu", "gated", "topk", "groupmax")


def tensors(seed):
    draw = np.random.default_rng(seed)
    names = {"W_enc": (D, N), "W_dec": (N, D), "b_enc": N, "b_dec": D, "b_gate": N, "b_mag": N, "r_mag": N}
    made = {name: draw.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    made["b_dec"] /= 4
    return made | {"threshold": np.abs(draw.normal(size=N)).astype(np.float32)}


def make(folder, rule, layers=(0, 1), model="model", hook="hook_resid_post"):
    """A dictionary of the rule for each layer, of a model whose residual stream has 16 numbers."""
    for layer in layers:
        x = tensors(layer)
        if rule == "groupmax":
            place = write(folder / f"layers.{layer}", {"d_in": D, "k": 2, "activation": rule})
            linear = {"encoder.weight": x["W_enc"].T, "encoder.bias": x["b_enc"], "W_dec": x["W_dec"]}
            save(place / "sae.safetensors", linear | {"b_dec": x["b_dec"]})
            continue
        metadata = {"model_name": model, "hook_name": f"blocks.{layer}.{hook}"}
        write(folder / str(layer), {"architecture": rule, "k": 3, "metadata": metadata})
        names = {"standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold")}
        names = ("W_enc", "W_dec", "b_dec", *names.get(rule, ("b_gate", "b_mag", "r_mag")))
        save(folder / str(layer) / "sae_weights.safetensors", {name: x[name] for name in names})
    return folder


def encoded(rule, values, layer):
    """The latents of [any, 16] values in numpy."""
    x = tensors(layer)
    z = (values - x["b_dec"]) @ x["W_enc"]
    if rule == "gated":
        return np.where(z + x["b_gate"] > 0, np.maximum(z * np.exp(x["r_mag"]) + x["b_mag"], 0), 0)
    z = np.maximum(z + x["b_enc"], 0)
    if rule == "jumprelu":
        return np.where(z > x["threshold"], z, 0)
    if rule == "topk":
        return np.where(z >= np.sort(z, axis=-1)[..., -3:][..., :1], z, 0)
    if rule == "groupmax":
        groups = z.reshape(*z.shape[:-1], 2, -1)
        return np.where(groups == groups.max(axis=-1, keepdims=True), groups, 0).reshape(z.shape)
    return z


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    tiny_subject(folder / "model")
    (folder / "text.txt").write_text(words(6_000))
    return folder


@pytest.fixture(scope="module")
def subject(folder):
    return load_subject(str(folder / "model"), "float32")


def everything(subject, collector, ids, size):
    """Every layer's latents of all segments at once, [layer][segment, token, latent], in padded batches."""
    kept = {layer: [] for layer in collector.layers}
    values = {layer: [] for layer in collector.layers}
    for batch in ids.split(size):
        padded = torch.cat([batch, batch[:1].expand(size - len(batch), -1)])

        def keep(layer, read):
            values[layer].append(read)
            slices = collector.kind.encode(subject, collector.sources[layer], read)
            kept[layer].append(torch.cat([acts for _, acts in slices], dim=-1))

        capture_activations(subject, padded, collector.sources, keep)
    n = len(ids)
    return [torch.cat(kept[i])[:n].numpy() for i in kept], [torch.cat(values[i])[:n].numpy() for i in values]


@pytest.mark.parametrize("at_once", [5, 22])
@pytest.mark.parametrize("size", [7, 30])
@pytest.mark.parametrize("rule", RULES)
def test_records_and_statistics_are_those_of_a_pass_over_everything(
    tmp_path, subject, monkeypatch, rule, size, at_once
):
    monkeypatch.setattr(_encoding, "LATENTS_AT_ONCE", at_once * size * 128)
    kind = SOURCES.load("sae").with_dictionary(Choice(str(make(tmp_path, rule))), any_model=False)
    assert kind.layers() == (0, 1)
    ids = segments()
    collector, layers = collect(subject, ids, size, source=kind, activation="sae", sign="positive")
    latents, values = everything(subject, collector, ids, size)
    for layer, acts, read in zip(layers, latents, values, strict=True):
        right = encoded(rule, read, layer.layer)
        np.testing.assert_allclose(acts, right, rtol=1e-4, atol=1e-3)
        assert acts.shape[2] == collector.sources[layer.layer].width == N
        for unit in range(N):
            assert_top(layer.exemplars["top"], unit, acts, ids, False)
        assert_random(layer.exemplars["random"], acts)
        assert_samples(layer.samples, acts, (1,))
        tokens = acts[:, 64:].reshape(-1, N).astype(np.float64)
        np.testing.assert_allclose(layer.stats.mean, tokens.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(layer.stats.max, tokens.max(0))
        np.testing.assert_allclose(layer.stats.share_positive, (tokens > 0).mean(0))


@pytest.mark.parametrize("cut", [None, 3])
@pytest.mark.parametrize("size", [4, 30])
@pytest.mark.parametrize("rule", ["jumprelu", "topk"])
def test_background_and_histogram_are_those_of_a_pass_over_everything(
    tmp_path, subject, monkeypatch, rule, size, cut
):
    """Also where segments are replaced, parts are packed, and a checkpoint is gone on from."""
    monkeypatch.setattr(_encoding, "LATENTS_AT_ONCE", 5 * size * 128)
    monkeypatch.setattr(background_module, "PARTS_BEFORE_PACKING", 3)
    kind = SOURCES.load("sae").with_dictionary(Choice(str(make(tmp_path, rule))), any_model=False)
    ids = segments()
    options = {"source": kind, "activation": "sae", "sign": "positive", "n_background": 1}
    collector, layers = collect(subject, ids, size, cut if size == 4 else None, **options)
    latents, _ = everything(subject, collector, ids, size)
    of_report = [n for n, split in enumerate(splits_of(len(ids))) if split == "report"]
    drawn = sorted(of_report, key=lambda n: stable_hash(SEED, "random", n))[
        : N_RANDOM - 2 * (N_RANDOM // 4) + 1
    ]
    assert len(drawn) < len(of_report)
    for layer, acts in zip(layers, latents, strict=True):
        x = layer.background
        assert x.segments.tolist() == drawn
        dense = np.zeros((len(drawn), 64, N), np.float32)
        units = np.repeat(np.arange(N), x.counts)
        dense[x.records, x.positions, units] = x.activations
        np.testing.assert_array_equal(dense, acts[drawn, 64:])
        assert (x.activations != 0).all()
        tokens = acts[:, 64:].reshape(-1, N)
        for unit in range(N):
            values = tokens[:, unit][tokens[:, unit] > 0]
            edges = [0, *EDGES, np.inf]
            expected = [((low <= values) & (values < high)).sum() for low, high in pairwise(edges)]
            assert layer.histogram[unit].tolist() == expected


@pytest.mark.parametrize("rule", ["topk", "groupmax"])
@pytest.mark.parametrize("at_once", [1, 3, 7, 22])
def test_of_equal_latents_the_same_are_kept_in_slices_of_any_size(tmp_path, rule, at_once):
    """Whole numbers, so that sums are exact and ties common."""
    from neuroexplain.sources.dictionaries.base import Dictionary, GroupMax, TopK

    draw = np.random.default_rng(3)
    encoder = torch.from_numpy(draw.integers(-2, 3, (N, D)).astype(np.float32))
    whole = TopK(5) if rule == "topk" else GroupMax(2)
    x = Dictionary(encoder, torch.zeros(N), whole, torch.zeros(N, D), torch.zeros(D))
    values = torch.from_numpy(draw.integers(-2, 3, (2, 30, D)).astype(np.float32))
    ours = torch.cat([acts for _, acts in _encoding.encode(x, values, at_once)], dim=-1).numpy()
    z = np.maximum((values @ encoder.T).numpy(), 0)
    n_tied = 0
    for token, acts in zip(z.reshape(-1, N), ours.reshape(-1, N), strict=True):
        groups = [range(N)] if rule == "topk" else [range(11), range(11, 22)]
        k = 5 if rule == "topk" else 1
        kept = [i for group in groups for i in sorted(group, key=lambda i: (-token[i], i))[:k]]
        right = np.zeros(N)
        right[kept] = token[kept]
        dropped = {token[i] for i in range(N) if i not in kept and token[i] > 0}
        n_tied += not dropped.isdisjoint(token[kept])
        np.testing.assert_array_equal(acts, right)
    assert n_tied > 10


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_the_command_collects_latents_and_the_others_read_them(tmp_path, folder, kind):
    if kind == "sae":
        make(tmp_path / "x", "jumprelu")
    else:
        make(tmp_path / "x", "transcoder", hook="mlp.hook_in")
        for layer in (0, 1):
            config = tmp_path / "x" / str(layer) / "cfg.json"
            values = json.loads(config.read_text())
            values["metadata"]["hook_name_out"] = f"blocks.{layer}.hook_mlp_out"
            config.write_text(json.dumps(values))
            x = tensors(layer)
            save(
                config.with_name("sae_weights.safetensors"),
                {k: x[k] for k in ("W_enc", "W_dec", "b_enc", "b_dec")},
            )
    db = tmp_path / "x.db"
    options = ("--model", folder / "model", "--dataset", folder / "text.txt", "--db", db, "--batch-size", 8)
    options += ("--source", kind, "--dictionary", tmp_path / "x")
    result = run("collect", *options)
    assert result.exit_code == 0, result.output
    assert f"44 {kind} latents of 2 layers" in result.output
    assert "Nothing to do" in run("collect", *options).output
    with open_store(str(db)) as store:
        stored = load_run(store)
    assert [source.width for source in stored.sources] == [N, N]
    assert stored.sides == ("positive",)
    shown = json.loads(run("show", "1:3", "--db", db, "--json").stdout)
    assert shown["source"]["kind"] == kind
    assert shown["source"]["encoder"].startswith(str(tmp_path / "x") + "?sha256=")
    assert len(shown["promoted_tokens"]) == 10
    assert run("show", "1:3", "--db", db).exit_code == 0
    assert run("verify", "--db", db).exit_code == 0, run("verify", "--db", db).output
    explained = run("explain", "--units", "0:0-21", "--explainer", "tokens", "--no-score", "--db", db)
    assert explained.exit_code == 0, explained.output
    rows = json.loads(run("query", "--db", db, "--json").stdout)
    assert rows
    assert {row["source"] for row in rows} == {kind}
    assert run("verify", "--db", db).exit_code == 0
    check_probe(folder, stored, tmp_path / "x")


def check_probe(folder, stored, dictionary):
    """The stored sources alone say how to read a text of one's own, unless the dictionary was changed."""
    sources = {source.layer: source for source in stored.sources}
    subject = load_subject(str(folder / "model"), "float32")
    acts = read_text(subject, range(2, 60), sources)
    assert acts[1].shape == (58, N)
    assert 0 < (acts[1] > 0).float().mean() < 1
    weights = dictionary / "1" / "sae_weights.safetensors"
    weights.write_bytes((dictionary / "0" / "sae_weights.safetensors").read_bytes())
    read_text(subject, range(2, 60), sources)  # it is loaded
    with pytest.raises(NeuroexplainError, match="not the dictionary that the run was collected with"):
        read_text(load_subject(str(folder / "model"), "float32"), range(2, 60), sources)


def test_a_write_vector_of_heads_goes_through_the_output_projection(tmp_path, subject):
    make(tmp_path, "standard", hook="attn.hook_z")
    kind = SOURCES.load("sae").with_dictionary(Choice(str(tmp_path)), any_model=False)
    source = kind.find(subject, 1, "sae")
    projection = subject.layers[1].self_attn.o_proj.weight
    right = torch.from_numpy(tensors(1)["W_dec"]) @ projection.T
    torch.testing.assert_close(kind.write_vectors(subject, source), right)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt2"}, r"made for the model gpt2, and --model is .*model.*--force-model"),
        ({"layers": (0, 5)}, r"layer 5, and .* has 2 layers"),
        (
            {"hook": "mlp.hook_post"},
            r"made for model and reads 16 numbers at .*mlp.hook_post, where .* has 24",
        ),
    ],
)
def test_a_dictionary_of_another_model_is_refused(tmp_path, subject, options, message):
    make(tmp_path, "standard", **options)
    kind = SOURCES.load("sae").with_dictionary(Choice(str(tmp_path)), any_model=False)
    with pytest.raises(NeuroexplainError, match=message):
        find_sources(subject, kind, "sae", kind.layers())
    if "model" in options:
        forced = SOURCES.load("sae").with_dictionary(Choice(str(tmp_path)), any_model=True)
        assert forced.find(subject, 0, "sae").width == N
    with pytest.raises(NeuroexplainError, match="no dictionary of layer 9"):
        kind.find(subject, 9, "sae")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "sae"}, "--source sae reads the latents of a dictionary.*--dictionary FOLDER"),
        ({"dictionary": "x"}, "--dictionary goes with the latents.*--source mlp has none"),
        ({"source": "heads", "force_model": True}, "--force-model goes with"),
        ({"source": "sae", "dictionary": "x", "input_scale": 0.0}, "--input-scale 0 is out of range"),
        ({"source": "sae", "dictionary": "x", "input_scale": float("nan")}, "--input-scale nan is out"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(NeuroexplainError, match=message):
        CollectConfig(model="m", dataset=("d",), **options)


def test_runs_without_a_dictionary_have_the_options_they_had():
    assert "dictionary" not in CollectConfig(model="m", dataset=("d",)).as_json()
