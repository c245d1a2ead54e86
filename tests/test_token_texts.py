"""With a tokenizer as Llama 2 has it every page, prompt and export shows a record's text as it is."""

import gzip
import json
import re
import sqlite3
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.explaining.explainers import EXPLAINERS
from neuroexplain.lookup import load_page
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import list_unit_ids
from neuroexplain.store.vocabulary import lacks_token_bytes
from neuroexplain.subject.tokenizer import load_tokenizer
from neuroexplain.web.app import make_app
from tests.fakes import tiny_subject
from tests.subject.test_token_bytes import byte_fallback

SENTENCE = "the city said the Sheraton-Dallas Hotel 🙂 is 3.5% off. "


def command(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "neuroexplain.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer as Llama 2 has it, `model`, and a database of what it read, `x.db`."""
    folder = tmp_path_factory.mktemp("token_texts")
    tiny_subject(folder / "model")
    byte_fallback().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(SENTENCE * 80)
    config = CollectConfig(model=str(folder / "model"), dataset=(str(folder / "text.txt"),), top_k=4)
    with open_store(str(folder / "x.db"), create=True) as store:
        list(run_collect(store, config))
    return folder


@pytest.fixture
def page(folder):
    with open_store(str(folder / "x.db"), read_only=True) as store:
        run = load_run(store)
        return load_page(store, run, list_unit_ids(store, run.id)[0])


def spelled(tokenizer, token_ids):
    """The decoded record, with the leading space that decoding strips, and its edges left out."""
    text = tokenizer.decode([tokenizer.convert_tokens_to_ids("a"), *token_ids])[1:]
    return text.strip("\ufffd")


def test_json_and_exports_spell_the_decoded_records(folder, page):
    tokenizer = load_tokenizer(str(folder / "model"))
    shown = json.loads(command("show", page.unit.id, "--db", "x.db", "--json", cwd=folder))
    command("export", "parquet", "parquet", "--db", "x.db", cwd=folder)
    command("export", "jsonl", "jsonl", "--every", "--db", "x.db", cwd=folder)
    rows = pq.read_table(folder / "parquet" / "exemplars" / "layer-000.parquet").to_pylist()
    exported = {(r["kind"], r["rank"]): r["tokens"] for r in rows if r["neuron"] == page.unit.id.index}
    assert len(shown["exemplars"]) > 8
    for record in shown["exemplars"]:
        texts = record["tokens"]
        assert "".join(texts).strip("\ufffd") == spelled(tokenizer, record["token_ids"])
        assert "🙂" in "".join(texts)
        assert " city" in "".join(texts)
        assert exported[record["kind"], record["rank"]] == texts
    with gzip.open(folder / "jsonl" / "neurons.jsonl.gz", "rt") as lines:
        assert json.loads(next(lines))["exemplars"] == shown["exemplars"]


def test_the_terminal_and_pages_show_words_with_their_spaces(folder, page):
    shown = command("show", page.unit.id, "--db", "x.db", cwd=folder)
    assert "city said the Sheraton-Dallas Hotel" in shown.replace("[", "").replace("]", "")
    assert "<0x" not in shown
    with open_store(str(folder / "x.db"), read_only=True) as store:
        html = TestClient(make_app(store)).get("/0/0").text
    boxes = "".join(re.findall(r'<span class="t[^>]*>([^<]*)', html))
    assert " the city said the" in boxes
    assert "l␣🙂␣" in boxes
    assert " part" in html  # the boxes of the character's later parts


@pytest.mark.parametrize("explainer", ["pairs", "excerpts"])
def test_prompts_show_words_with_their_spaces_and_whole_characters(page, explainer):
    records = [x for x in page.unit.exemplars if x.kind == "top"]
    prompt = EXPLAINERS[explainer].render(records, page.tokens)
    lines = [line.split("\t")[0] for line in prompt.splitlines()]
    text = "".join(lines) if explainer == "pairs" else prompt.replace("**", "")
    assert " city said t" in text
    assert "<0x" not in prompt


def test_texts_of_an_earlier_version_are_mended_by_the_tokenizer(folder, tmp_path):
    tokenizer = load_tokenizer(str(folder / "model"))
    db = tmp_path / "old.db"
    with sqlite3.connect(folder / "x.db") as source, sqlite3.connect(db) as connection:
        source.backup(connection)
        ids = [row[0] for row in connection.execute("SELECT token_id FROM tokens")]
        rows = [(tokenizer.decode([i]), i) for i in ids]
        connection.executemany(
            "UPDATE tokens SET text = ?, data = NULL, is_byte = 0 WHERE token_id = ?", rows
        )
    connection.close()
    said = command("runs", "--db", db, cwd=folder)
    assert "may lack spaces" in said
    assert "upgrade --tokenizer" in said
    said = command("upgrade", "--db", db, "--tokenizer", "model", cwd=folder)
    assert "Mended the texts of tokens of run 1" in said
    assert "may lack spaces" not in command("runs", "--db", db, cwd=folder)
    with (
        open_store(str(db), read_only=True) as store,
        open_store(str(folder / "x.db"), read_only=True) as own,
    ):
        assert not lacks_token_bytes(store, 1)
        run = load_run(store)
        assert (
            load_page(store, run, list_unit_ids(store, 1)[0]).tokens
            == load_page(own, run, list_unit_ids(own, 1)[0]).tokens
        )


def test_another_tokenizer_mends_nothing(folder):
    tiny_subject(folder.parent / "other")
    done = subprocess.run(
        [sys.executable, "-m", "neuroexplain.cli.main", "upgrade", "--tokenizer", "../other", "--db", "x.db"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 2
    assert "was read with the tokenizer" in done.stderr
