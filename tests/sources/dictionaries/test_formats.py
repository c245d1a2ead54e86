"""Every row of the table of formats, on dictionaries of 4 x 6 whose values numpy computes by the formulas."""

import json

import numpy as np
import pytest
import torch

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources._choice import Choice
from neuroexplain.sources._encoding import encode, predict
from neuroexplain.sources.dictionaries._open import find_members, fingerprint, read_member
from neuroexplain.sources.dictionaries.base import FORMATS
from tests.sources.dictionaries import made
from tests.sources.dictionaries.made import B_DEC, CASES, PLAIN, SUBTRACTED, B, E, X, relu, top

VALUES = torch.from_numpy(X)[None]


def read(folder, kind, **options):
    choice = Choice(str(folder), **options)
    members = find_members(choice, kind)
    return read_member(members[1], choice)


def latents(dictionary, at_once=6, values=VALUES):
    return torch.cat([acts for _, acts in encode(dictionary, values, at_once)], dim=-1)[0].numpy()


def ids(case):
    return f"{case[0].__name__.removeprefix('make_')}-{case[1]}"


@pytest.mark.parametrize("at_once", [1, 4, 6, 100])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_values_are_those_of_the_formulas(tmp_path, case, at_once):
    make, name = case
    kind, expected, predicted = make(tmp_path / "made", name)
    dictionary = read(tmp_path / "made", kind)
    np.testing.assert_allclose(latents(dictionary, at_once), expected, rtol=1e-5, atol=1e-5)
    assert 0 < (expected > 0).mean() < 1
    ours = predict(dictionary, VALUES, at_once)[0].numpy()
    np.testing.assert_allclose(ours, predicted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_slices_cover_the_latents_in_order_and_have_the_dtype_of_the_values(tmp_path, case):
    make, name = case
    kind, *_ = make(tmp_path / "made", name)
    dictionary = read(tmp_path / "made", kind)
    slices = list(encode(dictionary, VALUES.bfloat16(), 4))
    assert [s.start for s, _ in slices] == [0, 4]
    assert [s.stop for s, _ in slices] == [4, 6]
    assert {acts.dtype for _, acts in slices} == {torch.bfloat16}


def test_every_format_is_tested():
    names = {make.__name__.removeprefix("make_").replace("_", "-") for make in made.MAKERS}
    assert names == set(FORMATS.names())


def test_the_factor_of_a_folder_that_does_not_tell_it_is_needed(tmp_path):
    config = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    made.sae_lens(tmp_path / "x", config)
    with pytest.raises(NeuroexplainError, match=r"factor.*does not tell.*--input-scale"):
        read(tmp_path / "x", "sae")
    dictionary = read(tmp_path / "x", "sae", input_scale=0.4)
    expected = relu((X * 0.4 - B_DEC) @ E.T + B)
    np.testing.assert_allclose(latents(dictionary), expected, rtol=1e-5, atol=1e-5)
    predicted = (expected @ made.W + B_DEC) / 0.4
    np.testing.assert_allclose(predict(dictionary, VALUES, 6)[0].numpy(), predicted, rtol=1e-5, atol=1e-5)


def test_a_mean_norm_that_is_missing_is_needed(tmp_path):
    made.make_llama_scope(tmp_path / "x", "sae")
    config = next((tmp_path / "x").rglob("hyperparams.json"))
    values = json.loads(config.read_text())
    del values["dataset_average_activation_norm"]
    config.write_text(json.dumps(values))
    with pytest.raises(NeuroexplainError, match=r"dataset_average_activation_norm\.in.*\n?.*--input-scale"):
        read(tmp_path / "x", "sae")
    scaled = read(tmp_path / "x", "sae", input_scale=0.4)
    values["dataset_average_activation_norm"] = {"in": 5.0}
    config.write_text(json.dumps(values))
    np.testing.assert_array_equal(latents(scaled), latents(read(tmp_path / "x", "sae")))


def test_a_folded_llama_scope_is_the_same_dictionary(tmp_path):
    """Its encoder times the factor and nothing else: the threshold is of the multiplied input already."""
    _, expected, _ = made.make_llama_scope(tmp_path / "x", "sae")
    factor = np.float32(np.sqrt(made.D) / 5.0)
    z = X @ (E * factor).T + B
    np.testing.assert_allclose(np.where(z > 0.4, z, 0), expected, rtol=1e-5, atol=1e-6)
    wrong = np.where(z > 0.4 * factor, z, 0)  # what scaling the threshold too would give
    assert np.abs(wrong - expected).max() > 0.1


@pytest.mark.parametrize(("subtract", "z"), [(True, SUBTRACTED), (False, PLAIN), (None, PLAIN)])
def test_an_option_says_whether_an_old_transcoder_subtracts(tmp_path, subtract, z):
    made.make_sparsify(tmp_path / "x", "transcoder")
    dictionary = read(tmp_path / "x", "transcoder", subtract_b_dec=subtract)
    np.testing.assert_allclose(latents(dictionary), top(z, 2), rtol=1e-5, atol=1e-5)


def test_values_of_bfloat16_are_summed_in_float32(tmp_path):
    made.make_gemma_scope(tmp_path / "x", "sae")
    dictionary = read(tmp_path / "x", "sae")
    rounded = VALUES.bfloat16()
    z = rounded[0].double().numpy() @ E.T.astype(np.float64) + B
    exact = torch.from_numpy(np.where(z > made.T, relu(z), 0)).bfloat16().float().numpy()
    ours = torch.cat([acts for _, acts in encode(dictionary, rounded, 6)], dim=-1)[0].float().numpy()
    np.testing.assert_array_equal(ours, exact)


def test_a_threshold_is_strict_and_a_stored_one_of_top_k_is_ignored(tmp_path):
    made.make_dictionary_learning(tmp_path / "x", "AutoEncoderTopK")
    assert not hasattr(read(tmp_path / "x", "sae").rule, "threshold")
    at_threshold = np.float32(1.0)
    made.sae_lens(
        tmp_path / "y",
        {"architecture": "jumprelu"},
        W_enc=np.ones((4, 6)),
        b_enc=np.zeros(6),
        b_dec=np.zeros(4),
        threshold=np.full(6, at_threshold),
    )
    values = torch.tensor([[[0.25] * 4, [0.2500001] * 4]])
    assert (latents(read(tmp_path / "y", "sae"), values=values) > 0).tolist() == [[False] * 6, [True] * 6]


@pytest.mark.parametrize("changed", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_a_fingerprint_tells_dictionaries_apart(tmp_path, changed):
    tensors = {"W_enc": E.T, "W_dec": made.W, "b_enc": B, "b_dec": B_DEC, "threshold": made.T}
    made.sae_lens(tmp_path / "x", {"architecture": "jumprelu"}, **tensors)
    tensors[changed] = tensors[changed] * 1.01
    made.sae_lens(tmp_path / "y", {"architecture": "jumprelu"}, **tensors)
    x, y = (fingerprint(read(tmp_path / name, "sae")) for name in "xy")
    assert x != y
    assert x == fingerprint(read(tmp_path / "x", "sae"))


def test_a_choice_is_read_back_from_its_text():
    for choice in (
        Choice("a?b=c/d e"),
        Choice("x/y", "blocks.1.hook_resid_post", 0.123456789, False, "ab12"),
        Choice("/tmp/%20?", None, 1e-30, True),
    ):
        assert Choice.parse(choice.text) == choice
