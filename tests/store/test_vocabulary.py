"""Reading a run's vocabulary, each entry once."""

from dataclasses import replace

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.store import vocabulary
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.vocabulary import load_tokens, load_tokens_once


def test_entries_are_read_once_for_each_store_and_run(hostile, monkeypatch):
    read = []
    monkeypatch.setattr(
        vocabulary,
        "load_tokens",
        lambda store, run_id, ids: read.append(set(ids)) or load_tokens(store, run_id, ids),
    )
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        run = load_run(store)
        expected = load_tokens(store, run.id, [5, 6, 7, 10**6])
        assert load_tokens_once(store, run, [5, 6]) == {i: expected[i] for i in (5, 6)}
        assert load_tokens_once(store, run, [6, 7, 10**6]) == {i: expected[i] for i in (6, 7, 10**6)}
        assert load_tokens_once(store, run, [7, 5]) == {i: expected[i] for i in (5, 7)}
        assert [ids for ids in read if ids] == [{5, 6}, {7, 10**6}]
        assert expected[10**6] == VocabularyEntry(10**6, "\ufffd", True)

        load_tokens_once(store, replace(run, started_at="later"), [5])  # another run that took the number
        assert read[-1] == {5}
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        load_tokens_once(store, run, [5])
        assert read[-1] == {5}
