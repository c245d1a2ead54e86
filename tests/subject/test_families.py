"""Every family of the table, on a tiny random model: activations computed again from the MLP's input."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.base import find_sources
from neuroexplain.sources.mlp import KIND
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.families import FAMILIES
from neuroexplain.subject.load import load_subject
from tests.fakes import tiny_tokenizer

SMALL = {
    "vocab_size": 330,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA = {"intermediate_size": 24, "num_key_value_heads": 1, "pad_token_id": 0}
CONFIGS = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "olmo2", "granite", "smollm3", "stablelm"), SMALL | LLAMA
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), SMALL | LLAMA | {"head_dim": 8}),
    "phi3": SMALL | LLAMA,
    "phi": SMALL | {"intermediate_size": 24},
    "starcoder2": SMALL | LLAMA,
    "gpt2": {"vocab_size": 330, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 256},
    "gpt_neox": SMALL | {"intermediate_size": 24},
    "falcon": SMALL | {"ffn_hidden_size": 24},
    "opt": SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16},
}
# How each MLP computes: (gate or None, up, down) below a layer; the fused one of Phi-3 is split in two.
PARTS = {
    **dict.fromkeys(CONFIGS, ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
    "phi3": ("fused", "mlp.gate_up_proj", "mlp.down_proj"),
    "phi": (None, "mlp.fc1", "mlp.fc2"),
    "starcoder2": (None, "mlp.c_fc", "mlp.c_proj"),
    "gpt2": (None, "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": (None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "falcon": (None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "opt": (None, "fc1", "fc2"),
}
ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


def saved(folder, family, **more):
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **CONFIGS.get(family, SMALL | LLAMA), **more)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def function_of(config):
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    return ACTIVATIONS[next(name for name in (getattr(config, n, None) for n in names) if name)]


def test_every_family_of_the_table_is_tested():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", CONFIGS)
def test_activations_are_those_of_the_mlp(tmp_path, family):
    subject = load_subject(saved(tmp_path, family), dtype="float32")
    assert (len(subject.layers), subject.d_mlp) == (2, 24)
    gate, up, down = PARTS[family]
    function = function_of(subject.model.config)
    ids = torch.randint(2, 320, (3, 128), generator=torch.Generator().manual_seed(2)).to(subject.device)
    seen = {}
    for n, layer in enumerate(subject.layers):
        for name, path in (("in", up), ("out", down)):
            module = layer.get_submodule(path)
            module.register_forward_hook(
                lambda m, a, o, n=n, name=name: seen.__setitem__((n, name), (a[0], o.clone()))
            )
    with torch.inference_mode():
        subject.model(ids, use_cache=False)
        for activation in ("act", "post"):
            captured = {}
            sources = find_sources(subject, "mlp", activation, (0, 1))
            capture_activations(
                subject, ids, sources, lambda n, acts, to=captured: to.update({n: (acts, acts.clone())})
            )
            assert all(torch.equal(*both) for both in captured.values())  # nothing wrote into them later
            acts = {n: copy for n, (_, copy) in captured.items()}
            for n, layer in enumerate(subject.layers):
                before, projected = seen[n, "in"]
                if gate == "fused":
                    g, u = projected.chunk(2, dim=-1)
                else:
                    g, u = (
                        (projected, None) if gate is None else (layer.get_submodule(gate)(before), projected)
                    )
                act = function(g)
                expected = act if activation == "act" or u is None else act * u
                torch.testing.assert_close(acts[n], expected.view(3, 128, 24), rtol=1e-4, atol=1e-6)
                if activation == "post":
                    bias = getattr(layer.get_submodule(down), "bias", None)
                    written = seen[n, "out"][1].view(3, 128, 16) - (0 if bias is None else bias)
                    torch.testing.assert_close(
                        acts[n] @ KIND.write_vectors(subject, sources[n]), written, rtol=1e-3, atol=1e-5
                    )
    assert subject.norm_weight().shape == (16,)
    assert subject.unembedding.shape == (330, 16)


@pytest.mark.parametrize(
    ("family", "more", "message"),
    [
        ("mixtral", {"num_local_experts": 2}, "mixture of experts"),
        ("qwen2_moe", {"num_experts": 2}, "mixture of experts"),
        ("bloom", {}, "family 'bloom'.*looks for a list of layers"),
        ("llama", {}, "reads 64 tokens at once"),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_weights_are(tmp_path, family, more, message):
    if family == "llama":
        more = {"max_position_embeddings": 64}
    config = AutoConfig.for_model(family, **SMALL | LLAMA | more)
    config.save_pretrained(tmp_path)  # there are no weights to read
    with pytest.raises(NeuroexplainError, match=message):
        load_subject(str(tmp_path))
