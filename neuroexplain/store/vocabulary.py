"""Read the subject's vocabulary: the text of each token."""

from __future__ import annotations

from collections.abc import Iterable

from neuroexplain.evidence import Tokens, VocabularyEntry
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks, sql_in


def tokens_of(vocabulary: Tokens, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """The entries of the given tokens; an id that the vocabulary lacks has the text U+FFFD and is special."""
    return {
        token_id: vocabulary.get(token_id) or VocabularyEntry(token_id, "\ufffd", True)
        for token_id in token_ids
    }


def load_tokens(store: Store, run_id: int, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """The entries of the given tokens, read from the store; unknown ids as in `tokens_of`."""
    entries: dict[int, VocabularyEntry] = {}
    distinct_ids = sorted(set(token_ids))
    sql = "SELECT token_id, text, special FROM tokens WHERE run_id = :run AND token_id"
    with store.read() as reader:
        for ids in chunks(distinct_ids):
            for token_id, text, special in reader.rows(f"{sql} {sql_in(ids)}", run=run_id):
                entries[token_id] = VocabularyEntry(token_id, text, bool(special))
    return tokens_of(entries, distinct_ids)


def find_token_ids(store: Store, run_id: int, text: str) -> list[int]:
    """The ids of the tokens with this text, with or without a space before it, in ascending order."""
    sql = "SELECT token_id FROM tokens WHERE run_id = :run AND text IN (:text, :spaced) ORDER BY token_id"
    with store.read() as reader:
        return reader.column(sql, run=run_id, text=text, spaced=" " + text)


def load_vocabulary(store: Store, run_id: int) -> list[VocabularyEntry]:
    """The subject's whole vocabulary, in the order of token ids."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM tokens WHERE run_id = :run ORDER BY token_id", run=run_id)
    return [VocabularyEntry(row.token_id, row.text, bool(row.special)) for row in rows]
