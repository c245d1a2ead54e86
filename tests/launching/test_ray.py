"""A Ray cluster of several raylets on this machine: parts equal the whole, whatever is killed meanwhile."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from neuroexplain.errors import NeuroexplainError
from neuroexplain.launching import on_ray
from tests.fakes import tiny_subject, words
from tests.runs import assert_whole, content

HAS_RAY = on_ray.ray is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is not installed: pip install 'neuroexplain[ray]'")
COLLECT = (
    *("collect", "--model", "model", "--dataset", "text.jsonl", "--batch-size", "4", "--sign", "both"),
    *("--top-k", "4", "--random-records", "5", "--sampled-records", "10", "--checkpoint-every", "0.5"),
)
EXPLAIN = (
    *("explain", "--units", "0:0-3,1:0-1", "--explainer", "tokens"),
    *("--local", "model", "--scorer", "lexical"),
)


@pytest.fixture(scope="module")
def machines():
    """A cluster: a machine for the driver, and two with one processor each."""
    from ray.cluster_utils import Cluster

    environment = pytest.MonkeyPatch()
    environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = {"object_store_memory": 80_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    yield cluster, nodes, memory
    cluster.shutdown()
    environment.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("it's shared")
    tiny_subject(folder / "model")
    texts = (json.dumps({"text": words(250, seed=n)}) for n in range(3000))
    (folder / "text.jsonl").write_text("\n".join(texts))
    return folder


def start(folder, *typed):
    command = [sys.executable, "-m", "neuroexplain.cli.main", *typed]
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, bufsize=1
    )


def run(folder, *typed):
    driver = start(folder, *typed)
    _, text = driver.communicate(timeout=300)
    assert driver.returncode == 0, text
    return text


def launch(machines, *typed, shards=2):
    return ("launch", "ray", "--address", machines[0].address, "--shards", str(shards), "--", *typed)


def wait_for(holds, driver, seconds=120):
    deadline = time.monotonic() + seconds
    while not holds():
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoints(folder):
    """When each checkpoint of a part was written, by its path."""
    files = folder.glob("x.db.collect-*/parts-2/*.checkpoint")
    return {file: file.stat().st_mtime_ns for file in files if file.exists()}


def workers(machines):
    """The processes of the two machines that run tasks."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in machines[1]]
    children = [child for pid in raylets for child in psutil.Process(pid).children()]
    return [child for child in children if "ray::_work" in command_of(child)]


def command_of(process):
    """A process's command line; empty if it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def after_new_checkpoint(folder, driver, n_parts=1):
    """Wait until so many of the two parts have read on: not longer than is needed, so that neither ends."""
    before = set(checkpoints(folder).items())
    wait_for(lambda: len(set(checkpoints(folder).items()) - before) >= n_parts, driver)


@needs_ray
def test_whatever_is_killed_the_collection_is_that_of_one_machine(machines, folder):
    cluster, nodes, memory = machines
    typed = launch(machines, *COLLECT, "--db", "x.db")
    driver = start(folder, *typed)
    after_new_checkpoint(folder, driver, n_parts=2)
    workers(machines)[0].kill()  # a process
    line = ""
    while "begins again: its process died" not in line:
        line = driver.stderr.readline()
        assert line
    after_new_checkpoint(folder, driver)
    driver.kill()  # the driver
    driver.wait()

    driver = start(folder, *typed)
    after_new_checkpoint(folder, driver, n_parts=2)
    cluster.remove_node(nodes.pop(), allow_graceful=False)  # a machine
    nodes.append(cluster.add_node(num_cpus=1, **memory))
    while "begins again: its machine died" not in line:
        line = driver.stderr.readline()
        assert line
    after_new_checkpoint(folder, driver)
    driver.send_signal(signal.SIGINT)  # Ctrl-C
    _, text = driver.communicate(timeout=100)
    assert driver.returncode == 130, text
    assert "the same command goes on from there" in text
    assert workers(machines) == []

    text = run(folder, *typed)
    assert text.count("continuing: ") == 2  # both parts, from a checkpoint
    assert "Tokenizing" not in text
    assert [file.name for file in folder.glob("x.db*")] == ["x.db"]
    run(folder, *COLLECT, "--db", "one.db")
    assert_whole(folder / "x.db", content(folder / "one.db")[0])
    assert "Nothing to do" in run(folder, *typed)


@needs_ray
def test_explanations_and_controls_are_those_of_one_machine(machines, folder):
    if not (folder / "one.db").exists():
        run(folder, *COLLECT, "--segments", "200", "--db", "one.db")
    shutil.copy(folder / "one.db", folder / "many.db")
    run(folder, *launch(machines, *EXPLAIN, "--db", "many.db"))
    run(folder, *EXPLAIN, "--db", "one.db")
    assert scores(folder / "many.db") == scores(folder / "one.db")
    assert any(row[-2] is not None for row in scores(folder / "one.db"))
    assert [file.name for file in folder.glob("many.db*")] == ["many.db"]


def scores(file):
    sql = (
        "SELECT e.layer, e.unit, e.side, e.text, s.metric, s.subset, s.split, s.value, s.control, c.unit "
        "FROM scores s JOIN explanations e ON e.id = s.explanation_id "
        "LEFT JOIN explanations c ON c.id = s.control_explanation_id"
    )
    with sqlite3.connect(file) as connection:
        rows = connection.execute(sql).fetchall()
    connection.close()
    return sorted(rows, key=repr)


@needs_ray
def test_a_mistake_is_told_once_and_not_tried_again(machines, folder):
    shutil.copytree(folder / "model", folder / "broken")
    (folder / "broken" / "config.json").write_text("{}")
    typed = ["broken" if word == "model" else word for word in COLLECT]
    driver = start(folder, *launch(machines, *typed, "--db", "y.db"))
    _, text = driver.communicate(timeout=120)
    assert driver.returncode == 2, text
    assert "begins again" not in text
    assert not (folder / "y.db").exists()


@needs_ray
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "Run it on a machine of the cluster"),
        ("nonsense", "--address HOST:PORT"),
    ],
)
def test_an_address_where_nothing_is_is_told_at_once(address, message):
    with pytest.raises(NeuroexplainError, match=message), on_ray.connect(address):
        pass


def test_without_ray_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(on_ray, "ray", None)
    with pytest.raises(NeuroexplainError, match=r"pip install 'neuroexplain\[ray\]'"), on_ray.connect(None):
        pass
