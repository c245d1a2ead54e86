"""Heads and the residual stream against an obvious pass over all activations, for families and batches.

Records of all kinds are drawn again by tests/collecting/draws.py, written apart from the code.
"""

import numpy as np
import pytest
import torch

from neuroexplain.collecting.collector import Collector
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.subject.families import FAMILIES
from neuroexplain.subject.load import load_subject
from tests.collecting.draws import SAMPLED_SHARES, SPLITS, counts, draw, drawn_at_random
from tests.collecting.draws import size as size_of
from tests.subject.test_families import CONFIGS, saved

POSITIONS, K, N_RANDOM, N_SAMPLED, SEED = range(64, 97), 5, 9, 15, 4
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

    def subject_of(family, dtype="float32"):
        if (family, dtype) not in loaded:
            subject = load_subject(saved(tmp_path_factory.mktemp(family), family), dtype)
            for parameter in subject.model.parameters():
                parameter.data *= 4
            loaded[family, dtype] = subject
        return loaded[family, dtype]

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
    return [torch.cat(seen[n]).float().numpy() for n in seen]


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


@pytest.mark.parametrize(
    ("size", "sign"), [(1, "both"), (7, "both"), (7, "positive"), (30, "both"), (30, "negative")]
)
@pytest.mark.parametrize("kind", ["heads", "residual"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3_text"])
def test_records_and_statistics_are_those_of_a_pass_over_everything(load, family, kind, size, sign):
    subject, ids = load(family), segments()
    sides = {"both": (1, -1), "positive": (1,), "negative": (-1,)}[sign]
    collector, layers = collect(subject, ids, size, source=kind, activation=kind, sign=sign)
    everything = read(subject, family, kind, ids, size)
    for layer, acts in zip(layers, everything, strict=True):
        assert acts.shape[2] == collector.sources[layer.layer].width == len(layer.stats.mean)
        names = [{1: "top", -1: "bottom"}[side] for side in sides]
        assert set(layer.exemplars) == {*names, "random"}
        for unit in range(acts.shape[2]):
            for name in names:
                assert_top(layer.exemplars[name], unit, acts, ids, name == "bottom")
        assert_random(layer.exemplars["random"], acts)
        assert_samples(layer.samples, acts, sides)
        tokens = acts[:, 64:].reshape(-1, acts.shape[2]).astype(np.float64)
        np.testing.assert_allclose(layer.stats.mean, tokens.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.stats.std, tokens.std(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(layer.stats.min, tokens.min(0))
        np.testing.assert_array_equal(layer.stats.max, tokens.max(0))
        np.testing.assert_allclose(layer.stats.share_positive, (tokens > 0).mean(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cut", [None, 2])
@pytest.mark.parametrize("barred", [True, False])
def test_special_tokens_count_in_no_size_where_they_are_barred(load, dtype, cut, barred):
    """In either precision, and from a state that was restored after two of five batches."""
    subject, ids = load("llama", dtype), segments()
    special = torch.rand(ids.shape, generator=torch.Generator().manual_seed(8)) < 0.2
    ids[special] = 1
    assert 1 in subject.tokenizer.all_special_ids
    options = {"source": "residual", "activation": "residual", "sign": "both", "special_peaks": not barred}
    _, layers = collect(subject, ids, 7, cut, **options)
    for layer, acts in zip(layers, read(subject, "llama", "residual", ids, 7), strict=True):
        assert_samples(layer.samples, acts, (1, -1), (ids != 1).numpy() if barred else None)


def test_a_unit_that_never_fires_has_no_sampled_record(load):
    """And where no more segments have a size than are drawn, the threshold is 0."""
    subject, ids = load("opt"), segments()  # its neurons are ReLU's
    _, layers = collect(subject, ids, 7, source="mlp", activation="act", sign="both")
    for layer in layers:
        for split in SPLITS:
            below = layer.samples["negative", split]
            assert below.records.counts.tolist() == [0] * 24
            assert below.thresholds.tolist() == [0.0] * 24
            assert (below.records.documents == -1).all()
        above = layer.samples["positive", "report"]
        assert above.records.counts.max() > 0


def collect(subject, ids, size, cut=None, **options):
    """(the collector, every layer's result) of batches of the size; the last is padded to it.

    cut: after so many batches, another collector goes on from the first one's state.
    """
    defaults = {"top_k": K, "positions": POSITIONS, "special_peaks": True, "seed": SEED}
    options = defaults | {"n_random": N_RANDOM, "n_sampled": N_SAMPLED} | options
    collector = Collector(subject, (0, 1), **options)
    codes = np.array([-1 if split is None else SPLITS.index(split) for split in splits_of(len(ids))], np.int8)
    batches = zip(ids.split(size), torch.arange(len(ids)).split(size), strict=True)
    for number, (token_ids, numbers) in enumerate(batches):
        if number == cut:
            state, collector = collector.state(), Collector(subject, (0, 1), **options)
            collector.restore(state)
        padding = token_ids[:1].expand(size - len(token_ids), -1)
        collector.read(torch.cat([token_ids, padding]), numbers, codes[numbers.numpy()])
    visited = {split: splits_of(len(ids)).count(split) for split in SPLITS}
    assert collector.split_segments == visited
    return collector, list(collector.finish(lambda segments, peaks, starts: (segments, peaks, segments)))


def splits_of(n):
    """Splits of n segments, some of which have none: there are more of `explain` than are drawn."""
    draw = np.random.default_rng(6)
    return [(*SPLITS, None)[code] for code in draw.choice(4, size=n, p=[0.4, 0.25, 0.25, 0.1])]


def assert_top(x, unit, acts, ids, lowest):
    expected = brute_force(acts[:, :, unit], ids, lowest)
    assert x.counts[unit] == len(expected)
    rows = zip(x.segments[unit].tolist(), x.starts[unit].tolist(), x.peaks[unit].tolist(), strict=True)
    assert list(rows) == expected
    for rank, (segment, start, _) in enumerate(expected):
        np.testing.assert_array_equal(x.activations[unit, rank], acts[segment, start : start + 64, unit])


def assert_random(x, acts):
    drawn = drawn_at_random(range(len(acts)), splits_of(len(acts)), N_RANDOM, SEED)
    assert len(drawn) == N_RANDOM
    for unit in range(acts.shape[2]):
        assert x.segments[unit].tolist() == drawn
        np.testing.assert_array_equal(x.activations[unit], acts[drawn, 64:, unit])
        np.testing.assert_array_equal(x.peaks[unit], acts[drawn, 64:, unit].max(axis=1))
        assert x.token_offsets[unit].tolist() == [64 + acts[s, 64:, unit].argmax() for s in drawn]


def assert_samples(samples, acts, sides, counting=None):
    """Segments, sizes, thresholds, order and windows of every unit's samples. counting: [segment, token]."""
    splits, n_drawn = splits_of(len(acts)), counts(N_SAMPLED, SAMPLED_SHARES)
    counting = np.ones(acts.shape[:2], bool) if counting is None else counting
    names = {1: "positive", -1: "negative"}
    assert set(samples) == {(names[side], split) for side in sides for split in SPLITS}
    n_full = 0
    for side in sides:
        for unit in range(acts.shape[2]):
            sizes = {
                segment: size_of(acts[segment, 64:, unit], counting[segment, 64:], segment, side, SEED)
                for segment in range(len(acts))
            }
            for split in SPLITS:
                x = samples[names[side], split]
                expected, threshold = draw(sizes, splits, split, n_drawn[split], SEED)
                n = int(x.records.counts[unit])
                assert (
                    list(zip(x.records.segments[unit, :n].tolist(), x.sizes[unit, :n].tolist(), strict=True))
                    == expected
                )
                assert x.thresholds[unit] == threshold
                n_full += threshold > 0
                drawn = [segment for segment, _ in expected]
                np.testing.assert_array_equal(x.records.activations[unit, :n], acts[drawn, 64:, unit])
                peaks = (side * acts[drawn, 64:, unit]).argmax(axis=1)
                assert x.records.token_offsets[unit, :n].tolist() == (64 + peaks).tolist()
                assert x.records.peaks[unit, :n].tolist() == acts[drawn, 64 + peaks, unit].tolist()
                assert (x.records.starts[unit] == 64).all()
                assert (x.sizes[unit, n:] == 0).all()
    assert n_full > acts.shape[2]  # the draw has a choice


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
