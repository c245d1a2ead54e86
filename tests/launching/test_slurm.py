"""The scripts of Slurm jobs: golden files, what a shell makes of them, and what cannot be launched."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.errors import NeuroexplainError
from neuroexplain.launching.plan import folder_name, plan_collect, plan_explain
from neuroexplain.launching.slurm import render_scripts
from tests.golden_files import GOLDEN, slurm_scripts

HOSTILE = [
    "it's",
    'a "quoted" word',
    "two\nlines",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "*",
    "%A",
    "ä\\",
]
HOSTILE_FOLDER = 'it\'s a "folder"\n$(touch pwned); %a'


def launch(*words_typed):
    result = CliRunner().invoke(app, ["launch", *map(str, words_typed)])
    if isinstance(result.exception, NeuroexplainError):
        raise result.exception
    return result


@pytest.mark.parametrize("name", sorted(slurm_scripts()))
def test_the_scripts_are_those_of_the_golden_files(name):
    assert (GOLDEN / "slurm" / name).read_text() == slurm_scripts()[name]


@pytest.fixture
def machine(tmp_path):
    """A folder with hostile name, and stand-ins for neuroexplain and sbatch that write down their words."""
    folder = tmp_path / HOSTILE_FOLDER
    folder.mkdir()
    program = tmp_path / "a program"
    program.write_text(f'#!/bin/bash\nprintf "%s\\0" "$PWD" "$@" >> {shlex.quote(str(tmp_path / "words"))}\n')
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/bash\nprintf "%s\\0" "$@" END >> {shlex.quote(str(tmp_path / "jobs"))}\n'
        "echo $((100 + $(grep -zc END " + shlex.quote(str(tmp_path / "jobs")) + ")))\n"
    )
    program.chmod(0o755)
    sbatch.chmod(0o755)
    return tmp_path


def bash(script, cwd, **env):
    return subprocess.run(
        ["bash", script], cwd=cwd, env={**os.environ, **env}, check=True, capture_output=True, text=True
    )


def test_a_shell_hands_on_every_word_as_it_was_typed(machine):
    folder = machine / HOSTILE_FOLDER
    plan = plan_collect(["--dataset", *HOSTILE], str(folder / "x.db"), folder / "parts", 3, 1)
    scripts = render_scripts(
        plan, [str(machine / "a program")], str(folder), str(folder), [], "\n".join(HOSTILE)
    )
    plan.folder.mkdir()
    for name, text in scripts.items():
        (folder / name).write_text(text)
    bash(folder / "collect.sh", machine, SLURM_ARRAY_TASK_ID="2")
    words = (machine / "words").read_bytes().decode().split("\0")[:-1]
    part = str(folder / "parts" / "collected-2.db")
    assert words == [
        str(folder),
        "collect",
        "--dataset",
        *HOSTILE,
        "--keep-tokens",
        "--shard",
        "2/3",
        "--db",
        part,
    ]
    (machine / "words").unlink()
    bash(folder / "merge.sh", machine)
    words = (machine / "words").read_bytes().decode().split("\0")[:-1]
    parts = [str(folder / "parts" / f"collected-{n}.db") for n in (1, 2, 3)]
    assert words == [str(folder), "merge", *parts, "--into", str(folder / "x.db")]
    assert not plan.folder.exists()
    assert not any("pwned" in file.name for file in [*machine.iterdir(), *folder.iterdir()] if file != folder)


def test_every_job_waits_for_the_one_before(machine):
    folder = machine / HOSTILE_FOLDER
    words = ["--units", "0:0", "--scorer", "lexical"]
    plan = plan_explain(words, ["--scorer", "lexical"], str(folder / "x.db"), folder / "parts", 5, 2)
    options = ["--partition=gpu", "--comment=it's; $(touch pwned)"]
    scripts = render_scripts(plan, ["neuroexplain"], str(folder), str(folder), options, "x\n$(touch pwned)")
    for name, text in scripts.items():
        (folder / name).write_text(text)
    path = f"{machine / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = bash(folder / "submit.sh", machine, PATH=path)
    assert done.stdout.splitlines() == [
        "explain: job 101",
        "merge: job 102",
        "controls: job 103",
        "merge-controls: job 104",
    ]
    jobs = [job.split("\0")[:-1] for job in (machine / "jobs").read_bytes().decode().split("END\0")[:-1]]
    assert [job[-1] for job in jobs] == ["explain.sh", "merge.sh", "controls.sh", "merge-controls.sh"]
    assert [[w for w in job if w.startswith("--dependency")] for job in jobs] == [
        [],
        ["--dependency=afterok:101"],
        ["--dependency=afterok:102"],
        ["--dependency=afterok:103"],
    ]
    assert [("--array=1-5" in job, "--gres=gpu:2" in job) for job in jobs] == [
        (True, True),
        (False, False),
    ] * 2
    assert all(set(options) <= set(job) for job in jobs)
    assert not list(machine.rglob("pwned"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("slurm", "--", "query", "x"), "'query' cannot be launched"),
        (("pbs", "--", "collect"), "there are slurm and ray"),
        (("slurm", "--", "explain", "--units", "0:0", "--shard", "1/2"), "--shard is not for launch"),
        (("slurm", "--", "explain", "--units", "0:0", "--dry-run"), "--dry-run is not for launch"),
        (("slurm", "--", "explain", "--units", "0:0", "--", "x"), "leave out those after it"),
        (("slurm", "--", "explain", "--units", "0:0", "--scorer", "nonsense"), "nonsense"),
    ],
)
def test_what_cannot_be_launched_says_why(typed, message):
    with pytest.raises(NeuroexplainError, match=message):
        launch(*typed)


def test_a_collection_without_a_batch_size_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(NeuroexplainError, match="--batch-size 64"):
        launch("slurm", "--", "collect", "--model", "m", "--dataset", "text.txt")
    with pytest.raises(NeuroexplainError, match=r"missing\.txt"):
        launch("slurm", "--", "collect", "--model", "m", "--dataset", "missing.txt", "--batch-size", "4")
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]


def test_a_wrong_option_is_refused_as_by_the_command_itself():
    result = launch("slurm", "--dry-run", "--", "explain", "--nonsense", "1")
    assert result.exit_code == 2
    assert "No such option: --nonsense" in result.output


def test_controls_are_those_that_one_machine_makes():
    """lexical always; digits and combined with --control; none without scores."""

    def controls(*words):
        result = launch("slurm", "--dry-run", "--", "explain", "--units", "0:0", *words)
        assert result.exit_code == 0, result.output
        lines = [line for line in result.stdout.splitlines() if "score --controls" in line]
        return lines[0].split("score --controls ")[1].split(" --db ")[0] if lines else None

    assert controls("--local", "m") == "--scorer=lexical --local=m"
    assert controls("--server", "http://x/v1") is None
    assert controls("--server", "http://x/v1", "--control") == "--scorer=combined --server=http://x/v1"
    assert controls("--local", "m", "--scorer", "digits,lexical") == "--scorer=lexical --local=m"
    assert controls("--local", "m", "--no-score") is None
    words = (
        "--servers",
        "my file",
        "--scorer",
        "lexical",
        "--in-flight",
        "7",
        "--retry-failed",
        "--run",
        "3",
    )
    expected = {"--scorer=lexical", "'--servers=my file'", "--in-flight=7", "--retry-failed", "--run=3"}
    assert set(re.split(r" (?=--|'--)", controls(*words))) == expected


def test_without_slurm_nothing_is_submitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NeuroexplainError, match="There is no sbatch on this machine"):
        launch("slurm", "--submit", "--", "explain", "--units", "0:0", "--db", "x.db", "--local", "m")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_that_of_its_command():
    assert folder_name(["collect", "a", "b"]) == folder_name(["collect", "a", "b"])
    assert folder_name(["collect", "a", "b"]) != folder_name(["collect", "a b"])
    assert folder_name(["collect", "\udce4"])  # a file name that is no UTF-8


@pytest.mark.skipif(
    shutil.which("sbatch") is None
    or subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0,
    reason="no Slurm here: run with scripts/with_slurm.sh",
)
def test_slurm_itself_collects(tmp_path, monkeypatch):
    """On a machine with Slurm: an array of two jobs, and the job that joins their parts."""
    import json
    import time

    from tests.fakes import tiny_subject, words

    folder = tmp_path / "it's a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    tiny_subject(folder / "model")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": words(250, seed=n)}) + "\n" for n in range(60))
    )
    options = ("--model", "model", "--dataset", "text.jsonl", "--batch-size", "4", "--db", "x y.db")
    result = launch("slurm", "--shards", "2", "--gpus-per-shard", "0", "--submit", "--", "collect", *options)
    assert result.exit_code == 0, result.output
    deadline = time.monotonic() + 300
    while not list(folder.glob("x y.db.collect-*/neuroexplain-merge-*.txt")) or list(
        folder.glob("x y.db.*/parts-2")
    ):
        assert time.monotonic() < deadline
        time.sleep(1)
    result = CliRunner().invoke(app, ["runs", "--db", "x y.db"])
    assert "finished" in result.output
