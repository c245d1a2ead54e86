"""Read the subject's vocabulary: how tokens are shown."""

from __future__ import annotations

from collections.abc import Iterable

from neuroexplain.evidence import (
    Tokens,
    VocabularyEntry,
)
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks, sql_in


def tokens_of(vocabulary: Tokens, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """How the given tokens are shown; an id that the vocabulary does not have gets U+FFFD."""
    return {
        token_id: vocabulary.get(token_id) or VocabularyEntry(token_id, "\ufffd", True)
        for token_id in token_ids
    }


def load_tokens(store: Store, run_id: int, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """How the given tokens of the subject's vocabulary are shown; an id that its tokenizer does not know gets U+FFFD."""
    found: dict[int, VocabularyEntry] = {}
    wanted = sorted(set(token_ids))
    with store.read() as reader:
        for some in chunks(wanted):
            sql = (
                f"SELECT token_id, text, special FROM tokens WHERE run_id = :run AND token_id {sql_in(some)}"
            )
            for token_id, text, special in reader.rows(sql, run=run_id):
                found[token_id] = VocabularyEntry(token_id, text, bool(special))
    return tokens_of(found, wanted)


def find_token_ids(store: Store, run_id: int, text: str) -> list[int]:
    """The tokens whose text is `text`, with or without a space before it."""
    sql = "SELECT token_id FROM tokens WHERE run_id = :run AND text IN (:text, :spaced) ORDER BY token_id"
    with store.read() as reader:
        return reader.column(sql, run=run_id, text=text, spaced=" " + text)


def load_vocabulary(store: Store, run_id: int) -> list[VocabularyEntry]:
    """The subject's whole vocabulary, by token id."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM tokens WHERE run_id = :run ORDER BY token_id", run=run_id)
    return [VocabularyEntry(row.token_id, row.text, bool(row.special)) for row in rows]
