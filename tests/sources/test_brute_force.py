"""Heads and the residual stream against an obvious pass over all activations, for families and batches."""

import numpy as np
import pytest
import torch

from neuroexplain.collecting.collector import Collector
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.stable_hash import stable_hash
from neuroexplain.subject.families import FAMILIES
from neuroexplain.subject.load import load_subject
from tests.subject.test_families import CONFIGS, saved

POSITIONS, K, N_RANDOM, SEED = range(64, 97), 5, 3, 4
ATTENTION_OUT = {  # where each family projects its heads back, below a layer: written apart from the table
    **dict.fromkeys(CONFIGS, "self_attn.o_proj"),
    "gpt2": "attn.c_proj",
    "gpt_neox": "attention.dense",
    "falcon": "self_attention.dense",
    "opt": "self_attn.out_proj",
    "phi": "self_attn.dense",
}
N_HEADS = 2


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function that loads a tiny random model of a family, its weights so large that units differ."""
    loaded = {}

    def subject_of(family):
        if family not in loaded:
            loaded[family] = load_subject(saved(tmp_path_factory.mktemp(family), family), "float32")
            for parameter in loaded[family].model.parameters():
                parameter.data *= 4
        return loaded[family]

    return subject_of


def segments(n=30):
    ids = torch.randint(2, 320, (n, 128), generator=torch.Generator().manual_seed(3))
    ids[n // 2] = ids[0]  # a duplicate
    return ids


def read(subject, family, kind, ids, size):
    """Every layer's activations, [layer][segment, token, unit], by the test's own hooks, in batches."""
    seen = {n: [] for n in range(len(subject.layers))}
    handles = []
    for n, layer in enumerate(subject.layers):
        if kind == "heads":
            module = layer.get_submodule(ATTENTION_OUT[family])
            handles.append(
                module.register_forward_pre_hook(lambda m, args, n=n: seen[n].append(args[0].clone()))
            )
        else:
            handles.append(
                layer.register_forward_hook(
                    lambda m, args, out, n=n: seen[n].append(
                        (out[0] if isinstance(out, tuple) else out).clone()
                    )
                )
            )
    with torch.inference_mode():
        for batch in ids.split(size):
            padded = torch.cat([batch, batch[:1].expand(size - len(batch), -1)])
            subject.model(padded, use_cache=False)
            for n in seen:
                seen[n][-1] = seen[n][-1].reshape(size, 128, -1)[: len(batch)]
    for handle in handles:
        handle.remove()
    return [torch.cat(seen[n]).numpy() for n in seen]


def brute_force(acts, ids, lowest):
    """(segment, start, activation) of a unit's k best records, from [segment, token] activations."""
    best = []
    for segment, values in enumerate(-acts if lowest else acts):
        position = max(POSITIONS, key=lambda p: (values[p], -p))
        record = tuple(ids[segment, position - 32 : position + 32].tolist())
        best.append((-values[position], segment, position - 32, record))
    kept, known = [], set()
    for _, segment, start, record in sorted(best):
        if record not in known:
            known.add(record)
            kept.append((segment, start, float(acts[segment, start + 32])))
    return kept[:K]


@pytest.mark.parametrize("size", [1, 7, 30])
@pytest.mark.parametrize("kind", ["heads", "residual"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3_text"])
def test_exemplars_and_statistics_are_those_of_a_pass_over_everything(load, family, kind, size):
    subject, ids = load(family), segments()
    collector = Collector(
        subject,
        (0, 1),
        source=kind,
        activation=kind,
        sign="both",
        top_k=K,
        positions=POSITIONS,
        special_peaks=True,
        n_random=N_RANDOM,
        seed=SEED,
    )
    for token_ids, numbers in zip(ids.split(size), torch.arange(len(ids)).split(size), strict=True):
        padding = token_ids[:1].expand(size - len(token_ids), -1)
        collector.read(torch.cat([token_ids, padding]), numbers)
    drawn = sorted(range(len(ids)), key=lambda segment: stable_hash(SEED, segment))[:N_RANDOM]
    layers = list(collector.finish(lambda segments, positions, starts: (segments, positions, segments)))
    for layer, acts in zip(layers, read(subject, family, kind, ids, size), strict=True):
        assert acts.shape[2] == collector.sources[layer.layer].width == len(layer.stats.mean)
        for unit in range(acts.shape[2]):
            for which, lowest in (("top", False), ("bottom", True)):
                x, expected = layer.exemplars[which], brute_force(acts[:, :, unit], ids, lowest)
                assert x.counts[unit] == len(expected)
                rows = zip(
                    x.segments[unit].tolist(), x.starts[unit].tolist(), x.peaks[unit].tolist(), strict=True
                )
                assert list(rows) == expected
                for rank, (segment, start, _) in enumerate(expected):
                    np.testing.assert_array_equal(
                        x.activations[unit, rank], acts[segment, start : start + 64, unit]
                    )
            random = layer.exemplars["random"]
            assert random.segments[unit].tolist() == drawn
            np.testing.assert_array_equal(random.activations[unit], acts[drawn, 64:, unit])
        tokens = acts[:, 64:].reshape(-1, acts.shape[2]).astype(np.float64)
        np.testing.assert_allclose(layer.stats.mean, tokens.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.stats.std, tokens.std(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(layer.stats.min, tokens.min(0))
        np.testing.assert_array_equal(layer.stats.max, tokens.max(0))
        np.testing.assert_allclose(layer.stats.share_positive, (tokens > 0).mean(0))


def test_every_family_says_where_its_heads_are():
    assert set(ATTENTION_OUT) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_head_writes_what_the_output_projection_makes_of_it(load, family):
    subject, ids = load(family), segments(2)
    sources = find_sources(subject, "heads", "heads", (0, 1))
    written = []
    handles = [
        layer.get_submodule(ATTENTION_OUT[family]).register_forward_hook(
            lambda m, args, out: written.append((args[0], out))
        )
        for layer in subject.layers
    ]
    with torch.inference_mode():
        subject.model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, (acts, out) in enumerate(written):
        source = sources[layer]
        assert source.width == acts.shape[-1] == N_HEADS * source.group_size
        assert source.label(source.group_size + 1) == "1.1"
        vectors = SOURCES.load("heads").write_vectors(subject, source)
        bias = getattr(subject.layers[layer].get_submodule(ATTENTION_OUT[family]), "bias", None)
        torch.testing.assert_close(acts @ vectors + (0 if bias is None else bias), out, rtol=1e-3, atol=1e-4)


def test_a_direction_of_the_stream_writes_itself(load):
    subject = load("llama")
    source = find_sources(subject, "residual", "residual", (1,))[1]
    vectors = SOURCES.load("residual").write_vectors(subject, source)
    assert torch.equal(vectors, torch.eye(source.width))
    assert SOURCES.load("residual").sign == SOURCES.load("heads").sign == "both"
