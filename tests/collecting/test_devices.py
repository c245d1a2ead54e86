"""Several devices of one machine (here the processor, twice): equal to one, whatever is stopped or killed."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from neuroexplain.collecting import devices
from neuroexplain.collecting.devices import run_collect_on_devices
from neuroexplain.collecting.run import find_finished_run
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.engine import open_store
from tests.runs import assert_whole, command

TWICE = {"device": "cpu, cpu"}


def assert_equal(db, undisturbed):
    """As one device would leave it: nothing lies beside the database any more."""
    assert_whole(db, undisturbed)
    assert [path.name for path in db.parent.iterdir() if "-" not in path.name] == [db.name]


def test_two_devices_collect_what_one_does(made, undisturbed, tmp_path):
    config = CollectConfig(**made[1] | TWICE)
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = list(run_collect_on_devices(store, config))
        assert find_finished_run(store, config) is not None
    assert_equal(tmp_path / "x.db", undisturbed)
    last = {event.stage: event for event in events}
    segments, layers = last["collecting"], last["saving"]
    assert (segments.done, segments.unit) == (segments.total, "segments")
    assert (layers.done, layers.total) == (4, 4)  # two layers of two parts
    assert last["merging"].done == last["merging"].total == 4  # likewise
    stages = [event.stage for event in events]
    assert stages == sorted(stages, key=[*devices.STAGES, "merging"].index)
    assert sum("Tokenized" in (event.note or "") for event in events) == 1  # by one, for both


@pytest.mark.parametrize("where", [("collecting", 4), ("merging", 3)])
def test_stopped_anywhere_and_run_again_it_ends_the_same(made, undisturbed, tmp_path, where):
    config = CollectConfig(**made[1] | TWICE)
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect_on_devices(store, config)
        next(event for event in events if (event.stage, event.done >= where[1]) == (where[0], True))
        events.close()
        notes = [event.note for event in run_collect_on_devices(store, config) if event.note]
    if where[0] == "collecting":
        assert any("continuing" in note for note in notes)
    assert_equal(tmp_path / "x.db", undisturbed)


def collects(process):
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.ZombieProcess:  # finished its part already
        return False


@pytest.mark.parametrize("killed", ["all", "one"])
def test_killed_and_run_again_it_ends_the_same(made, undisturbed, tmp_path, killed):
    collect = command(made, tmp_path / "x.db", "--device", TWICE["device"])
    running = subprocess.Popen(collect, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "x.db.parts"
    while not (parts / "2of2.db.run1.checkpoint").exists():
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    children = [child for child in psutil.Process(running.pid).children() if collects(child)]
    os.kill(running.pid if killed == "all" else children[-1].pid, signal.SIGKILL)
    stderr = running.communicate()[1]
    if killed == "one":
        assert running.returncode == 2
        assert "ended with status -9" in stderr
        assert "run the same command again" in stderr
    _gone, alive = psutil.wait_procs(children, timeout=60)
    assert not alive  # nobody works on unheard
    again = subprocess.run(collect, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stderr
    assert_equal(tmp_path / "x.db", undisturbed)


def test_what_goes_wrong_in_a_part_is_said(made, tmp_path):
    config = CollectConfig(**made[1] | TWICE | {"text_column": "words"})
    with (
        open_store(str(tmp_path / "x.db"), create=True) as store,
        pytest.raises(NeuroexplainError, match=r"^[^:]*words"),
    ):
        list(run_collect_on_devices(store, config))
    assert [path.name for path in tmp_path.iterdir() if "-" not in path.name] == ["x.db"]
    for more, message in (
        ({"shard": (1, 2)}, "leave out --shard"),
        ({"batch_size": None}, "--batch-size 64"),
    ):
        with pytest.raises(NeuroexplainError, match=message):
            CollectConfig(**made[1] | TWICE | more)


def test_devices_of_two_kinds_are_refused(made, tmp_path, monkeypatch):
    names = iter(["A100", "H100"])
    monkeypatch.setattr(devices, "device_name", lambda device: next(names))
    config = CollectConfig(**made[1] | {"device": "cpu,cpu:0"})
    refused = pytest.raises(NeuroexplainError, match="cpu is A100, cpu:0 is H100")
    with open_store(str(tmp_path / "x.db"), create=True) as store, refused:
        next(run_collect_on_devices(store, config))
