"""`export parquet --push` by the real library, against a stand-in of the hub's endpoint."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import yaml

from neuroexplain.formats._parquet_card import as_markdown, as_yaml, with_license
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from tests.hub_server import Hub


@pytest.fixture
def hub():
    served = Hub()
    yield served
    served.close()


@pytest.fixture
def export(hostile, tmp_path, hub):
    """Runs `export parquet out ...`, and returns its status and standard error."""

    def run(*more, folder="out", token="hf_right", **env):
        words = ["export", "parquet", str(tmp_path / folder), "--db", str(hostile / "x.db"), *more]
        command = [sys.executable, "-m", "neuroexplain.cli.main", *words]
        names = {**os.environ, **hub.environment(tmp_path / "hub", token), **env}
        done = subprocess.run(command, env=names, capture_output=True, text=True, timeout=200, check=False)
        return done.returncode, done.stderr

    return run


def arrived(hub, name, folder):
    """Write a data set of the hub to a folder, as a download does."""
    for path, content in hub.data_sets[name].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_a_pushed_run_is_private_complete_and_comes_back(hub, export, hostile, tmp_path):
    status, text = export("--push", "neurons", "--license", "cc-by-4.0")
    assert status == 0, text
    assert "alone can read it" in text
    assert hub.private["jane/neurons"]
    folder = arrived(hub, "jane/neurons", tmp_path / "arrived")
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    assert {config["config_name"] for config in front["configs"]} >= {"explanations", "scores", "exemplars"}
    assert 'load_dataset("jane/neurons", "explanations"' in card
    assert "hf download jane/neurons " in card
    assert "FOLDER" not in card
    rows = datasets.load_dataset(
        str(folder), "explanations", split="train", cache_dir=str(tmp_path / "cache")
    )
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        with store.read() as reader:
            expected = reader.column("SELECT text FROM explanations ORDER BY id")
        run = load_run(store)
    assert sorted(filter(None, rows["text"])) == sorted(filter(None, expected))
    words = ["import", "parquet", str(folder), "--db", str(tmp_path / "back.db")]
    subprocess.run([sys.executable, "-m", "neuroexplain.cli.main", *words], check=True, capture_output=True)
    with open_store(str(tmp_path / "back.db"), read_only=True) as back:
        assert load_run(back).n_tokens == run.n_tokens


def test_a_push_that_broke_is_repeated_and_sends_what_is_missing(hub, export):
    hub.breaks_after = 3
    status, text = export("--push", "lab/neurons", "--public")
    assert status == 2, text
    assert "same command goes on" in text or "does not take" in text
    assert (hub.n_large, hub.n_commits) == (3, 0)
    hub.breaks_after = None
    status, text = export("--push", "lab/neurons", "--public")
    assert status == 0, text
    n_files = sum(path.endswith(".parquet") for path in hub.data_sets["lab/neurons"])
    assert hub.n_large == n_files
    assert not hub.private["lab/neurons"]
    assert "Everybody can read it" in text


def test_another_push_replaces_the_files_of_the_first(hub, export):
    assert export("--push", "neurons")[0] == 0
    files = hub.data_sets["jane/neurons"]
    files |= {"scores/layer-009.parquet": b"old", "notes/mine.txt": b"mine"}
    status, text = export("--push", "neurons", folder="again")
    assert status == 0, text
    assert "scores/layer-009.parquet" not in files
    assert files["notes/mine.txt"] == b"mine"


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (("--push", "neurons"), "hf_wrong", "refuses the token"),
        (("--push", "neurons"), None, "There is no token"),
        (("--push", "someone/theirs"), "hf_right", "You may not write to someone/theirs"),
        (("--push", "nobody/new"), "hf_right", "You may not write to nobody/new"),
        (("--push", "jane/csv"), "hf_right", "is no export of neuroexplain: it holds data.csv"),
        (("--push", "jane/open", "--private"), "hf_right", "exists already and is public"),
        (("--push", "a/b/c"), "hf_right", "cannot be a name on the hub"),
        (("--public",), "hf_right", "Give --push, too"),
        (("--license", "mine: [all]"), "hf_right", "is no identifier of a license"),
    ],
)
def test_a_refusal_is_one_message_before_anything_is_written(hub, export, tmp_path, words, token, message):
    hub.data_sets |= {"jane/csv": {"data.csv": b"1"}, "jane/open": {"run.json": b"{}"}}
    hub.private |= {"jane/csv": False, "jane/open": False}
    status, text = export(*words, token=token)
    assert status == 2, text
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()
    assert hub.n_commits == 0


def test_without_a_network_the_message_says_so(export):
    status, text = export("--push", "neurons", HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 2
    assert "cannot be reached" in text
    assert "Traceback" not in text


def test_a_folder_of_another_run_is_not_uploaded(hub, export, tmp_path):
    assert export()[0] == 0
    run_json = tmp_path / "out" / "run.json"
    other = json.loads(run_json.read_text()) | {"seed": 77}
    run_json.write_text(json.dumps(other))
    status, text = export("--push", "neurons")
    assert status == 2
    assert "an export of another run" in text
    assert hub.n_commits == 0


NAMES = ["a: b", "x\n---\nlicense: mit", '"\\', "\U0001f600", "\uffff", "<b>&amp;|`*_[a](http://b)@c www.d.e"]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_one_yaml_text_and_no_markup(name):
    assert yaml.safe_load(f"pretty_name: {as_yaml(name)}")["pretty_name"].replace("↵", "\n") == name
    shown = as_markdown(name)
    assert "\n" not in shown
    for character in "<|`*[@:":
        assert shown.count(character) == shown.count("\\" + character)


def test_a_license_takes_the_place_of_another():
    card = with_license("---\ntags:\n- a\n---\n\n# A\n", "mit")
    assert yaml.safe_load(with_license(card, "apache-2.0").split("---\n")[1])["license"] == "apache-2.0"
