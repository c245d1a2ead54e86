"""What people's model folders hold: weights counted as loaded, adapters, quantized checkpoints, code of their
own.
"""

import json
import shutil
import sqlite3
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.load import load_causal_lm, load_subject
from neuroexplain.subject.weights import count_weight_bytes, loaded_files
from tests.fakes import tiny_subject, words

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def model(tmp_path):
    return tiny_subject(tmp_path / "model")


def n_numbers(folder):
    return sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize("item_size", [2, 4])
def test_weights_count_once_and_as_they_are_loaded(model, item_size):
    n = n_numbers(model)
    assert count_weight_bytes(model, item_size) == n * item_size
    for name in ("consolidated.safetensors", "pytorch_model.bin", "training_args.bin"):
        shutil.copy(model / "model.safetensors", model / name)
    assert count_weight_bytes(model, item_size) == n * item_size
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model / "sharded", max_shard_size="20KB")
    for name in ("consolidated.safetensors", "pytorch_model.bin"):
        shutil.copy(model / "model.safetensors", model / "sharded" / name)
    assert len(loaded_files(model / "sharded")) > 1
    assert count_weight_bytes(model / "sharded", item_size) == n * item_size


def test_packed_weights_count_as_they_are_stored(tmp_path):
    save_file(
        {"q": torch.zeros(8, 8, dtype=torch.uint8), "s": torch.zeros(8)}, tmp_path / "model.safetensors"
    )
    assert count_weight_bytes(tmp_path, 2) == 64 + 16


def test_a_broken_header_leaves_it_to_loading_to_say_so(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert count_weight_bytes(tmp_path, 4) == 100
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    assert count_weight_bytes(tmp_path / "model.gguf", 4) >= 0


def test_a_gguf_file_says_how_many_numbers_it_holds(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("half", np.zeros((32, 64), np.float16))
    packed = gguf.quantize(np.zeros((4, 64), np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert count_weight_bytes(tmp_path / "model.gguf", 4) == (32 + 4) * 64 * 4


def test_an_adapter_is_named_with_its_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(NeuroexplainError, match=r"adapter \(PEFT\) of org/base.*merge_and_unload"):
        load_subject(str(tmp_path))


def test_a_quantized_checkpoint_is_refused_as_a_subject(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(NeuroexplainError, match=r"quantized \(awq\).*not quantized, or a \.gguf"):
        load_subject(str(model))


def test_code_of_a_model_is_run_only_if_that_is_allowed(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"auto_map": names, "model_type": "own_model"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(CODE)
    command = [sys.executable, "-m", "neuroexplain.cli.main", "collect", "--model", str(model)]
    (tmp_path / "text.txt").write_text(words(3_000))
    command += ["--dataset", str(tmp_path / "text.txt"), "--db", str(tmp_path / "x.db"), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, input="y\ny\ny\n", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "comes with code of its own" in done.stderr
    assert "--trust-remote-code" in done.stderr
    loaded, _, _ = load_causal_lm(str(model), "float32", "cpu", trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"


def test_float16_that_overflows_is_an_error_that_names_the_layer(model, tmp_path):
    state = load_file(model / "model.safetensors")
    state["model.layers.1.mlp.gate_proj.weight"] *= 1e6
    save_file(state, model / "model.safetensors", {"format": "pt"})
    (tmp_path / "text.txt").write_text(words(6_000))
    command = [sys.executable, "-m", "neuroexplain.cli.main", "collect", "--model", str(model)]
    command += ["--dataset", str(tmp_path / "text.txt"), "--db", str(tmp_path / "x.db"), "--dtype"]
    done = subprocess.run([*command, "float16"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Layer 1 of" in done.stderr
    assert "--dtype bfloat16 | --dtype float32" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.db").exists()
    assert not list(tmp_path.glob("*.checkpoint*"))
    done = subprocess.run([*command, "float32"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "x.db") as connection:
        ((maximum,),) = connection.execute("SELECT max(max_activation) FROM units WHERE layer = 1")
    assert 65_504 < maximum < float("inf")
