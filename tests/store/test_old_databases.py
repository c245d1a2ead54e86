"""Upgrading databases, and importing exports, of commit 52e8913 keeps all floats: see tests/old/README.md."""

# ruff: noqa: S608  (our own names of tables and columns)

import json
import lzma
import signal
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from neuroexplain.as_json import unit_json
from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.formatting import rule_note
from neuroexplain.lookup import load_page
from neuroexplain.store.engine import REVISION, open_store, upgrade_store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.store.integrity import count_orphans
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import list_unit_ids, load_unit
from neuroexplain.units import UnitId

OLD = Path(__file__).resolve().parent.parent / "old"
NAMES = ("both", "digits")
SCORES = {
    "correlation": "correlation",
    "r_squared": "r_squared",
    "absolute_deviation_explained": "absolute_deviation_explained",
}
KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from neuroexplain.store.engine import upgrade_store
left = [int(sys.argv[2])]
@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
upgrade_store(sys.argv[1])
"""


def unpacked(name, folder):
    file = folder / f"{name}.db"
    file.write_bytes(lzma.decompress((OLD / f"{name}.db.xz").read_bytes()))
    return file


def rows(file, sql):
    with sqlite3.connect(file) as connection:
        return sorted(connection.execute(sql).fetchall(), key=repr)


@pytest.fixture(params=NAMES)
def both(request, tmp_path):
    """The old database and the same upgraded."""
    old = unpacked(request.param, tmp_path)
    new = tmp_path / "new.db"
    new.write_bytes(old.read_bytes())
    assert upgrade_store(str(new)) == ("0004", REVISION)
    return request.param, old, new


def test_every_score_and_predicted_level_is_the_same_float(both):
    _, old, new = both
    whose = "explanation_id, simulator, simulator_model, split, kind"
    now = "explanation_id, scorer, scorer_model, split, subset"
    of_correlation = "ci_low, ci_high, ci_reason, {}, {}, {}, n_tokens, n_records"
    before = of_correlation.format("other_correlation", "other_explanation_id", "other_reason")
    after = of_correlation.format("control", "control_explanation_id", "control_reason")
    for metric, column in SCORES.items():
        more = metric == "correlation"
        expected = rows(
            old,
            f"SELECT {whose}, {column}{f', status, reason, {before}' if more else ''} FROM scores"
            + ("" if more else f" WHERE {column} IS NOT NULL"),
        )
        more_columns = f", status, reason, {after}" if more else ""
        upgraded = rows(new, f"SELECT {now}, value{more_columns} FROM scores WHERE metric = '{metric}'")
        assert expected
        assert upgraded == expected
    assert rows(new, "SELECT count(*) FROM scores") != rows(old, "SELECT count(*) FROM scores")
    packed = "id, explanation_id, kinds, ranks, firsts, {}, {}, {}, {}, model, status, reason, reply"
    names = ("expected_levels", "digit_mass", "other_levels", "other_explanation_id")
    new_names = ("predicted", "detail", "control", "control_explanation_id")
    expected = rows(old, f"SELECT {packed.format(*names)} FROM simulations")
    assert rows(new, f"SELECT {packed.format(*new_names)} FROM predictions") == expected


def test_exemplars_statistics_and_explanations_stay_as_they_were(both):
    _, old, new = both
    for table, columns in (
        (
            "exemplars",
            "id, run_id, layer, {}, kind, segments, starts, documents, token_offsets, peaks, activations",
        ),
        (
            "vocabulary_readings",
            "run_id, layer, {}, promoted_ids, promoted_logits, suppressed_ids, suppressed_logits",
        ),
        ("peak_tokens", "run_id, layer, token_id, {}, count"),
        (
            "explanations",
            "id, layer, {}, explainer, candidate, request_key, chosen, status, text, reason, reply, "
            "covers, parts",
        ),
    ):
        expected = rows(old, f"SELECT {columns.format('neuron')} FROM {table}")
        assert expected
        assert rows(new, f"SELECT {columns.format('unit')} FROM {table}") == expected
    stats = "layer, {}, status, mean, std, min, max, share_positive, max_activation"
    assert rows(new, f"SELECT {stats.format('unit')} FROM units") == rows(
        old, f"SELECT {stats.format('neuron')} FROM neurons"
    )


def test_verify_finds_nothing_and_the_run_says_where_it_was_read(both):
    name, _, new = both
    with open_store(str(new), read_only=True) as store:
        run = load_run(store)
        assert list(verify_run(store, run)) == []
        assert count_orphans(store) == 0
        assert {(source.kind, source.width, source.side, source.module) for source in run.sources} == {
            ("mlp", 24, "input" if name == "both" else "output", None)
        }
        assert run.config["source"] == "mlp"
        assert run.rectified is False  # its scores are of a, not of relu(a)
        assert run.sides == (("positive", "negative") if name == "both" else ("positive",))


def pages(store):
    def without_ids(value):
        if isinstance(value, dict):
            return {
                k: without_ids(v)
                for k, v in value.items()
                if k not in ("run", "id", "control_explanation_id", "source")
            }
        return [without_ids(v) for v in value] if isinstance(value, list) else value

    run = load_run(store)
    units = list_unit_ids(store, run.id)
    all_pages = [without_ids(unit_json(load_page(store, run, unit))) for unit in units]
    return [
        json.dumps(page | {"explanations": sorted(map(json.dumps, page["explanations"]))})
        for page in all_pages
    ]


def test_an_export_of_that_version_comes_in_as_the_database_does(both, tmp_path):
    name, _, new = both
    with tarfile.open(OLD / f"{name}.parquet.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with (
        open_store(str(new), read_only=True) as upgraded,
        open_store(str(tmp_path / "i.db"), create=True) as imported,
    ):
        list(import_parquet(imported, tmp_path / f"{name}.parquet"))
        assert list(verify_run(imported, load_run(imported))) == []
        assert pages(imported) == pages(upgraded)


def test_an_old_run_keeps_its_rule_through_an_export_and_back(both, tmp_path):
    """As a database, and as an export of that version."""
    name, _, new = both
    with tarfile.open(OLD / f"{name}.parquet.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with (
        open_store(str(new), read_only=True) as upgraded,
        open_store(str(tmp_path / "1.db"), create=True) as exported_now,
        open_store(str(tmp_path / "2.db"), create=True) as exported_then,
    ):
        list(export_parquet(upgraded, load_run(upgraded), tmp_path / "out"))
        list(import_parquet(exported_now, tmp_path / "out"))
        list(import_parquet(exported_then, tmp_path / f"{name}.parquet"))
        for store in (upgraded, exported_now, exported_then):
            run = load_run(store)
            by_rule = (run.split_rule, run.n_sampled, run.barred_ids, dict(run.split_segments))
            assert by_rule == ("ranks", 0, (), {})
            assert "population" not in run.headline.subsets
            splits = {x.split for n in range(3) for x in load_unit(store, run, UnitId(1, n)).exemplars}
            assert splits == {None}
            assert list(verify_run(store, run)) == []
        assert pages(exported_now) == pages(upgraded) == pages(exported_then)


@pytest.mark.parametrize("statement", [2, 12, 30, 40, 45])
def test_killed_at_any_statement_it_is_the_old_version_still(tmp_path, statement):
    file = unpacked("digits", tmp_path)
    before = rows(file, "SELECT * FROM scores")
    done = subprocess.run([sys.executable, "-c", KILLED, str(file), str(statement)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert rows(file, "SELECT version_num FROM alembic_version") == [("0004",)]
    assert rows(file, "SELECT * FROM scores") == before
    assert upgrade_store(str(file)) == ("0004", REVISION)
    with open_store(str(file), read_only=True) as store:
        assert list(verify_run(store, load_run(store))) == []


def test_an_export_of_a_negative_run_holds_the_negative_side(tmp_path):
    """That version explained no bottom record, and stored the failed attempts without a side."""
    with tarfile.open(OLD / "both.parquet.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    run = json.loads((folder / "run.json").read_text())
    run["config"]["sign"] = "negative"
    (folder / "run.json").write_text(json.dumps(run))
    with open_store(str(tmp_path / "i.db"), create=True) as store:
        list(import_parquet(store, folder))
        assert {explanation.side for explanation in list_explanations(store, 1)} == {"negative"}


def test_explaining_and_scoring_say_that_an_old_run_goes_on_by_its_rule(both):
    _, _, new = both
    command = [sys.executable, "-m", "neuroexplain.cli.main", "explain", "--db", str(new), "--units", "1:0"]
    options = ["--explainer", "tokens", "--no-score"]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    assert "is of an earlier version and goes on by its rule: records are split by rank" in done.stderr
    with open_store(str(new), read_only=True) as store:
        assert rule_note(load_run(store)) in done.stderr
