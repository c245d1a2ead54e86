"""Dictionaries of 4 x 6 made by hand in each format, and what each encodes, by formulas in numpy."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

D, N = 4, 6
X = np.random.default_rng(5).normal(size=(9, D)).astype(np.float32)
RNG = np.random.default_rng(7)
E = RNG.normal(size=(N, D)).astype(np.float32)  # encoder, a row a latent
W = RNG.normal(size=(N, D)).astype(np.float32)  # decoder, a row a latent
B = RNG.normal(size=N).astype(np.float32) * 0.3
B_DEC = RNG.normal(size=D).astype(np.float32)
T = np.abs(RNG.normal(size=N)).astype(np.float32) * 0.5
SKIP = RNG.normal(size=(D, D)).astype(np.float32)
SUBTRACTED, PLAIN = (X - B_DEC) @ E.T + B, X @ E.T + B


def relu(z):
    return np.maximum(z, 0)


def jump(z, threshold):
    return np.where(z > threshold, relu(z), 0)


def top(z, k):
    kept = np.sort(z, axis=1)[:, -k:][:, :1]
    return np.where(z >= kept, relu(z), 0)


def write(folder: Path, config=None, name="cfg.json"):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    return folder


def sae_lens(folder, config, **tensors):
    hook = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}
    hook |= config.pop("metadata", {})
    write(folder, {"d_in": D, "d_sae": N, "metadata": hook} | config)
    tensors = {"W_enc": E.T, "W_dec": W, "b_enc": B, "b_dec": B_DEC} | tensors
    save(folder / "sae_weights.safetensors", tensors)


def save(file, tensors):
    kept = {name: np.ascontiguousarray(value) for name, value in tensors.items() if value is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, file)


def normalized(x):
    centered = x - x.mean(axis=1, keepdims=True)
    return centered / (centered.std(axis=1, ddof=1, keepdims=True) + 1e-5)


def rescaled(x):
    return x * np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)


GATE, MAG, R = B[::-1].copy(), T - 0.2, np.linspace(-0.5, 0.5, N, dtype=np.float32)
Z = (X - B_DEC) @ E.T
GATED = np.where(Z + GATE > 0, relu(Z * np.exp(R) + MAG), 0)
NORMS = np.linalg.norm(W, axis=1)
OUT = {"hook_name_out": "blocks.1.hook_mlp_out"}


def lin(latents):
    return latents @ W + B_DEC


def make_sae_lens(folder, name):
    """(kind, latents, prediction or None) of a SAELens folder."""
    if name == "standard":
        sae_lens(folder, {"architecture": "standard"})
        return "sae", relu(SUBTRACTED), lin(relu(SUBTRACTED))
    if name == "flat":  # before version 6
        sae_lens(folder, {})
        flat = {"hook_point": "blocks.1.hook_resid_post", "model_name": "tiny", "d_in": D, "d_sae": N}
        write(folder, flat | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}})
        return "sae", top(SUBTRACTED, 2), lin(top(SUBTRACTED, 2))
    if name == "not_subtracted":
        sae_lens(folder, {"architecture": "standard", "apply_b_dec_to_input": False})
        return "sae", relu(PLAIN), lin(relu(PLAIN))
    if name == "layer_norm":
        sae_lens(folder, {"architecture": "standard", "normalize_activations": "layer_norm"})
        latents = relu((normalized(X) - B_DEC) @ E.T + B)
        centered = X - X.mean(axis=1, keepdims=True)
        deviation = centered.std(axis=1, ddof=1, keepdims=True)
        return "sae", latents, lin(latents) * deviation + X.mean(axis=1, keepdims=True)
    if name == "constant_norm_rescale":
        sae_lens(folder, {"architecture": "standard", "normalize_activations": "constant_norm_rescale"})
        latents = relu((rescaled(X) - B_DEC) @ E.T + B)
        return "sae", latents, lin(latents) * np.linalg.norm(X, axis=1, keepdims=True) / np.sqrt(D)
    if name == "gated":
        gated = {"b_gate": GATE, "b_mag": MAG, "r_mag": R, "b_enc": None}
        sae_lens(folder, {"architecture": "gated"}, **gated)
        return "sae", GATED, lin(GATED)
    if name == "jumprelu":
        sae_lens(folder, {"architecture": "jumprelu"}, threshold=T)
        return "sae", jump(SUBTRACTED, T), lin(jump(SUBTRACTED, T))
    if name == "log_threshold":
        sae_lens(folder, {"architecture": "jumprelu"}, log_threshold=np.log(T))
        return "sae", jump(SUBTRACTED, T), lin(jump(SUBTRACTED, T))
    if name == "topk":
        sae_lens(folder, {"architecture": "topk", "k": 3})
        return "sae", top(SUBTRACTED, 3), lin(top(SUBTRACTED, 3))
    if name == "topk_rescaled":
        sae_lens(folder, {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True})
        latents = top(SUBTRACTED * NORMS, 3)
        return "sae", latents, (latents / NORMS) @ W + B_DEC
    options = {"architecture": name, "metadata": OUT}  # a transcoder, to 3 dimensions
    outs = {"W_dec": W[:, :3], "b_dec": B_DEC[:3]}
    outs |= {"threshold": T} if "jumprelu" in name else {}
    outs |= {"W_skip": SKIP[:3]} if "skip" in name else {}
    sae_lens(folder, options, **outs)
    latents = jump(PLAIN, T) if "jumprelu" in name else relu(PLAIN)
    skipped = X @ SKIP[:3].T if "skip" in name else 0
    return "transcoder", latents, latents @ W[:, :3] + B_DEC[:3] + skipped


def make_sparsify(folder, name):
    is_transcoder = name in ("transcoder", "skip")
    place = folder / ("layers.1.mlp" if is_transcoder else "layers.1")
    config = {"d_in": D, "k": 2, "num_latents": N, "transcode": is_transcoder, "normalize_decoder": True}
    write(place, config | ({"activation": "groupmax"} if name == "groupmax" else {}))
    tensors = {"encoder.weight": E, "encoder.bias": B, "W_dec": W, "b_dec": B_DEC}
    save(place / "sae.safetensors", tensors | ({"W_skip": SKIP} if name == "skip" else {}))
    z = PLAIN if is_transcoder else SUBTRACTED
    latents = top(z, 2)
    if name == "groupmax":
        groups = relu(z).reshape(-1, 2, 3)
        latents = np.where(groups == groups.max(axis=2, keepdims=True), groups, 0).reshape(-1, N)
    predicted = latents @ W + B_DEC + (X @ SKIP.T if name == "skip" else 0)
    return "transcoder" if is_transcoder else "sae", latents, predicted


def make_gemma_scope(folder, name):
    part = {"sae": "res", "transcoder": "transcoders"}[name]
    place = folder / f"gemma-scope-2b-pt-{part}" / "layer_1" / "width_6" / "average_l0_2"
    place.mkdir(parents=True)
    tensors = {"W_enc": E.T, "W_dec": W, "b_enc": B, "b_dec": B_DEC, "threshold": T}
    np.savez(place / "params.npz", **tensors)
    return name, jump(PLAIN, T), jump(PLAIN, T) @ W + B_DEC


def make_gemma_scope_2(folder, name):
    place = folder / "resid_post" / "layer_1_width_6_l0_small"
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}
    config |= {"hf_hook_point_in": "model.layers.1.output"}
    tensors = {"w_enc": E.T, "w_dec": W, "b_enc": B, "b_dec": B_DEC, "threshold": T}
    predicted = jump(PLAIN, T) @ W + B_DEC
    if name == "transcoder":
        config["hf_hook_point_in"] = "model.layers.1.pre_feedforward_layernorm.output"
        config["hf_hook_point_out"] = "model.layers.1.post_feedforward_layernorm.output"
        tensors["affine_skip_connection"] = SKIP
        predicted = predicted + X @ SKIP
    write(place, config, "config.json")
    save(place / "params.safetensors", tensors)
    return name, jump(PLAIN, T), predicted


def make_llama_scope(folder, name):
    place = folder / "Llama3_1-8B-Base-L1R-8x"
    config = {"d_model": D, "d_sae": N, "jump_relu_threshold": 0.4, "act_fn": "jumprelu"}
    config |= {"hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post"}
    norms = {"in": 5.0, "out": 5.0}
    if name == "transcoder":
        norms["out"] = 8.0
        config |= {"hook_point_in": "blocks.1.hook_resid_mid", "hook_point_out": "blocks.1.hook_mlp_out"}
    write(place, config | {"dataset_average_activation_norm": norms}, "hyperparams.json")
    tensors = {"encoder.weight": E, "encoder.bias": B, "decoder.weight": W.T, "decoder.bias": B_DEC}
    save(place / "checkpoints" / "final.safetensors", tensors)
    latents = jump(X * np.sqrt(D) / norms["in"] @ E.T + B, 0.4)
    return name, latents, (latents @ W + B_DEC) * norms["out"] / np.sqrt(D)


def make_dictionary_learning(folder, name):
    trainer = {"dict_class": name, "layer": 1, "lm_name": "x/tiny", "k": 2, "activation_dim": D}
    write(folder, {"trainer": trainer | {"submodule_name": "resid_post_layer_1"}}, "config.json")
    linear = {"encoder.weight": E, "encoder.bias": B, "decoder.weight": W.T}
    plain = {"W_enc": E.T, "b_enc": B, "W_dec": W, "b_dec": B_DEC}
    k, scalar = {"k": np.array(2, np.int32)}, {"threshold": np.array(0.4, np.float32)}
    gated = {"r_mag": R, "gate_bias": GATE, "mag_bias": MAG, "decoder_bias": B_DEC}
    tensors, latents = {
        "AutoEncoder": (linear | {"bias": B_DEC}, relu(SUBTRACTED)),
        "AutoEncoderNew": (linear | {"decoder.bias": B_DEC}, relu(PLAIN)),
        "AutoEncoderTopK": (linear | {"b_dec": B_DEC} | k | scalar, top(SUBTRACTED, 2)),
        "BatchTopKSAE": (linear | {"b_dec": B_DEC} | k | scalar, jump(SUBTRACTED, 0.4)),
        "MatryoshkaBatchTopKSAE": (plain | k | scalar, jump(SUBTRACTED, 0.4)),
        "JumpReluAutoEncoder": (plain | {"threshold": T}, jump(PLAIN, T)),
        "GatedAutoEncoder": (linear | gated, GATED),
    }[name]
    if name == "GatedAutoEncoder":
        del tensors["encoder.bias"]
    torch.save({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, folder / "ae.pt")
    return "sae", latents, latents @ W + B_DEC


def make_circuit_tracer(folder, name):
    config = "model_name: tiny\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
    write(folder)
    (folder / "config.yaml").write_text(config + "feature_output_hook: hook_mlp_out\n")
    tensors = {"W_enc": E, "W_dec": W, "b_enc": B, "b_dec": B_DEC}
    tensors |= {"activation_function.threshold": T} if name == "jumprelu" else {}
    tensors |= {"W_skip": SKIP} if name == "skip" else {}
    save(folder / "layer_1.safetensors", tensors)
    latents = jump(PLAIN, T) if name == "jumprelu" else relu(PLAIN)
    latents = np.where(np.arange(len(X))[:, None] == 0, 0, latents)  # the first token has none
    return "transcoder", latents, latents @ W + B_DEC + (X @ SKIP.T if name == "skip" else 0)


TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
SAES = ("standard", "flat", "not_subtracted", "layer_norm", "constant_norm_rescale", "gated")
SAES += ("jumprelu", "log_threshold", "topk", "topk_rescaled")
CLASSES = ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
MAKERS = {
    make_sae_lens: (*SAES, *TRANSCODERS),
    make_sparsify: ("topk", "groupmax", "transcoder", "skip"),
    make_gemma_scope: ("sae", "transcoder"),
    make_gemma_scope_2: ("sae", "transcoder"),
    make_llama_scope: ("sae", "transcoder"),
    make_dictionary_learning: (*CLASSES, "JumpReluAutoEncoder", "GatedAutoEncoder"),
    make_circuit_tracer: ("relu", "jumprelu", "skip"),
}
CASES = [(make, name) for make, names in MAKERS.items() for name in names]
CASE_NAMES = [f"{make.__name__}-{name}" for make, name in CASES]
