"""Every place by its hook's name, against sums and projections of what other modules give."""

import pytest
import torch

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import load_subject
from neuroexplain.subject.sites import NORMALIZED, PARTS, added_to_stream, find_site, normalized, width_at
from neuroexplain.units import Source
from tests.subject.test_families import saved

# What each family calls its parts, written apart from the table: layers, the first norm, attention, its
# projection, MLP, its norm, its down-projection, and the norms after attention and MLP.
LLAMA = ("layers", "input_layernorm", "self_attn", "o_proj", "mlp", "post_attention_layernorm", "down_proj")
GEMMA = (*LLAMA[:5], "pre_feedforward_layernorm", "down_proj")
NAMES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), (*LLAMA, None, None)),
    **dict.fromkeys(
        ("gemma2", "gemma3_text"), (*GEMMA, "post_attention_layernorm", "post_feedforward_layernorm")
    ),
    "gpt2": ("h", "ln_1", "attn", "c_proj", "mlp", "ln_2", "c_proj", None, None),
    "gpt_neox": (
        *("layers", "input_layernorm", "attention", "dense", "mlp"),
        *("post_attention_layernorm", "dense_4h_to_h", None, None),
    ),
}
FAMILIES = [*((family, {}) for family in NAMES), ("gpt_neox", {"use_parallel_residual": False})]
HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
HOOKS += ("attn.hook_z", "mlp.hook_in", "mlp.hook_post", NORMALIZED)
D = 16


def ids():
    return torch.randint(2, 320, (3, 128), generator=torch.Generator().manual_seed(2))


def read(subject, hook, layer=1):
    """The values at a hook as neuroexplain reads them."""
    site = find_site(subject, f"blocks.{layer}.{hook}")
    source = Source(layer, "test", site.module, site.side, width_at(subject, site), subject.dtype_name)
    seen = {}
    capture_activations(subject, ids(), {layer: source}, lambda n, values: seen.update({n: values.clone()}))
    values = seen[layer]
    assert values.shape == (3, 128, source.width)
    return normalized(subject.module(site.module), values) if site.is_normalized else values


def expected(subject, names, layer=1):
    """The same by hooks of the test's own, where possible not by reading the place itself."""
    layers, first_norm, attention, projection, mlp, mlp_norm, down, after_attention, after_mlp = names
    module = subject.model.get_submodule(f"{layers}.{layer}")
    seen = {}

    def note(name):
        def hook(module, args, output):
            seen[name] = (args[0] if args else None, output[0] if isinstance(output, tuple) else output)

        return hook

    for name in (first_norm, mlp, mlp_norm, f"{attention}.{projection}", f"{mlp}.{down}", attention):
        module.get_submodule(name).register_forward_hook(note(name))
    for name in (after_attention, after_mlp):
        if name is not None:
            module.get_submodule(name).register_forward_hook(note(name))
    with torch.inference_mode():
        states = subject.model(ids(), use_cache=False, output_hidden_states=True).hidden_states
    before = seen[first_norm][0]
    torch.testing.assert_close(before, states[layer])
    attn_out = seen[after_attention or attention][1]
    mlp_out = seen[after_mlp or mlp][1]
    norm = module.get_submodule(mlp_norm)
    factors = 1 + norm.weight if "gemma" in subject.model.config.model_type else norm.weight
    offset = getattr(norm, "bias", None)
    return {
        "hook_resid_pre": states[layer],
        "hook_resid_mid": before + attn_out,
        "hook_resid_post": before + attn_out + mlp_out,
        "hook_attn_out": attn_out,
        "hook_mlp_out": mlp_out,
        "mlp.hook_in": seen[mlp_norm][1],
        NORMALIZED: (seen[mlp][0] - (0 if offset is None else offset)) / factors,
        # by what the projections make of them
        "attn.hook_z": seen[f"{attention}.{projection}"][1].view(3, 128, D),
        "mlp.hook_post": seen[f"{mlp}.{down}"][1].view(3, 128, D),
    }


@pytest.mark.parametrize(("family", "more"), FAMILIES, ids=str)
def test_every_place_is_where_its_name_says(tmp_path, family, more):
    subject = load_subject(saved(tmp_path, family, **more), dtype="float32")
    for parameter in subject.model.parameters():
        parameter.data = parameter.data * 3 + 0.1
    values = {}
    for hook in HOOKS:
        if hook == "hook_resid_mid" and family == "gpt_neox" and not more:
            with pytest.raises(NeuroexplainError, match="hook_resid_mid is no place"):
                find_site(subject, f"blocks.1.{hook}")
        else:
            values[hook] = read(subject, hook)
    for hook, right in expected(subject, NAMES[family]).items():
        if hook not in values:
            continue
        ours = values[hook]
        if hook in ("attn.hook_z", "mlp.hook_post"):
            site = find_site(subject, f"blocks.1.{hook}")
            ours = added_to_stream(subject, site, ours.view(-1, ours.shape[-1])).view(3, 128, D)
            bias = getattr(subject.module(site.module), "bias", None)
            ours = ours + (0 if bias is None else bias)
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-4, msg=lambda text, hook=hook: hook + text)


def test_every_family_of_the_table_is_tested():
    assert set(NAMES) == set(PARTS)


@pytest.mark.parametrize(("family", "more"), FAMILIES[:1] + FAMILIES[-3:], ids=str)
def test_what_a_vector_adds_to_the_stream(tmp_path, family, more):
    subject = load_subject(saved(tmp_path, family, **more), dtype="float32")
    vectors = torch.eye(D)
    for hook in ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"):
        site = find_site(subject, f"blocks.0.{hook}")
        assert torch.equal(added_to_stream(subject, site, vectors), vectors)
    for hook in (NORMALIZED, "mlp.hook_in"):
        assert added_to_stream(subject, find_site(subject, f"blocks.0.{hook}"), vectors) is None


def test_paths_of_modules_are_places_too(tmp_path):
    subject = load_subject(saved(tmp_path, "gemma2"), dtype="float32")
    same = {
        "model.layers.1.output": "blocks.1.hook_resid_post",
        "layers.1.input": "blocks.1.hook_resid_pre",
        "model.layers.1.self_attn.o_proj.input": "blocks.1.attn.hook_z",
        "model.layers.1.post_feedforward_layernorm.output": "blocks.1.hook_mlp_out",
        "model.language_model.layers.1.mlp.input": "blocks.1.mlp.hook_in",
    }
    for path, hook in same.items():
        assert find_site(subject, path) == find_site(subject, hook)
    subject = load_subject(saved(tmp_path, "gpt2"), dtype="float32")
    assert find_site(subject, "transformer.h.1.mlp.output") == find_site(subject, "blocks.1.hook_mlp_out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.2.hook_resid_post", "layer 2, and .* has 2 layers"),
        ("model.layers.7.output", "layer 7, and .* has 2 layers"),
        ("blocks.1.hook_mlp_in", r"no place that is read.*hook_resid_mid"),
        ("blocks.1.nonsense", "no place that is read"),
        ("layers.1.nonsense.output", "no module layers.1.nonsense"),
        ("embed_tokens", "no hook's name like"),
        ("layers.1", "no hook's name like"),
    ],
)
def test_places_that_are_none_are_refused(tmp_path, name, message):
    subject = load_subject(saved(tmp_path, "llama"), dtype="float32")
    with pytest.raises(NeuroexplainError, match=message):
        find_site(subject, name)


def test_a_family_whose_places_are_not_known_is_refused(tmp_path):
    subject = load_subject(saved(tmp_path, "phi"), dtype="float32")
    with pytest.raises(NeuroexplainError, match=r"family 'phi'.*not known: they are in llama"):
        find_site(subject, "blocks.0.hook_resid_post")
    assert find_site(subject, "layers.0.output").side == "output"
