"""The local engine against the model's own forward pass."""

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from neuroexplain.llm.local import LocalEngine
from tests.fakes import tiny_tokenizer


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
