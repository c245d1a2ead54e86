"""The figures of a dictionary at load, by numpy from the model's own values."""

import numpy as np
import pytest
import torch

from neuroexplain.sources._choice import Choice
from neuroexplain.sources._health import Health, measure_health
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.subject.load import load_subject
from tests.fakes import tiny_subject
from tests.sources.dictionaries.made import save, write
from tests.sources.test_brute_force import segments
from tests.sources.test_latents import encoded, make, tensors

D = 16


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(str(tiny_subject(tmp_path_factory.mktemp("health") / "model")), "float32")


def measure(subject, folder, kind="sae", ids=None):
    opened = SOURCES.load(kind).with_dictionary(Choice(str(folder)), any_model=False)
    sources = find_sources(subject, opened, kind, opened.layers())
    ids = segments() if ids is None else ids
    return {health.layer: health for health in measure_health(subject, sources, ids)}, opened, sources


def read(subject, module):
    """Tokens 64..127 of what leaves a module, [any, 16]."""
    seen = []
    handle = subject.model.get_submodule(module).register_forward_hook(
        lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        subject.model(segments(), use_cache=False)
    handle.remove()
    return seen[0][:, 64:].reshape(-1, D).double().numpy()


def explained(truth, predicted):
    return 1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()


@pytest.mark.parametrize("rule", ["standard", "jumprelu", "topk"])
def test_figures_are_those_of_all_latents(tmp_path, subject, rule):
    figures, _, _ = measure(subject, make(tmp_path, rule))
    for layer in (0, 1):
        truth = read(subject, f"layers.{layer}")
        latents = encoded(rule, truth, layer)
        health = figures[layer]
        assert health.n_tokens == 30 * 64
        assert health.l0 == pytest.approx((latents > 0).sum(1).mean(), rel=1e-3)
        assert health.silent_share == (latents == 0).all(0).mean()
        x = tensors(layer)
        right = explained(truth, latents @ x["W_dec"] + x["b_dec"])
        assert health.variance_explained == pytest.approx(right, rel=1e-4)


def whole(folder, kind="sae", **hooks):
    """A dictionary that predicts what it reads: a latent for each direction and its opposite."""
    both = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    write(
        folder,
        {"architecture": kind if kind != "sae" else "standard", "metadata": {"model_name": "model"} | hooks},
    )
    zeros = {"b_enc": np.zeros(2 * D, np.float32), "b_dec": np.zeros(D, np.float32)}
    save(folder / "sae_weights.safetensors", {"W_enc": both.T, "W_dec": both} | zeros)


def test_a_dictionary_that_predicts_everything_explains_everything(tmp_path, subject):
    whole(tmp_path / "x", hook_name="blocks.1.hook_resid_post")
    figures, opened, sources = measure(subject, tmp_path / "x")
    assert figures[1].variance_explained == pytest.approx(1.0)
    assert figures[1].l0 == D
    (health,) = opened.check(subject, sources, segments())
    assert "16.0 latents are active at a token" in health.line
    assert "1.00 of the variance" in health.line
    assert health.warning is None


def test_a_transcoder_is_compared_with_what_it_predicts(tmp_path, subject):
    hooks = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    whole(tmp_path / "x", "transcoder", **hooks)
    figures, _, _ = measure(subject, tmp_path / "x", "transcoder")
    read_in, written = read(subject, "layers.1.post_attention_layernorm"), read(subject, "layers.1.mlp")
    assert figures[1].variance_explained == pytest.approx(explained(written, read_in), rel=1e-4)


def test_a_wrong_dictionary_is_warned_of(tmp_path, subject):
    _, opened, sources = measure(subject, make(tmp_path, "standard"))
    first, second = opened.check(subject, sources, segments())
    assert first.warning.startswith("Layer 0: it explains little of the variance. It may be another model's")
    assert second.warning is not None


@pytest.mark.parametrize(
    ("explained", "l0", "published", "warned"),
    [
        (0.8, 40, None, False),
        (0.8, 40, 30, False),
        (0.8, 46, 30, True),
        (0.8, 14, 30, True),
        (0.29, 40, None, True),
        (None, 0, None, True),
    ],
)
def test_what_is_warned_of(explained, l0, published, warned):
    assert (Health(3, 4096, l0, 0.1, explained, published).warning is not None) == warned
