"""Compiled kernels: the same activations of every family; if the compiler fails, nothing of it remains."""

import shutil

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from neuroexplain.collecting import kernels
from neuroexplain.collecting.collector import Collector
from neuroexplain.collecting.statistics import plain_sum_segments, sum_segments
from neuroexplain.sources.base import find_sources
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import load_subject
from tests.collecting.test_collector import OPTIONS, assert_same_state, batches
from tests.fakes import tiny_subject, tiny_tokenizer
from tests.subject.test_families import CONFIGS, saved

TRACED = {"backend": "aot_eager", "dynamic": False}  # all of a compiler but the making of kernels


def activations(subject, activation):
    ids = torch.randint(2, 320, (3, 128), generator=torch.Generator().manual_seed(2)).to(subject.device)
    by_layer = {}
    capture_activations(
        subject,
        ids,
        find_sources(subject, "mlp", activation, (0, 1)),
        lambda n, acts: by_layer.update({n: acts.clone()}),
    )
    return by_layer


@pytest.fixture(autouse=True)
def forget():
    """Start each test without what others compiled: torch limits the versions of one piece of code."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_around_the_mlp_is_compiled_and_gives_the_same(tmp_path, family, monkeypatch):
    subject = load_subject(saved(tmp_path, family), "float32")
    names, weights = list(subject.model.state_dict()), subject.weights_sha256
    parts = kernels.parts_around(subject, ())
    assert [type(part).__name__ for part in parts if "Attention" in type(part).__name__] == [
        type(part).__name__
        for layer in subject.layers
        for part in layer.children()
        if "Attention" in type(part).__name__
    ]
    assert len(parts) >= len(subject.layers)
    neurons = {
        subject.module(source.module)
        for activation in ("act", "post")
        for source in find_sources(subject, "mlp", activation, (0, 1)).values()
    }
    assert not neurons & {module for part in parts for module in part.modules()}
    plain = {activation: activations(subject, activation) for activation in ("act", "post")}
    monkeypatch.setattr(kernels, "compile_options", lambda: TRACED)
    kernels.compile_around(subject, ())
    for activation, expected in plain.items():
        for n, acts in activations(subject, activation).items():
            torch.testing.assert_close(acts, expected[n], rtol=0, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert not torch._dynamo.utils.counters["graph_break"]
    assert (list(subject.model.state_dict()), type(subject)(**vars_of(subject)).weights_sha256) == (
        names,
        weights,
    )


def vars_of(subject):
    return {name: value for name, value in vars(subject).items() if name != "weights_sha256"}


@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="no C++ compiler")
def test_real_kernels_round_as_the_model_does(tmp_path):
    """In bfloat16, on a processor: kernels that do not round in between differ in a third of the values."""
    subject = load_subject(str(tiny_subject(tmp_path)), "bfloat16", "cpu")
    plain = activations(subject, "act")
    kernels.compile_around(subject, ())
    for n, acts in activations(subject, "act").items():
        assert (acts == plain[n]).float().mean() > 0.999


def test_a_collector_compiles_reads_the_same_and_keeps_nothing_of_the_trial(tmp_path, monkeypatch):
    subject = load_subject(str(tiny_subject(tmp_path)), "float32")
    plain, fast = (Collector(subject, (0, 1), **OPTIONS, n_random=3, seed=0) for _ in range(2))
    plain.sum_up = plain_sum_segments
    for batch in batches(60, 16):
        plain.read(*batch)
    monkeypatch.setattr(kernels, "compile_options", lambda: TRACED)
    fast.compile(16)
    assert fast.compiled
    assert_same_state(fast.state(), Collector(subject, (0, 1), **OPTIONS, n_random=3, seed=0).state())
    for batch in batches(60, 16):
        fast.read(*batch)
    assert_same_state(fast.state(), plain.state())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_where_the_compiler_fails_all_is_as_before(tmp_path, monkeypatch):
    subject = load_subject(str(tiny_subject(tmp_path)), "float32")
    expected = activations(subject, "act")
    collector = Collector(subject, (0, 1), **OPTIONS, n_random=0, seed=0)
    before = collector.sum_up

    def broken(graph, inputs):
        raise OSError("no compiler\nat all")

    monkeypatch.setattr(kernels, "compile_options", lambda: {"backend": broken})
    with pytest.raises(kernels.COMPILER_ERRORS, match="no compiler"):
        collector.compile(4)
    assert not collector.compiled
    assert collector.sum_up is before
    for n, acts in activations(subject, "act").items():
        assert torch.equal(acts, expected[n])


def test_whole_batches_are_summed_up_by_the_compiled_kernel_and_others_as_before(monkeypatch):
    summed = []

    def compile(function, **how):
        return lambda acts, center: (summed.append(len(acts)), function(acts, center))[1]

    monkeypatch.setattr(torch, "compile", compile)
    sum_up = kernels.compiled_sum_segments(4)
    for n in (4, 3, 5, 4):
        acts, center = (
            torch.randn(n, 64, 6, generator=torch.Generator().manual_seed(n)),
            torch.linspace(-1, 1, 6),
        )
        for sums, expected in zip(sum_up(acts, center), sum_segments(acts, center), strict=True):
            torch.testing.assert_close(sums, expected)
    assert summed == [4, 4]


def test_layers_with_code_of_their_own_are_all_compiled(tmp_path, monkeypatch):
    """More than torch.compile's own limit of graphs of one module's code: those beyond it would run plain."""
    config = GPT2Config(**CONFIGS["gpt2"] | {"n_layer": 12, "scale_attn_by_inverse_layer_idx": True})
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    subject = load_subject(str(tmp_path), "float32")
    monkeypatch.setattr(kernels, "compile_options", lambda: TRACED)
    Collector(subject, range(12), **OPTIONS, n_random=0, seed=0).compile(4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 12 + 1  # attention, and the statistics


def test_a_processor_compiles_nothing():
    assert not kernels.can_compile(torch.device("cpu"))
