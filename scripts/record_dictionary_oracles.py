"""Save small dictionaries with the libraries that define their formats, and record what those compute.

    scripts/setup_oracles.sh && .venv-oracles/bin/python scripts/record_dictionary_oracles.py

It writes tests/sources/dictionaries/oracles: a folder for each dictionary, as its library saves it, and
`outputs.json`. Of each dictionary that has the input, what the library encodes and what it predicts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).parent.parent / "tests/sources/dictionaries/oracles"
D_IN, N, D_OUT = 4, 6, 3
MODEL = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"}


def main() -> None:
    torch.manual_seed(11)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    inputs = torch.randn(8, D_IN)
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        for record in (record_sae_lens, record_sparsify, record_dictionary_learning):
            record(inputs, lambda name, latents, predicted: outputs.update({name: [latents, predicted]}))
    values = {name: [part.double().tolist() for part in parts] for name, parts in outputs.items()}
    text = json.dumps({"inputs": inputs.double().tolist(), "outputs": values}, indent=None)
    (OUT / "outputs.json").write_text(text + "\n")
    print(f"{len(values)} dictionaries in {OUT}")


Keep = Callable[[str, torch.Tensor, torch.Tensor], None]


def randomize(module: torch.nn.Module) -> None:
    """Random parameters in place; thresholds and norms above 0."""
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn_like(parameter)
        if "threshold" in name:
            parameter.data = parameter.data.abs() * 0.6


def record_sae_lens(inputs: torch.Tensor, keep: Keep) -> None:
    """Inference SAEs and transcoders of each architecture and norm, and what training saves."""
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAE, SAEMetadata

    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "standard": ("standard", {}),
        "standard_not_subtracted": ("standard", {"apply_b_dec_to_input": False}),
        "standard_layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
        "standard_constant_norm": ("standard", {"normalize_activations": "constant_norm_rescale"}),
        "standard_factor": ("standard", {"normalize_activations": "expected_average_only_in"}),
        "gated": ("gated", {}),
        "jumprelu": ("jumprelu", {}),
        "topk": ("topk", {"k": 2}),
        "topk_rescaled": ("topk", {"k": 2, "rescale_acts_by_decoder_norm": True}),
    }
    not_subtracted = {"apply_b_dec_to_input": False, "d_out": D_OUT}
    for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        cases[name] = (name, not_subtracted)
    for name, (architecture, options) in cases.items():
        sae_class, config_class = get_sae_class(architecture)
        metadata = MODEL | ({"hook_name_out": "blocks.1.hook_mlp_out"} if "transcoder" in name else {})
        config = config_class(d_in=D_IN, d_sae=N, metadata=SAEMetadata(**metadata), **options)
        sae = sae_class(config)
        randomize(sae)
        folder = OUT / f"sae_lens_{name}"
        sae.save_model(folder)
        loaded = SAE.load_from_disk(folder)
        if "factor" in name:
            loaded.fold_activation_norm_scaling_factor(0.4)
        keep(folder.name, loaded.encode(inputs), loaded(inputs))
    record_old_sae_lens(inputs, keep)
    trained: dict[str, dict[str, Any]] = {
        "batchtopk": {"k": 2},
        "matryoshka_batchtopk": {"k": 2, "matryoshka_widths": [2, N]},
        "jumprelu": {},
    }
    for architecture, options in trained.items():
        sae_class, config_class = get_sae_training_class(architecture)
        sae: TrainingSAE = sae_class(
            config_class(d_in=D_IN, d_sae=N, metadata=SAEMetadata(**MODEL), **options)
        )
        randomize(sae)
        if architecture != "jumprelu":
            sae.topk_threshold.data.fill_(0.8)
        folder = OUT / f"sae_lens_trained_{architecture}"
        sae.save_inference_model(folder)
        loaded = SAE.load_from_disk(folder)
        keep(folder.name, loaded.encode(inputs), loaded(inputs))
    shutil.copytree(OUT / "sae_lens_jumprelu", OUT / "sae_lens_jumprelu_folded")
    loaded = SAE.load_from_disk(OUT / "sae_lens_jumprelu_folded")
    loaded.fold_W_dec_norm()
    loaded.save_model(OUT / "sae_lens_jumprelu_folded")
    keep("sae_lens_jumprelu_folded", loaded.encode(inputs), loaded(inputs))


def record_old_sae_lens(inputs: torch.Tensor, keep: Keep) -> None:
    """The configurations of versions before 6, whose keys are flat, beside weights that the library saved."""
    from sae_lens.saes.sae import SAE

    flat = {"d_in": D_IN, "d_sae": N, "dtype": "float32", "device": "cpu", "model_name": "tiny"}
    old = {
        "standard": flat | {"hook_point": MODEL["hook_name"], "hook_point_layer": 1, "l1_coefficient": 5},
        "topk": flat
        | {
            "architecture": "standard",
            "hook_name": MODEL["hook_name"],
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 3},
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "sae_lens_training_version": "3.22.2",
        },
    }
    for name, config in old.items():
        folder = OUT / f"sae_lens_old_{name}"
        folder.mkdir()
        shutil.copy(OUT / "sae_lens_standard" / "sae_weights.safetensors", folder)
        (folder / "cfg.json").write_text(json.dumps(config))
        loaded = SAE.load_from_disk(folder)
        keep(folder.name, loaded.encode(inputs), loaded(inputs))


def record_sparsify(inputs: torch.Tensor, keep: Keep) -> None:
    """SAEs and transcoders, each in a folder that is called like its module."""
    from sparsify import SparseCoder, SparseCoderConfig

    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "topk": ("layers.1", {"k": 2}),
        "groupmax": ("layers.1", {"k": 3, "activation": "groupmax"}),
        "transcoder": ("layers.1.mlp", {"k": 2, "transcode": True}),
        "skip": ("layers.1.mlp", {"k": 2, "transcode": True, "skip_connection": True}),
    }
    for name, (module, options) in cases.items():
        coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=N, **options))
        randomize(coder)
        folder = OUT / f"sparsify_{name}"
        coder.save_to_disk(folder / module)
        (folder / "config.json").write_text(json.dumps({"model": "tiny"}))
        loaded = SparseCoder.load_from_disk(folder / module)
        encoded = loaded.encode(inputs)
        latents = torch.zeros(len(inputs), N).scatter(1, encoded.top_indices.long(), encoded.top_acts)
        keep(folder.name, latents, loaded(inputs).sae_out)


def record_dictionary_learning(inputs: torch.Tensor, keep: Keep) -> None:
    """Each class. The package's own start would need what only its training uses."""
    spec = importlib.util.find_spec("dictionary_learning")
    root = Path(spec.submodule_search_locations[0])
    for name, folder in (("dictionary_learning", root), ("dictionary_learning.trainers", root / "trainers")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    modules = ("dictionary", "trainers.top_k", "trainers.batch_top_k", "trainers.matryoshka_batch_top_k")
    plain, top_k, batch, matryoshka = (
        importlib.import_module(f"dictionary_learning.{module}") for module in modules
    )
    cases = {
        "AutoEncoder": plain.AutoEncoder(D_IN, N),
        "AutoEncoderNew": plain.AutoEncoderNew(D_IN, N),
        "GatedAutoEncoder": plain.GatedAutoEncoder(D_IN, N),
        "JumpReluAutoEncoder": plain.JumpReluAutoEncoder(D_IN, N),
        "AutoEncoderTopK": top_k.AutoEncoderTopK(D_IN, N, 2),
        "BatchTopKSAE": batch.BatchTopKSAE(D_IN, N, 2),
        "MatryoshkaBatchTopKSAE": matryoshka.MatryoshkaBatchTopKSAE(D_IN, N, 2, [2, 4]),
    }
    for name, dictionary in cases.items():
        randomize(dictionary)
        if name.endswith(("TopK", "TopKSAE")):
            dictionary.threshold.fill_(0.9)
        folder = OUT / f"dictionary_learning_{name}"
        folder.mkdir()
        torch.save(dictionary.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": name, "layer": 1, "lm_name": "tiny", "submodule_name": "resid_post_layer_1"}
        config = {"trainer": trainer | {"k": 2}, "buffer": {"ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(config))
        keep(folder.name, dictionary.encode(inputs), dictionary(inputs))


if __name__ == "__main__":
    main()
