"""An engine in this process, by Transformers. Prompts run one by one, so no answer depends on others."""

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
from neuroexplain.subject.load import load_causal_lm
from neuroexplain.subject.tokenizer import tokenizer_sha256

# The argument that holds the keys and values; Transformers 5 renamed it.
_CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


class LocalEngine:
    """A model in this process. Distributions are exact."""

    engine = "local"
    in_flight = 1

    def __init__(
        self, name: str, dtype: str = "auto", device: str = "auto", *, trust_remote_code: bool = False
    ) -> None:
        self._model, self.tokenizer, self.revision = load_causal_lm(
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
