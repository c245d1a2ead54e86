"""An engine in this process, by Transformers. No answer depends on what else was asked.

A prompt runs alone, or in a batch of fixed shape: the kernel that a matrix product takes, and with it the
last bits of a result, depends on the shape and not on the other rows.
"""

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
from neuroexplain.subject.load import LoadedModel, load_causal_lm
from neuroexplain.subject.tokenizer import tokenizer_sha256

PROMPTS_AT_ONCE = 8  # of one length, in a forward pass. 16 are as fast, and more rows stay unused
# The argument that holds the keys and values; Transformers 5 renamed it.
_CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


class LocalEngine:
    """A model in this process. Distributions are exact.

    loaded: the model, where it is loaded already.
    """

    engine = "local"
    in_flight = 1
    n_servers = None

    def __init__(
        self,
        name: str,
        dtype: str = "auto",
        device: str = "auto",
        *,
        trust_remote_code: bool = False,
        loaded: LoadedModel | None = None,
    ) -> None:
        self._model, self.tokenizer, self.revision = loaded or load_causal_lm(
            name, dtype, device, trust_remote_code=trust_remote_code
        )
        self._forward_lock = threading.Lock()  # one forward pass at a time
        self.model = name.rsplit("/", 1)[-1] if name.endswith(".gguf") else name
        self.version = f"transformers {transformers.__version__}"
        self.usage = Usage()
        # The shared tokens of the last prompt, and their keys and values.
        self._shared: tuple[tuple[int, ...], Any] = ((), None)
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
        with self._forward_lock, torch.inference_mode():
            torch.manual_seed(seed)
            output = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_tokens,
                pad_token_id=self.tokenizer.eos_token_id or 0,
                **sampling,
            )
        answer_ids = output[0, len(ids) :].tolist()
        self.usage.add(len(ids), 0, len(answer_ids))
        answer = self.tokenizer.decode(answer_ids, skip_special_tokens=True)
        text = opened_thought(self.tokenizer, ids) + answer
        return Reply(text, len(ids), len(answer_ids), time.perf_counter() - began)

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
        chosen = [token_id for spellings in level_token_ids for token_id in spellings]
        with self._forward_lock, torch.inference_mode():
            shared_cache, n_cached = self._read_shared(tuple(token_ids[:shared]))
            self.usage.add(len(token_ids), n_cached, 0)
            logits = self._logits(token_ids[shared:], [row - shared for row in rows], shared_cache)
            logprobs = logits[:, chosen] - logits.logsumexp(-1, keepdim=True)  # [rows, spellings]
        return sum_levels(logprobs.double().cpu().numpy(), level_token_ids)

    def next_distributions(
        self,
        prompts: Sequence[Sequence[int]],
        level_token_ids: Sequence[Sequence[int]],
        shared: int = 0,
        *,
        exact: bool = False,
    ) -> NDArray[np.float64]:
        by_length: dict[int, list[int]] = {}  # places of the prompts
        for place, prompt in enumerate(prompts):
            self._check_length(len(prompt))
            by_length.setdefault(len(prompt), []).append(place)
        if shared >= min(by_length, default=shared + 1):
            raise ValueError(f"a prompt has no more than the first {shared} tokens")
        levels = np.zeros((len(prompts), len(level_token_ids)))
        chosen = [token_id for spellings in level_token_ids for token_id in spellings]
        for places in by_length.values():
            for first in range(0, len(places), PROMPTS_AT_ONCE):
                batch = places[first : first + PROMPTS_AT_ONCE]
                with self._forward_lock, torch.inference_mode():
                    logits = self._next_logits([prompts[place] for place in batch], shared)
                    logprobs = logits[:, chosen] - logits.logsumexp(-1, keepdim=True)
                levels[batch] = sum_levels(logprobs.double().cpu().numpy(), level_token_ids)
        return levels

    def _next_logits(self, prompts: Sequence[Sequence[int]], shared: int) -> torch.Tensor:
        """The logits after prompts of one length, [n_prompts, vocab], float32."""
        shared_cache, n_cached = self._read_shared(tuple(prompts[0][:shared]))
        for prompt in prompts:
            self.usage.add(len(prompt), n_cached, 0)
            n_cached = shared  # computed once
        rows = [list(prompt[shared:]) for prompt in prompts]
        rows += [rows[-1]] * (PROMPTS_AT_ONCE - len(rows))
        if shared_cache is not None:
            shared_cache.batch_repeat_interleave(PROMPTS_AT_ONCE)
        cache = {"use_cache": shared_cache is not None, _CACHE: shared_cache}
        batch = torch.tensor(rows, device=self._model.device)
        # An index, not the number 1: for a slice the product with the unembedding copies it once a row.
        last = torch.tensor([len(rows[0]) - 1], device=self._model.device)
        logits: torch.Tensor = self._model(batch, logits_to_keep=last, **cache).logits[: len(prompts), 0]
        return logits.float()

    def _logits(
        self, token_ids: Sequence[int], rows: Sequence[int], shared_cache: Any = None
    ) -> torch.Tensor:
        """The model's own logits after the rows, scaled and capped: [rows, vocab], float32."""
        device = self._model.device
        prompt = torch.tensor([list(token_ids)], device=device)
        kept_rows = torch.tensor(list(rows), device=device)
        cache = {"use_cache": shared_cache is not None, _CACHE: shared_cache}
        logits: torch.Tensor = self._model(prompt, logits_to_keep=kept_rows, **cache).logits[0].float()
        return logits

    def _read_shared(self, token_ids: tuple[int, ...]) -> tuple[Any, int]:
        """Keys and values of the shared tokens, and how many of the tokens were kept from before.

        The last ones are kept. A prompt is always cut at the same place, so its answer does not depend on
        what was kept.
        """
        if not token_ids:
            return None, 0
        n_cached = len(token_ids)
        if self._shared[0] != token_ids:
            prompt = torch.tensor([token_ids], device=self._model.device)
            output = self._model.base_model(prompt, use_cache=True)
            self._shared, n_cached = (token_ids, getattr(output, _CACHE)), 0
        return copy.deepcopy(self._shared[1]), n_cached  # a copy, because a forward pass appends to it

    def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float64]:
        self._check_length(len(token_ids))
        self.usage.add(len(token_ids), 0, 0)
        with self._forward_lock, torch.inference_mode():
            logits = self._logits(token_ids, [len(token_ids) - 1])[0]
        logprobs: NDArray[np.float64] = logits.double().log_softmax(dim=-1).cpu().numpy()
        return logprobs

    def close(self) -> None:
        """Nothing to do: the model's memory is freed with the process."""

    def _check_length(self, n_tokens: int) -> None:
        context_length = getattr(self._model.config, "max_position_embeddings", None)
        if context_length is not None and n_tokens > context_length:
            reason = f"{n_tokens:,} tokens, and {self.model} reads {context_length:,}"
            raise LlmReplyError(Status.CONTEXT_TOO_LONG, reason)
