"""The local engine against the model's own forward pass."""

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from neuroexplain.llm.local import LocalEngine
from tests.fakes import tiny_subject, tiny_tokenizer


def test_what_a_model_does_to_its_logits_counts(tmp_path):
    """Gemma 2 caps them: against the model's own forward pass, with and without the shared part."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = Gemma2Config(vocab_size=330, num_key_value_heads=1, final_logit_softcapping=0.5, **sizes)
    model = Gemma2ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= 8
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    engine = LocalEngine(str(tmp_path), "float32")
    ids, rows, levels = list(range(40)), [20, 30, 39], [[3, 4], [7]]
    with torch.inference_mode():
        logits = engine._model(torch.tensor([ids])).logits[0].double()
    assert logits.abs().max() <= 0.5
    true = logits.softmax(-1).numpy()
    expected = np.stack([true[rows][:, [3, 4]].sum(1), true[rows, 7]], axis=1)
    for shared in (0, 9):
        np.testing.assert_allclose(engine.level_distributions(ids, rows, levels, shared), expected, rtol=1e-4)
    np.testing.assert_allclose(np.exp(engine.next_token_logprobs(ids)), true[-1], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_next_tokens_are_those_of_each_prompt_alone_bit_for_bit(tmp_path, dtype):
    """Whatever else is asked, in whatever order; and next to the same without sharing."""
    engine = LocalEngine(str(tiny_subject(tmp_path, "llama", bos=True)), dtype)
    generator = np.random.default_rng(0)
    beginning = generator.integers(3, 300, 20).tolist()
    prompts = [beginning + generator.integers(3, 300, n).tolist() for n in generator.integers(1, 6, 41)]
    levels = [[5, 6], [7], [9, 4]]
    together = engine.next_distributions(prompts, levels, shared=20)
    for n in (0, 7, 40):
        np.testing.assert_array_equal(engine.next_distributions([prompts[n]], levels, 20)[0], together[n])
    order = generator.permutation(41)
    moved = engine.next_distributions([prompts[n] for n in order], levels, 20)
    np.testing.assert_array_equal(moved, together[order])
    for prompt, own in zip(prompts, together, strict=True):
        whole = engine.level_distributions(prompt, [len(prompt) - 1], levels)[0]
        np.testing.assert_allclose(own, whole, rtol=1e-4 if dtype == "float32" else 0.1)
    assert engine.next_distributions([], levels).shape == (0, 3)
    with pytest.raises(ValueError, match="first 22 tokens"):
        engine.next_distributions([[*beginning, 3, 4]], levels, shared=22)


def test_what_prompts_share_is_computed_once(tmp_path):
    engine = LocalEngine(str(tiny_subject(tmp_path, "llama", bos=True)))
    prompts = [[*range(3, 23), n] for n in range(30, 50)]
    engine.next_distributions(prompts, [[5], [6]], shared=20)
    assert engine.usage.prompt_tokens == 20 * 21
    assert engine.usage.cached_tokens == 19 * 20
    assert engine.usage.requests == 20
