"""explain --shard, merge, score --controls and merge, as a person types them."""

import shutil
import sqlite3

import pytest
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.errors import NeuroexplainError


def run(*words_typed):
    result = CliRunner().invoke(app, list(map(str, words_typed)))
    if isinstance(result.exception, NeuroexplainError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def collected(hostile, tmp_path_factory):
    """The tiny model's run without explanations."""
    file = tmp_path_factory.mktemp("collected") / "x.db"
    shutil.copy(hostile / "x.db", file)
    with sqlite3.connect(file) as connection:
        for table in ("scores", "predictions", "explanations", "sessions"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608  (our own names)
    connection.close()
    return file


def scores(file):
    sql = (
        "SELECT e.layer, e.unit, e.text, s.metric, s.subset, s.split, s.value, s.control, c.layer, c.unit "
        "FROM scores s JOIN explanations e ON e.id = s.explanation_id "
        "LEFT JOIN explanations c ON c.id = s.control_explanation_id"
    )
    with sqlite3.connect(file) as connection:
        rows = connection.execute(sql).fetchall()
    connection.close()
    return sorted(rows, key=repr)


def test_parts_by_the_command_line_equal_one_command(hostile, collected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(collected, "one.db")
    shutil.copy(collected, "many.db")
    options = ("--units", "0:0-7,1:3", "--explainer", "tokens")
    engine = ("--local", hostile / "model", "--scorer", "lexical")
    run("explain", "--db", "one.db", *options, *engine)
    expected = scores("one.db")
    assert any(row[7] is not None for row in expected)

    parts = [f"part{n}.db" for n in (1, 2, 3)]
    for n, part in enumerate(parts, 1):
        text = run("explain", "--db", "many.db", *options, *engine, "--shard", f"{n}/3", "--part", part)
        assert "neuroexplain score --controls --scorer lexical --db many.db" in text
        assert f"(part {n} of 3, of 9)" in text
    assert scores("many.db") == []
    text = run("merge", *parts, "--into", "many.db")
    n_lacking = len({row[:2] for row in expected})
    assert f"{n_lacking} predictions by lexical have no control yet" in text
    assert all(row[7] is None for row in scores("many.db"))
    controls = [f"controls{n}.db" for n in (1, 2)]
    for n, part in enumerate(controls, 1):
        run("score", "--controls", "--db", "many.db", *engine, "--shard", f"{n}/2", "--part", part)
    text = run("merge", *controls, "--into", "many.db")
    assert "no control" not in text
    assert scores("many.db") == expected
    run("verify", "--db", "many.db")
    run("merge", *parts, "--into", "many.db")
    assert scores("many.db") == expected


def test_a_part_without_units_ends_well_and_can_be_merged(hostile, collected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(collected, "x.db")
    options = ("--db", "x.db", "--units", "0:0", "--explainer", "tokens", "--local", hostile / "model")
    texts = [run("explain", *options, "--shard", f"{n}/2", "--part", f"{n}.db") for n in (1, 2)]
    assert sorted("Done: 0 neurons" in text for text in texts) == [False, True]
    run("merge", "1.db", "2.db", "--into", "x.db")
    assert {row[:2] for row in scores("x.db")} == {(0, 0)}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("explain", "--units", "0:0", "--shard", "3/2"), "--shard 3/2 is no part"),
        (("explain", "--units", "0:0", "--shard", "x"), "Cannot read the part 'x'"),
        (("explain", "--units", "0:0", "--part", "postgresql://x/y"), "is no file"),
        (("score",), "score --controls"),
        (("score", "0:0", "--shard", "1/2"), "go with --controls"),
        (("score", "--controls", "--text", "x"), "leave out --text"),
    ],
)
def test_what_cannot_be_done_says_what_can(hostile, collected, typed, message):
    with pytest.raises(NeuroexplainError, match=message):
        run(*typed, "--db", collected, "--local", hostile / "model")
