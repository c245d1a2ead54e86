"""What cannot be read says what was asked, what there is, and what to do."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources._choice import Choice
from neuroexplain.sources.dictionaries._files import open_folder
from neuroexplain.sources.dictionaries._open import find_members, read_member
from tests.sources.dictionaries import made
from tests.sources.dictionaries.made import B_DEC, CASE_NAMES, CASES, E, W, save


def read(folder, kind="sae", **options):
    choice = Choice(str(folder), **options)
    return read_member(find_members(choice, kind)[1], choice)


def weight_file(folder):
    files = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npz", ".pt")]
    assert len(files) == 1
    return files[0]


@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_a_truncated_file_is_named(tmp_path, case, share):
    make, name = case
    kind, *_ = make(tmp_path, name)
    file = weight_file(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(NeuroexplainError, match=f"(?s){file.name}.*(damaged|holds more than)") as error:
        read(tmp_path, kind)
    assert "get it again" in str(error.value) or "Save those alone" in str(error.value)


@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_a_folder_without_its_weights_lists_what_it_has_and_what_is_read(tmp_path, case):
    make, name = case
    kind, *_ = make(tmp_path, name)
    weight_file(tmp_path).unlink()
    with pytest.raises(NeuroexplainError, match=r"no dictionary that is known|holds no ") as error:
        read(tmp_path, kind)
    message = str(error.value)
    assert "sae_weights.safetensors" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
def test_a_missing_tensor_is_named_beside_those_there_are(tmp_path, case):
    make, name = case
    kind, *_ = make(tmp_path, name)
    file = weight_file(tmp_path)
    if file.suffix == ".safetensors":
        save(file, {"other": E})
    elif file.suffix == ".npz":
        np.savez(file, other=E)
    else:
        torch.save({"other": torch.from_numpy(E)}, file)
    with pytest.raises(NeuroexplainError, match=r"holds no tensor .*It holds: other \[6, 4\]"):
        read(tmp_path, kind)


def test_shapes_that_do_not_fit_are_told(tmp_path):
    made.sae_lens(tmp_path / "x", {"architecture": "standard"}, b_enc=np.zeros(5), W_dec=W[:, :3])
    with pytest.raises(
        NeuroexplainError, match=r"bias is \[5\] in place of \[6\].*bias is \[4\] in place of \[3\]"
    ):
        read(tmp_path / "x")
    made.sae_lens(tmp_path / "y", {"architecture": "topk", "k": 7})
    with pytest.raises(NeuroexplainError, match=r"k is 7, with 6 latents"):
        read(tmp_path / "y")
    made.make_sparsify(tmp_path / "z", "groupmax")
    config = tmp_path / "z" / "layers.1" / "cfg.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"k": 4}))
    with pytest.raises(NeuroexplainError, match=r"6 latents do not make 4 equal groups"):
        read(tmp_path / "z")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal'.*standard, gated"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, "activation function 'tanh-relu'"),
        (
            {"architecture": "standard", "normalize_activations": "covariance_whitening"},
            "'covariance_whitening'",
        ),
        ({"architecture": "standard", "normalize_activations": True}, "--input-scale"),
        ({"architecture": "topk"}, "does not tell k"),
        ({"architecture": "standard", "hook_head_index": 3}, "head 3 alone"),
    ],
)
def test_what_is_not_known_of_sae_lens_is_refused(tmp_path, config, message):
    made.sae_lens(tmp_path / "x", config)
    with pytest.raises(NeuroexplainError, match=message):
        read(tmp_path / "x")


def test_other_unknown_architectures_are_refused(tmp_path):
    for make, name, file, change, message in (
        (made.make_sparsify, "topk", "cfg.json", {"activation": "sine"}, "'sine'"),
        (made.make_sparsify, "topk", "cfg.json", {"signed": True}, "signed"),
        (made.make_gemma_scope_2, "sae", "config.json", {"architecture": "x"}, "'x'"),
        (made.make_llama_scope, "sae", "hyperparams.json", {"act_fn": "sine"}, "'sine'"),
        (made.make_llama_scope, "sae", "hyperparams.json", {"jump_relu_threshold": None}, "jump_relu_thr"),
    ):
        folder = tmp_path / f"{make.__name__}-{message}"
        make(folder, name)
        (config,) = folder.rglob(file)
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        with pytest.raises(NeuroexplainError, match=message):
            read(folder)
    made.make_dictionary_learning(tmp_path / "d", "AutoEncoder")
    (tmp_path / "d" / "config.json").write_text('{"trainer": {"dict_class": "Mine", "layer": 1}}')
    with pytest.raises(NeuroexplainError, match=r"class 'Mine'.*AutoEncoder, AutoEncoderNew"):
        read(tmp_path / "d", site="hook_resid_post")
    made.make_circuit_tracer(tmp_path / "c", "relu")
    (tmp_path / "c" / "config.yaml").write_text("model_kind: cross_layer\nfeature_input_hook: x\n")
    with pytest.raises(NeuroexplainError, match="cross_layer"):
        read(tmp_path / "c", "transcoder")


class Harmful:
    def __reduce__(self):
        return (open, ("/tmp/neuroexplain-test-pwned", "w"))


@pytest.mark.parametrize("how", ["whole object", "pickle", "list", "text"])
def test_a_pickle_of_anything_but_tensors_is_not_opened(tmp_path, how):
    made.make_dictionary_learning(tmp_path / "x", "AutoEncoder")
    file = tmp_path / "x" / "ae.pt"
    if how == "whole object":
        torch.save({"encoder.weight": Harmful()}, file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(Harmful()))
    elif how == "list":
        torch.save([torch.zeros(2)], file)
    else:
        torch.save({"bias": "text"}, file)
    with pytest.raises(NeuroexplainError, match=r"torch\.save\(dictionary\.state_dict\(\)"):
        read(tmp_path / "x")
    assert not Path("/tmp/neuroexplain-test-pwned").exists()


def test_arrays_of_objects_are_not_opened(tmp_path):
    made.make_gemma_scope(tmp_path, "sae")
    np.savez(weight_file(tmp_path), W_enc=np.array([Harmful()], dtype=object))
    with pytest.raises(NeuroexplainError, match=r"params\.npz.*allow_pickle"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": 1', "\xff"])
def test_a_configuration_that_is_none_is_named(tmp_path, text):
    made.make_sparsify(tmp_path, "topk")
    config = tmp_path / "layers.1" / "cfg.json"
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(NeuroexplainError, match=r"cfg\.json"):
        read(tmp_path)
    made.make_circuit_tracer(tmp_path / "c", "relu")
    (tmp_path / "c" / "config.yaml").write_bytes(b"a: [\x01")
    with pytest.raises(NeuroexplainError, match=r"config\.yaml"):
        read(tmp_path / "c", "transcoder")


def test_a_folder_that_does_not_exist_and_a_name_that_the_hub_does_not_give(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NeuroexplainError, match=r"does not exist.*OWNER/NAME"):
        open_folder("./missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NeuroexplainError, match="is a file"):
        open_folder(str(tmp_path / "file"))
    with pytest.raises(NeuroexplainError, match=r"no such folder here, and owner/name on the hub"):
        open_folder("owner/name/layers.3")


def test_the_kind_that_there_is_is_named(tmp_path):
    made.make_sparsify(tmp_path, "transcoder")
    with pytest.raises(NeuroexplainError, match=r"no SAEs, but transcoders of the layers 1.*--source tr"):
        find_members(Choice(str(tmp_path)), "sae")


def test_several_of_a_layer_are_listed_and_a_glob_chooses(tmp_path):
    for l0 in (20, 81):
        for layer in (0, 3):
            place = tmp_path / "gemma-scope-2b-pt-res" / f"layer_{layer}" / "width_6" / f"average_l0_{l0}"
            place.mkdir(parents=True)
            tensors = {"W_enc": E.T, "W_dec": W, "b_enc": made.B, "b_dec": B_DEC, "threshold": made.T}
            np.savez(place / "params.npz", **tensors)
    with pytest.raises(NeuroexplainError, match=r"2 SAEs of layer 0: .*average_l0_20.*average_l0_81.*glob"):
        find_members(Choice(str(tmp_path)), "sae")
    members = find_members(Choice(f"{tmp_path}/*/layer_*/width_6/average_l0_8*"), "sae")
    assert {layer: member.entry.l0 for layer, member in members.items()} == {0: 81.0, 3: 81.0}
    assert members[3].entry.model == "google/gemma-2-2b"
    with pytest.raises(NeuroexplainError, match=r"It holds no file"):
        find_members(Choice(f"{tmp_path}/*/layer_*/width_7"), "sae")


def test_a_folder_that_does_not_tell_its_place_is_told_it(tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    np.savez(place / "params.npz", W_enc=E.T, W_dec=W, b_enc=made.B, b_dec=B_DEC, threshold=made.T)
    with pytest.raises(NeuroexplainError, match=r"does not tell which layer.*--site blocks\.12"):
        find_members(Choice(str(place)), "sae")
    (member,) = find_members(Choice(str(place), site="blocks.2.hook_mlp_out"), "sae").values()
    assert (member.entry.layer, member.entry.site) == (2, "blocks.2.hook_mlp_out")
    place = tmp_path / "layer_4"
    place.mkdir()
    (tmp_path / "mine" / "params.npz").rename(place / "params.npz")
    with pytest.raises(NeuroexplainError, match=r"does not tell where in the model"):
        find_members(Choice(str(place)), "sae")
    (member,) = find_members(Choice(str(place), site="hook_mlp_out"), "sae").values()
    assert (member.entry.layer, member.entry.site) == (4, "blocks.4.hook_mlp_out")


def test_every_layer_of_a_set_is_there(tmp_path):
    made.make_circuit_tracer(tmp_path, "relu")
    for layer in (0, 2, 10):
        (tmp_path / f"layer_{layer}.safetensors").write_bytes((tmp_path / "layer_1.safetensors").read_bytes())
    members = find_members(Choice(str(tmp_path)), "transcoder")
    assert list(members) == [0, 1, 2, 10]
    assert members[10].entry.site == "blocks.10.mlp.hook_in"


def test_a_hub_name_is_read_from_what_was_downloaded_before(tmp_path, monkeypatch):
    """Without a network: the hub's own layout of its cache."""
    import huggingface_hub

    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    made.make_sparsify(repository / "snapshots" / ("0" * 40), "topk")
    for name in ("owner/name", "owner/name/layers.1", "owner/name/layers.*"):
        monkeypatch.chdir(tmp_path)
        assert list(find_members(Choice(name), "sae")) == [1]
