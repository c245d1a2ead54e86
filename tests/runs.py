"""What tests of whole runs share: the command, merging, and comparing two databases."""

import sys
from pathlib import Path

import pytest

from neuroexplain.collecting.merge import run_merge
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run

CONTENT = (
    *("tokens", "units", "segments", "exemplars", "samples", "peak_tokens", "vocabulary_readings"),
    *("backgrounds", "background_activations"),
)


def command(made, db, *more):
    options = (
        "--top-k",
        4,
        "--sign",
        "both",
        "--random-records",
        5,
        "--sampled-records",
        10,
        "--batch-size",
        2,
        "--checkpoint-every",
        0.000001,
    )
    names = ("--model", made[1]["model"], "--dataset", made[1]["dataset"][0], "--db", db)
    return [sys.executable, "-m", "neuroexplain.cli.main", "collect", *map(str, (*names, *options, *more))]


def merge(first: Path, second: Path, into: Path, **options):
    with open_store(str(first)) as a, open_store(str(second)) as b, open_store(str(into), create=True) as c:
        list(run_merge([(a, load_run(a)), (b, load_run(b))], c, **options))


def content(db: Path):
    """(rows by table, run): everything that a finished run holds, without ids and times."""
    store = open_store(str(db))
    run = load_run(store)
    tables = {}
    with store.engine.connect() as connection:
        for table in CONTENT:
            rows = connection.exec_driver_sql(f"SELECT * FROM {table}").mappings()  # noqa: S608  (our own names)
            kept = [
                {k: v for k, v in row.items() if k not in ("id", "run_id")}
                for row in rows
                if row["run_id"] == run.id
            ]
            tables[table] = sorted((tuple(row.values()) for row in kept), key=repr)
    store.close()
    tables["split_segments"] = sorted(run.split_segments.items())
    return tables, run


def assert_whole(db, undisturbed):
    """Exemplars exactly, statistics to rounding."""
    tables, run = content(db)
    assert run.config["shard"] is None
    for table in (*CONTENT, "split_segments"):
        if table != "units":
            assert tables[table] == undisturbed[table], table
    for row, expected in zip(tables["units"], undisturbed["units"], strict=True):
        assert (row[:3], row[-3:]) == (expected[:3], expected[-3:])  # the last: histogram, nearest ones
        assert row[3:-3] == pytest.approx(expected[3:-3], rel=1e-6, abs=1e-7)
