"""A model's tokenizer: loading it, its special tokens, its vocabulary as text, and a hash of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.subject.pretrained import UNREADABLE, cannot_load, pretrained_arguments
from neuroexplain.subject.token_bytes import token_bytes


def load_tokenizer(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a hub name, folder or .gguf file. Raises NeuroexplainError if it cannot be loaded."""
    from transformers import AutoTokenizer

    folder, arguments = pretrained_arguments(name, revision, trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(folder, **arguments)
    except UNREADABLE as error:
        raise cannot_load("tokenizer", name, error) from error


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of the vocabulary: in tokenizers of the same hash each id stands for the same token."""
    names = ((f"bytes {k.hex()}" if isinstance(k, bytes) else k, i) for k, i in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of all special tokens, also of those without a role such as BOS."""
    return {
        *tokenizer.all_special_ids,
        *(i for i, added in tokenizer.added_tokens_decoder.items() if added.special),
    }


def vocabulary_entries(tokenizer: Any) -> list[VocabularyEntry]:
    """Every token in the order of ids: its bytes, its text, and whether it is special."""
    special = special_ids(tokenizer)
    ids = sorted(set(tokenizer.get_vocab().values()) | special)
    data, are_bytes = token_bytes(tokenizer, ids)
    return [
        VocabularyEntry(i, own.decode("utf-8", "replace"), i in special, own, is_byte)
        for i, own, is_byte in zip(ids, data, are_bytes, strict=True)
    ]
