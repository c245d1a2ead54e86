"""Read the subject's vocabulary: the text of each token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from neuroexplain.evidence import Tokens, VocabularyEntry
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.rows import chunks, sql_in

# Entries that were read before, by store and run: at most the vocabularies of the runs that are worked on.
_KNOWN: WeakKeyDictionary[Store, dict[tuple[int, str], dict[int, VocabularyEntry]]] = WeakKeyDictionary()


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
    sql = "SELECT * FROM tokens WHERE run_id = :run AND token_id"
    with store.read() as reader:
        for ids in chunks(distinct_ids):
            rows = reader.rows(f"{sql} {sql_in(ids)}", run=run_id)
            entries |= {row.token_id: _entry(row) for row in rows}
    return tokens_of(entries, distinct_ids)


def load_tokens_once(store: Store, run: Run, token_ids: Iterable[int]) -> dict[int, VocabularyEntry]:
    """The same; each entry is read once for each store and run, for commands that read unit after unit."""
    known = _KNOWN.setdefault(store, {}).setdefault((run.id, run.started_at), {})
    distinct_ids = set(token_ids)
    known.update(load_tokens(store, run.id, distinct_ids - known.keys()))
    return {token_id: known[token_id] for token_id in distinct_ids}


def find_token_ids(store: Store, run_id: int, text: str) -> list[int]:
    """The ids of the tokens with this text, with or without a space before it, in ascending order."""
    sql = "SELECT token_id FROM tokens WHERE run_id = :run AND text IN (:text, :spaced) ORDER BY token_id"
    with store.read() as reader:
        return reader.column(sql, run=run_id, text=text, spaced=" " + text)


def load_vocabulary(store: Store, run_id: int) -> list[VocabularyEntry]:
    """The subject's whole vocabulary, in the order of token ids."""
    with store.read() as reader:
        rows = reader.rows("SELECT * FROM tokens WHERE run_id = :run ORDER BY token_id", run=run_id)
    return [_entry(row) for row in rows]


def lacks_token_bytes(store: Store, run_id: int) -> bool:
    """Whether an earlier version stored the run's vocabulary: texts alone, which may lack their spaces."""
    sql = "SELECT 1 FROM tokens WHERE run_id = :run AND data IS NULL LIMIT 1"
    with store.read() as reader:
        return bool(reader.column(sql, run=run_id))


def _entry(row: Any) -> VocabularyEntry:
    data = None if row.data is None else bytes(row.data)
    return VocabularyEntry(row.token_id, row.text, bool(row.special), data, bool(row.is_byte))
