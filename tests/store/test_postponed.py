"""A large load into an empty PostgreSQL database: keys and indices come after it, whatever interrupts it."""

import pytest
from sqlalchemy import create_engine

from neuroexplain.store.engine import open_store
from neuroexplain.store.postponed import create_postponed
from neuroexplain.store.save_collected import create_run, finish_run
from tests.fakes import run_fields

LAYOUT = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace
UNION SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2, 3"""


def layout(store):
    """All constraints and indices, with their definitions."""
    with store.engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(LAYOUT)]


@pytest.fixture
def store(postgresql):
    with open_store(postgresql, create=True) as opened:
        yield opened


def test_keys_and_indices_come_back_as_they_were(store):
    before = layout(store)
    with store.bulk_writing():
        during = layout(store)
    dropped = {(table, name) for table, name, _ in before} - {(table, name) for table, name, _ in during}
    assert {
        ("peak_tokens", "peak_tokens_pkey"),
        ("peak_tokens", "peak_tokens_run_id_fkey"),
        ("scores", "ix_scores_headline"),
        ("explanations", "ix_explanations_text_search"),
    } <= dropped
    assert ("scores", "uq_scores") not in dropped  # scores may be stored already
    assert layout(store) == before


def test_a_load_that_broke_off_is_completed_by_the_next_one(store):
    before = layout(store)
    with pytest.raises(ZeroDivisionError), store.bulk_writing():
        raise ZeroDivisionError
    assert len(layout(store)) < len(before)
    create_run(store, run_fields(2, 9))
    with store.bulk_writing():
        assert len(layout(store)) < len(before)
    assert layout(store) == before


def test_or_by_the_next_command_that_explains(store):
    before = layout(store)
    with pytest.raises(ZeroDivisionError), store.bulk_writing():
        raise ZeroDivisionError
    create_postponed(store.engine)
    assert layout(store) == before
    create_postponed(store.engine)  # nothing is left to do
    assert layout(store) == before


def test_a_database_that_is_in_use_keeps_its_indices(store):
    before = layout(store)
    run_id = create_run(store, run_fields(2, 9))
    finish_run(store, run_id, n_segments=0, n_documents=0, n_tokens=0)
    with store.bulk_writing():
        assert layout(store) == before


def test_readers_see_either_all_or_none_of_it(store, postgresql):
    before = layout(store)
    other = create_engine(postgresql)
    with pytest.raises(ZeroDivisionError), store.bulk_writing():
        raise ZeroDivisionError
    with other.begin() as connection:  # a definition that cannot be carried out
        connection.exec_driver_sql("INSERT INTO postponed_definitions VALUES (999, 'runs', 'SELECT 1 / 0')")
    with pytest.raises(Exception, match="division by zero"):
        create_postponed(store.engine)
    assert len(layout(store)) < len(before)
    with other.begin() as connection:
        connection.exec_driver_sql("DELETE FROM postponed_definitions WHERE place = 999")
    create_postponed(store.engine)
    assert layout(store) == before
    other.dispose()
