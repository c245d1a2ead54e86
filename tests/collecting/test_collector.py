"""What the collector keeps and where; the published rule beside ours; the search for a batch size."""

import inspect
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from neuroexplain.collecting import statistics
from neuroexplain.collecting.batch_size import largest_that_fits
from neuroexplain.collecting.collector import Collector
from neuroexplain.collecting.published import PublishedTopK
from neuroexplain.collecting.running_best import EMPTY
from neuroexplain.collecting.statistics import RunningStats, plain_sum_segments
from neuroexplain.collecting.top_k import segments_of
from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.families import FAMILIES
from neuroexplain.subject.load import load_subject
from neuroexplain.subject.model import Subject
from neuroexplain.subject.tokenizer import special_ids
from tests.fakes import tiny_subject, tiny_tokenizer

OPTIONS = {
    "activation": "act",
    "sign": "both",
    "top_k": 5,
    "positions": range(64, 97),
    "special_peaks": False,
    "n_sampled": 10,
}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(str(tiny_subject(tmp_path_factory.mktemp("model"))), "float32")


def batches(n_segments, size, seed=0):
    ids = torch.randint(2, 300, (n_segments, 128), generator=torch.Generator().manual_seed(seed))
    ids[n_segments // 2 :] = ids[: n_segments - n_segments // 2].clone()  # all again: duplicates
    splits = np.random.default_rng(seed).integers(-1, 3, n_segments).astype(np.int8)  # some have none
    parts = [splits[first : first + size] for first in range(0, n_segments, size)]
    return list(zip(ids.split(size), torch.arange(n_segments).split(size), parts, strict=True))


def bytes_by_device(state):
    total = {}
    for value in state.values():
        sizes = bytes_by_device(value) if isinstance(value, dict) else {}
        if isinstance(value, torch.Tensor):
            sizes = {value.device.type: value.nbytes}
        for device, n in sizes.items():
            total[device] = total.get(device, 0) + n
    return total


@pytest.mark.parametrize(
    ("n_sampled", "sign", "windows_on_host", "at_most"),
    [
        (0, "positive", False, 5e9),
        (0, "both", False, 10e9),
        (0, "both", True, 1e9),
        (40, "positive", False, 8.2e9),
        (40, "both", False, 16.4e9),
        (40, "both", True, 2.4e9),
    ],
)
def test_what_is_kept_of_458752_neurons_fits_on_the_device(n_sampled, sign, windows_on_host, at_most):
    """One layer of Llama-3-8B's shape, on the device that holds no data; 32 layers take 32 times as much."""
    unembedding = torch.zeros(1, 1, dtype=torch.bfloat16, device="meta")
    llama = Subject("llama", None, torch.nn.Module(), None, FAMILIES["llama"], [], unembedding, 14_336)
    options = OPTIONS | {"top_k": 32, "sign": sign, "special_peaks": True, "n_sampled": n_sampled}
    collector = Collector(llama, [0], **options, n_random=32, seed=0, windows_on_host=windows_on_host)
    sizes = bytes_by_device(collector.state())
    assert 32 * sizes["meta"] <= at_most
    records = 14_336 * 32 * 64 * 2
    assert (sizes["cpu"] == records) == (not windows_on_host)  # the random records are always on the host


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_keeps_what_a_cpu_keeps(tmp_path):
    name = str(tiny_subject(tmp_path))
    on_cpu, on_gpu = load_subject(name, "float32", "cpu"), load_subject(name, "float32", "cuda")
    states = []
    for subject, on_host in ((on_cpu, False), (on_gpu, False), (on_gpu, True)):
        collector = Collector(subject, (0, 1), **OPTIONS, n_random=2, seed=0, windows_on_host=on_host)
        for batch in batches(60, 16):
            collector.read(*batch)
        states.append(
            list(collector.finish(lambda segments, positions, starts: (segments, positions, segments)))
        )
    for kept in states[1:]:
        for a, b in zip(states[0], kept, strict=True):
            for kind, x in a.exemplars.items():
                np.testing.assert_array_equal(x.segments, b.exemplars[kind].segments)
                np.testing.assert_allclose(x.activations, b.exemplars[kind].activations, rtol=1e-3, atol=1e-5)
            for group, sample in a.samples.items():
                other = b.samples[group]
                np.testing.assert_array_equal(sample.records.segments, other.records.segments)
                np.testing.assert_allclose(sample.sizes, other.sizes, rtol=1e-3, atol=1e-8)
                np.testing.assert_allclose(sample.thresholds, other.thresholds, rtol=1e-3, atol=1e-8)
            np.testing.assert_allclose(a.stats.std, b.stats.std, rtol=1e-3)


def test_a_state_restored_in_the_middle_ends_the_same(subject):
    whole, first, second = (Collector(subject, (0, 1), **OPTIONS, n_random=3, seed=0) for _ in range(3))
    for n, batch in enumerate(batches(60, 8)):
        whole.read(*batch)
        (first if n < 3 else second).read(*batch)
        if n == 2:
            second.restore(first.state())
    assert_same_state(second.state(), whole.state())


@pytest.fixture
def a_layer_later(monkeypatch):
    """A function that has a collector work in a GPU's order, without its streams."""
    for name in ("Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.Tensor, "record_stream", MagicMock())

    def defer(collector):
        collector.second_stream.stream = MagicMock()
        return collector

    return defer


def test_a_layer_is_folded_when_the_next_ones_activations_are_there(subject, a_layer_later, monkeypatch):
    at_once = Collector(subject, (0, 1), **OPTIONS, n_random=3, seed=0)
    later = a_layer_later(Collector(subject, (0, 1), **OPTIONS, n_random=3, seed=0))
    order = []
    defer, fold = later.second_stream.defer, later._fold
    monkeypatch.setattr(
        later.second_stream,
        "defer",
        lambda *args: (order.append("computed"), defer(*args), order.append("deferred")),
    )
    monkeypatch.setattr(later, "_fold", lambda *args: order.append("folded") or fold(*args))
    for batch in batches(60, 8):
        at_once.read(*batch)
        later.read(*batch)
    assert order == ["computed", "deferred", "computed", "folded", "deferred", "folded"] * 8
    assert later.second_stream.stream.wait_event.call_count == torch.Tensor.record_stream.call_count == 2 * 8
    assert torch.cuda.current_stream.return_value.wait_stream.call_count == 8
    assert_same_state(later.state(), at_once.state())


def test_of_a_batch_that_failed_nothing_waits_for_the_next(subject, a_layer_later, monkeypatch):
    collector = a_layer_later(Collector(subject, (0, 1), **OPTIONS, n_random=0, seed=0))
    failing, following = batches(16, 8)
    with monkeypatch.context() as patched:
        patched.setattr(
            subject.layers[1], "forward", MagicMock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
        )
        with pytest.raises(torch.OutOfMemoryError):
            collector.read(*failing)
    collector.read(*following)
    assert {stats.n for stats in collector.stats.values()} == {8 * 64}


def assert_same_state(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        if isinstance(value, dict):
            assert_same_state(value, expected[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, expected[name]), name
        else:
            assert value == expected[name], name


@pytest.mark.parametrize("batch_size", [7, 32])
def test_the_published_rule_picks_the_same_records_at_position_96(subject, batch_size):
    """Where it has no ties: neurons of which two candidates have equal values are left out, and must be few.

    Its ties go anywhere, and it keeps records with the same tokens apart: the text here has none.
    """
    ids = torch.randint(2, 300, (200, 128), generator=torch.Generator().manual_seed(5))
    options = OPTIONS | {"sign": "positive", "positions": range(96, 97), "special_peaks": True, "top_k": 32}
    ours = Collector(subject, (0, 1), **options, n_random=0, seed=0)
    theirs = {layer: PublishedTopK(24, 32, torch.float32, subject.device) for layer in (0, 1)}
    seen = {0: [], 1: []}

    def fold(layer, acts):
        theirs[layer].fold(acts, segments.to(subject.device))
        seen[layer].append(acts[:, 96].clone())

    for token_ids, segments in zip(ids.split(batch_size), torch.arange(200).split(batch_size), strict=True):
        ours.read(token_ids, segments, np.zeros(len(segments), np.int8))
        capture_activations(subject, token_ids.to(subject.device), ours.sources, fold)
    n_compared = 0
    for layer in (0, 1):
        state, rule = ours.tops[layer]["top"], theirs[layer]
        keys, slots = state.best()
        assert (keys > EMPTY).all()
        values = torch.cat(seen[layer])  # [200, 24]
        for neuron in range(24):
            if len(values[:, neuron].unique()) < 200:
                continue
            n_compared += 1
            assert segments_of(keys[neuron]).tolist() == rule.segments[:, neuron].tolist()
            assert torch.equal(state.windows[neuron, slots[neuron]], rule.windows[:, :, neuron])
            assert (state.starts[neuron, slots[neuron]] == 64).all()
    assert n_compared > 40


@pytest.mark.parametrize(
    ("fits", "limit", "size"),
    [(1, 1024, 1), (100, 1024, 64), (143, 1024, 64), (144, 1024, 128), (5000, 700, 512)],
)
def test_the_batch_size_is_the_largest_power_of_two_that_fits_and_an_eighth_more(fits, limit, size):
    tried = []

    def probe(n):
        tried.append(n)
        if n > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(probe, limit) == size
    assert tried == [2**n + 2**n // 8 for n in range(len(tried))]


def test_where_not_one_segment_fits_it_says_what_to_do():
    def probe(size):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(NeuroexplainError, match="--windows host"):
        largest_that_fits(probe, 1024)


def test_probing_folds_whole_batches_and_keeps_nothing(subject, monkeypatch):
    """It folds as a first batch is folded, both signs, with barred positions; the state stays empty."""
    from neuroexplain.collecting import collector as module

    folded = []

    def fold(state, acts, offer, *, lowest):
        folded.append((len(acts), lowest, len(offer.barred)))
        real(state, acts, offer, lowest=lowest)
        assert (state.keys > EMPTY).any(dim=1).all()

    real = module.fold_top_k
    monkeypatch.setattr(module, "fold_top_k", fold)
    collector = Collector(subject, (0, 1), **OPTIONS, n_random=1, seed=0)
    collector.probe(40)
    assert folded == [(40, False, 20), (40, True, 20)] * 2
    assert all((kept.keys == EMPTY).all() for kinds in collector.tops.values() for kept in kinds.values())
    assert all(stats.n == 0 for stats in collector.stats.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [1, 64 * 5 * 2, 10**9])  # of five segments one, two and all at a time
def test_segments_in_cache_are_those_of_all_at_once(dtype, cached, monkeypatch):
    monkeypatch.setattr(statistics, "CACHED_ACTIVATIONS", cached)
    acts = torch.randn(5, 64, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    center = torch.linspace(-1, 1, 5)
    in_cache, at_once = statistics.sum_segments_in_cache(acts, center), statistics.sum_segments(acts, center)
    for sums, expected in zip(in_cache, at_once, strict=True):
        assert torch.equal(sums, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("traced", [False, True])
def test_statistics_in_one_pass_are_those_of_the_fast_steps(dtype, traced):
    """What a GPU compiles, as it stands and traced as the compiler traces it."""
    bare = inspect.unwrap(plain_sum_segments)  # without the shape checks of this test run
    sum_up = torch.compile(bare, backend="aot_eager") if traced else bare
    acts = (
        torch.randn(12, 64, 5, generator=torch.Generator().manual_seed(1)) * 3
        + torch.tensor([0, 1, -1, 50, 0.1])
    ).to(dtype)
    eager, compiled = (RunningStats(5, torch.device("cpu")) for _ in range(2))
    with torch.inference_mode():
        for batch in acts.split(5):
            eager.fold(batch)
            compiled.fold(batch, sum_up)
    for name in ("mean", "std", "min", "max", "share_positive"):
        np.testing.assert_allclose(
            getattr(eager.finish(), name), getattr(compiled.finish(), name), rtol=1e-6, atol=1e-7
        )


def test_special_tokens_without_a_role_are_special_too(subject):
    tokenizer = tiny_tokenizer()  # its <s> is no BOS
    assert tokenizer.all_special_ids == [1]
    assert special_ids(tokenizer) == {0, 1}
    collector = Collector(replace(subject, tokenizer=tokenizer), [0], n_random=0, seed=0, **OPTIONS)
    assert collector.barred.tolist() == [0, 1]
