"""A subject of the test's own: a tiny random model and a tokenizer trained on the spot, so that nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neuroexplain.llm.engine import Message, Reply, Usage
from neuroexplain.runs import SimulatorCheck
from neuroexplain.units import Source

WORDS = (
    "the river ran past the old mill while seven grey geese slept under a low red moon "
    "and nobody spoke of money"
).split()


def made_check(**other: Any) -> SimulatorCheck:
    """How well a simulator did on known neurons: 7 of 12 won, one kind of neuron."""
    fields = {
        "scorer": "lexical",
        "scorer_model": "model",
        "engine_version": "local",
        "created_at": "2026-11-29T00:00:00+00:00",
        "n_neurons": 12,
        "n_explanations": 3,
        "n_records": 4,
        "n_won": 7,
        "n_undefined": 1,
        "mean_true": 0.5,
        "mean_false": None,
        "mean_margin": 0.25,
        "computed_per_token": None,
        "seconds": 1.5,
        "kinds": {"words": {"n": 12, "n_won": 7, "mean_true": 0.5, "mean_margin": None}},
    }
    return SimulatorCheck(**fields | other)


def words(n: int, seed: int = 0) -> str:
    """n words in a seeded random order, with some punctuation."""
    picks = torch.randint(len(WORDS), (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return " ".join(WORDS[p] + ("." if i % 11 == 10 else "") for i, p in enumerate(picks))


def run_fields(n_layers: int, d_mlp: int, **other: Any) -> dict[str, Any]:
    """What create_run wants, of a run that no model made: 4 top and 4 random records a neuron, unless told,
    float32.
    """
    run = {"subject": "s", "dtype": "float32", "activation": "act", "layers": list(range(n_layers))}
    run |= {"sources": [Source(layer, "mlp", None, "output", d_mlp, "float32") for layer in range(n_layers)]}
    run |= {
        "n_layers": n_layers,
        "top_k": 4,
        "n_random": 4,
        "seed": 0,
        "tokenizer_sha256": "0" * 64,
        "config": {},
    }
    return run | {"versions": {}} | other


def tiny_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE over WORDS; with `bos` it adds <s> before each text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [words(500)],
        trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet),
    )
    if bos:
        from tokenizers.processors import TemplateProcessing

        raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>" if bos else None, eos_token="</s>")


def tiny_subject(folder: Path, family: str = "llama", *, bos: bool = True, d_mlp: int = 24) -> Path:
    """Save a two-layer random model of the family with its tokenizer; returns the folder."""
    torch.manual_seed(1)
    if family == "llama":
        config = LlamaConfig(
            vocab_size=330,
            hidden_size=16,
            intermediate_size=d_mlp,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        model: torch.nn.Module = LlamaForCausalLM(config)
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=330, n_embd=16, n_layer=2, n_head=2, n_inner=d_mlp, n_positions=128)
        )
    for parameter in model.parameters():
        parameter.data *= 8  # so that neurons differ
    model.save_pretrained(folder)  # type: ignore[operator]
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder


class ScriptedLlm:
    """An explainer's engine that answers by a function of the request, and remembers the requests."""

    engine, version, model, revision = "local", "scripted", "scripted", None
    in_flight, n_servers = 1, None
    prompt_tokens = 7  # of every request

    def __init__(self, answer: Callable[[list[Message], dict[str, Any]], str]) -> None:
        self._answer = answer
        self.requests: list[tuple[list[Message], dict[str, Any]]] = []
        self.usage = Usage()

    def generate(self, messages: list[Message], **sampling: Any) -> Reply:
        self.requests.append((messages, sampling))
        self.usage.add(self.prompt_tokens, None, 3)
        return Reply(self._answer(messages, sampling), self.prompt_tokens, 3, 0.0)
