"""Transformers in this process. One prompt at a time, so that an answer never depends on what else is pending."""

from __future__ import annotations

import copy
import inspect
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import LlamaModel

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Status
from neuroexplain.llm.distributions import sum_levels
from neuroexplain.llm.engine import Message, Reply, Usage, chat_token_ids, opened_thought
from neuroexplain.subject.load import load_causal_lm, tokenizer_sha256

_CACHE = (
    "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
)  # renamed in 5.x


class LocalEngine:
    """A model of this process: exact distributions, greedy unless a temperature is asked for."""

    engine = "local"
    in_flight = 1

    def __init__(self, name: str, dtype: str = "auto", device: str = "auto") -> None:
        self._model, self.tokenizer, self.revision = load_causal_lm(name, dtype, device)
        self._one = threading.Lock()  # one forward pass at a time, whoever asks
        self.model = name.rsplit("/", 1)[-1] if name.endswith(".gguf") else name
        self.version = f"transformers {transformers.__version__}"
        self.used = Usage()
        self._kept: tuple[tuple[int, ...], Any] = ((), None)
        self.tokenizer_sha256 = tokenizer_sha256(self.tokenizer)

    def generate(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float, seed: int
    ) -> Reply:
        began = time.perf_counter()
        ids = chat_token_ids(self.tokenizer, messages)
        self._check_length(len(ids) + max_tokens)
        sampling: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            sampling |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        prompt = torch.tensor([ids], device=self._model.device)
        with self._one, torch.inference_mode():
            torch.manual_seed(seed)
            out = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_tokens,
                pad_token_id=self.tokenizer.eos_token_id or 0,
                **sampling,
            )
        answer = out[0, len(ids) :].tolist()
        self.used.add(len(ids), 0, len(answer))
        text = opened_thought(self.tokenizer, ids) + self.tokenizer.decode(answer, skip_special_tokens=True)
        return Reply(text, len(ids), len(answer), time.perf_counter() - began)

    def level_distributions(
        self,
        token_ids: Sequence[int],
        rows: Sequence[int],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
    ) -> NDArray[np.float64]:
        self._check_length(len(token_ids))
        if shared > min(rows, default=shared):
            raise ValueError(f"a row is among the first {shared} tokens")
        with self._one, torch.inference_mode():
            known, cached = self._read_shared(tuple(token_ids[:shared]))
            self.used.add(len(token_ids), cached, 0)
            logits = self._logits(token_ids[shared:], [row - shared for row in rows], known)
            chosen = logits[:, [token_id for ids in level_token_ids for token_id in ids]] - logits.logsumexp(
                -1, keepdim=True
            )
        return sum_levels(chosen.double().cpu().numpy(), level_token_ids)

    def _logits(self, token_ids: Sequence[int], rows: Sequence[int], known: Any = None) -> torch.Tensor:
        """The model's own logits after the rows, [rows, vocab], float32, with all that it does to them (scaling, capping)."""
        device = self._model.device
        prompt, kept = torch.tensor([list(token_ids)], device=device), torch.tensor(list(rows), device=device)
        cache = {"use_cache": known is not None, _CACHE: known}
        logits: torch.Tensor = self._model(prompt, logits_to_keep=kept, **cache).logits[0].float()
        return logits

    def _read_shared(self, token_ids: tuple[int, ...]) -> tuple[Any, int]:
        """(keys and values of the tokens that many prompts begin with, how many of them were known): the last ones are kept.

        A prompt is always cut at the same place, so its answer does not depend on what was kept.
        """
        if not token_ids:
            return None, 0
        cached = len(token_ids)
        if self._kept[0] != token_ids:
            prompt = torch.tensor([token_ids], device=self._model.device)
            self._kept, cached = (
                (token_ids, getattr(self._model.base_model(prompt, use_cache=True), _CACHE)),
                0,
            )
        return copy.deepcopy(self._kept[1]), cached  # a forward pass appends to it

    def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        self._check_length(len(token_ids))
        self.used.add(len(token_ids), 0, 0)
        with self._one, torch.inference_mode():
            logits = self._logits(token_ids, [len(token_ids) - 1])[0]
        found: NDArray[np.float64] = logits.double().log_softmax(dim=-1).cpu().numpy()
        return found

    def close(self) -> None:
        """Nothing to give back: the model goes with the process."""

    def _check_length(self, n_tokens: int) -> None:
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest is not None and n_tokens > longest:
            raise LlmReplyError(
                Status.CONTEXT_TOO_LONG, f"{n_tokens:,} tokens, and {self.model} reads {longest:,}"
            )
