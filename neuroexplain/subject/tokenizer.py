"""A model's tokenizer: loading it, its special tokens, its vocabulary as text, and a hash of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.subject.pretrained import UNREADABLE, cannot_load, pretrained_arguments


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a hub name, folder or .gguf file. Raises NeuroexplainError if it cannot be loaded."""
    from transformers import AutoTokenizer

    folder, arguments = pretrained_arguments(name, revision)
    try:
        return AutoTokenizer.from_pretrained(folder, **arguments)
    except UNREADABLE as error:
        raise cannot_load("tokenizer", name, error) from error


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of the vocabulary: in tokenizers of the same hash each id stands for the same token."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def special_ids(tokenizer: Any) -> set[int]:
    """The ids of all special tokens, also of those without a role such as BOS."""
    return {
        *tokenizer.all_special_ids,
        *(i for i, added in tokenizer.added_tokens_decoder.items() if added.special),
    }


def vocabulary_entries(tokenizer: Any) -> list[VocabularyEntry]:
    """Every token in the order of ids, as text (`decode([id])`), and whether it is special."""
    special = special_ids(tokenizer)
    ids = sorted(set(tokenizer.get_vocab().values()) | special)
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    return [VocabularyEntry(i, text, i in special) for i, text in zip(ids, texts, strict=True)]
