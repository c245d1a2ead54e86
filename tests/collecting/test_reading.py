"""A text tokenized while it is read gives the same segments, and the same run, as one tokenized before."""

import json
import os
import signal
import subprocess
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from neuroexplain.collecting.devices import run_collect_on_devices
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.corpus import reading, visiting_order
from neuroexplain.corpus.reading import GrowingText, WholeText
from neuroexplain.corpus.shared_progress import FAILED, FINISHED, Follower, SharedProgress
from neuroexplain.corpus.token_stream import new_file
from neuroexplain.corpus.tokenizing import write_tokens
from neuroexplain.errors import NeuroexplainError
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import list_runs
from tests.fakes import tiny_tokenizer, words
from tests.runs import assert_whole, command, content, merge


class SlowTokenizer:
    """Tokenizes some documents at once and the others when the file `go` is there."""

    eos_token_id = 1

    def __init__(self, go: Path) -> None:
        self.go, self.calls, self.tokenizer = go, 0, tiny_tokenizer()

    def __call__(self, texts, **options):
        self.calls += 1
        while self.calls > 1 and not self.go.exists():
            time.sleep(0.01)
        return self.tokenizer(texts, **options)


def corpus(folder, n=150):
    texts = [words(20 + seed % 50, seed=seed) for seed in range(n)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder / "text.jsonl")


def finish(writing):
    try:
        while True:
            next(writing)
    except StopIteration as end:
        return end.value


def follow(config, tokenizer, path):
    """A growing text that another thread of this process tokenizes, as another process would."""
    shared, growing = SharedProgress(), path.with_name("live.unfinished")

    def work():
        for progress in write_tokens(config, tokenizer, path, growing):
            shared.set(n_tokens=progress.done)
        shared.set(state=FINISHED)

    threading.Thread(target=work).start()
    return GrowingText(config, path, growing, Follower(shared))


@pytest.mark.parametrize("start", [GrowingText.start, follow])
@pytest.mark.parametrize(
    "more", [{}, {"segments": 40}, {"segments": 10**6}, {"shard": (2, 3), "batch_size": 7}]
)
def test_live_segments_are_those_of_the_whole_and_come_before_it_is_there(tmp_path, start, more):
    config = CollectConfig("model", (corpus(tmp_path),), sampling="sequential", **more)
    tokenizer = SlowTokenizer(tmp_path / "go")
    live = start(config, tokenizer, tmp_path / "live")
    try:
        batches = live.batches(0, None, 7)
        first = next(batches)  # all others are not tokenized yet
        assert not (tmp_path / "live").exists()
        tokenizer.go.touch()
        live_batches = [first, *batches]
        whole = WholeText(finish(write_tokens(config, tiny_tokenizer(), tmp_path / "whole")), config)
        expected = list(whole.batches(0, None, 7))
        assert len(expected) > 3
        for batch, whole_batch in zip(live_batches, expected, strict=True):
            for values, whole_values in zip(batch, whole_batch, strict=True):  # also the splits
                np.testing.assert_array_equal(values, whole_values)
        assert set(np.concatenate([splits for *_, splits in expected]).tolist()) == {-1, 0, 1, 2}
        numbers = list(chain.from_iterable(numbers.tolist() for numbers, *_ in whole.batches(5, 9, 3)))
        assert numbers == list(chain.from_iterable(numbers.tolist() for numbers, *_ in live.batches(5, 9, 3)))
        assert (live.whole().n_tokens, live.whole().n_documents) == (
            whole.whole().n_tokens,
            whole.whole().n_documents,
        )
    finally:
        live.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["go", "live", "text.jsonl", "whole"]


def test_who_stops_before_the_end_leaves_no_file_and_no_process(tmp_path):
    config = CollectConfig("model", (corpus(tmp_path, 4000),), sampling="sequential")
    live = GrowingText.start(config, tiny_tokenizer(), tmp_path / "live")
    next(live.batches(0, None, 7))
    live.close()  # waits for the process
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]
    stuck = GrowingText.start(config, SlowTokenizer(tmp_path / "never"), tmp_path / "live")
    next(stuck.batches(0, None, 7))
    stuck.close()
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]


@pytest.fixture(scope="module")
def many(made, tmp_path_factory):
    """As `made`, with more documents than are tokenized together, in the corpus's own order."""
    folder = tmp_path_factory.mktemp("many")
    return folder, made[1] | {"dataset": (corpus(folder),), "sampling": "sequential"}


@pytest.fixture(scope="module")
def undisturbed(many):
    """The run whose corpus was tokenized before."""
    with pytest.MonkeyPatch.context() as patch, open_store(str(many[0] / "x.db"), create=True) as store:
        patch.setattr(reading, "is_tokenized_while_read", lambda config: False)
        list(run_collect(store, CollectConfig(**many[1])))
    return content(many[0] / "x.db")[0]


@pytest.mark.parametrize("stop", [None, 2, 30])
def test_a_run_that_reads_live_equals_one_that_does_not_also_when_stopped(many, undisturbed, tmp_path, stop):
    config = CollectConfig(**many[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        if stop is not None:
            events = run_collect(store, config)
            next(event for event in events if (event.stage, event.done) == ("collecting", stop))
            events.close()
            assert [run.status for run in list_runs(store)] == ["running"]
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any("continuing" in note for note in notes) == (stop is not None)
    assert content(tmp_path / "x.db")[0] == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["x.db"]


def test_a_large_corpus_of_which_all_is_read_is_read_live_too(many, undisturbed, tmp_path, monkeypatch):
    """The order decides nothing then, so a run with --sampling random need not wait."""
    for large, note in (
        (visiting_order.LARGE_CORPUS, "Tokenizing the corpus ..."),
        (1, "Tokenizing the corpus while it is read ..."),
    ):
        monkeypatch.setattr(visiting_order, "LARGE_CORPUS", large)
        with open_store(str(tmp_path / f"{large}.db"), create=True) as store:
            events = list(run_collect(store, CollectConfig(**many[1] | {"sampling": "random"})))
        assert any(event.note == note for event in events)
        assert content(tmp_path / f"{large}.db")[0] == undisturbed


@pytest.mark.parametrize("stop", [None, 2])
def test_several_devices_that_read_live_equal_one(many, undisturbed, tmp_path, stop):
    config = CollectConfig(**many[1] | {"device": "cpu, cpu"})
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        if stop is not None:
            events = run_collect_on_devices(store, config)
            next(event for event in events if event.stage == "collecting" and event.done >= stop)
            events.close()
        events = list(run_collect_on_devices(store, config))
    assert any("while it is read" in (event.note or "") for event in events) or stop is not None
    assert_whole(tmp_path / "x.db", undisturbed)
    assert [file.name for file in tmp_path.iterdir()] == ["x.db"]


def test_who_follows_comes_late_or_to_what_breaks_off(tmp_path):
    config = CollectConfig("model", (corpus(tmp_path),), sampling="sequential")
    path, growing, shared = tmp_path / "live", tmp_path / "live.unfinished", SharedProgress()
    finish(write_tokens(config, tiny_tokenizer(), path, growing))
    shared.set(n_tokens=1000)
    late = GrowingText(config, path, growing, Follower(shared))
    # The reader receives the count of 1,000 and finds no growing file any more.
    threading.Timer(0.2, shared.set, kwargs={"state": FINISHED}).start()
    live = list(late.batches(0, None, 7))
    whole = WholeText(late.whole(), config).batches(0, None, 7)
    parts = [[values.tolist() for values in batch] for batch in whole]
    assert [[values.tolist() for values in batch] for batch in live] == parts
    shared = SharedProgress()
    shared.set(n_tokens=1000, state=FAILED)
    with pytest.raises(NeuroexplainError, match="not tokenized to its end"):
        next(GrowingText(config, path, growing, Follower(shared)).batches(0, None, 7))


def test_a_corpus_that_breaks_off_keeps_the_checkpoint(many, undisturbed, tmp_path):
    """Its second file is broken: what was tokenized before that is read."""
    lines = Path(many[1]["dataset"][0]).read_bytes().splitlines(keepends=True)
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_bytes(b"".join(lines[:100]))
    second.write_bytes(b"".join(lines[100:])[:-5])
    config = CollectConfig(**many[1] | {"dataset": (str(first), str(second))})
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        with pytest.raises(NeuroexplainError, match="Cannot read"):
            list(run_collect(store, config))
        assert [run.status for run in list_runs(store)] == ["running"]
        second.write_bytes(b"".join(lines[100:]))
        first.write_bytes(b"".join(lines[:100]).replace(b"river", b"rover", 1))
        with pytest.raises(NeuroexplainError, match=r"text: .* then, .* now"):
            list(run_collect(store, config))
        first.write_bytes(b"".join(lines[:100]))
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any(note.startswith("continuing: ") for note in notes)
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_less_than_a_segment_is_refused_and_leaves_nothing(many, tmp_path):
    (tmp_path / "text.txt").write_text("too little")
    with (
        open_store(str(tmp_path / "x.db"), create=True) as store,
        pytest.raises(NeuroexplainError, match=r"1 documents with .* less than one segment"),
    ):
        list(run_collect(store, CollectConfig(**many[1] | {"dataset": (str(tmp_path / "text.txt"),)})))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.txt", "x.db"]


def test_parts_that_read_live_merge_into_the_whole(many, undisturbed, tmp_path):
    for n in (1, 2, 3):
        with open_store(str(tmp_path / f"{n}.db"), create=True) as store:
            list(run_collect(store, CollectConfig(**many[1], shard=(n, 3))))
    merge(tmp_path / "3.db", tmp_path / "1.db", tmp_path / "some.db")
    merge(tmp_path / "some.db", tmp_path / "2.db", tmp_path / "x.db")
    assert_whole(tmp_path / "x.db", undisturbed)


def test_a_broken_corpus_is_one_plain_message(many, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_bytes(Path(many[1]["dataset"][0]).read_bytes()[:-5])
    collect = command(
        (many[0], many[1] | {"dataset": (str(text),)}), tmp_path / "x.db", "--sampling", "sequential"
    )
    done = subprocess.run(collect, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("Cannot read")) == (2, 1), done.stderr
    assert "Warning" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_it_reads_live_it_ends_the_same(many, undisturbed, tmp_path, how):
    collect = command(many, tmp_path / "x.db", "--sampling", "sequential")
    with subprocess.Popen(collect, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and not list(tmp_path.glob("*.checkpoint")):
            time.sleep(0.002)
        running.send_signal(how)
    again = subprocess.run(collect, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "continuing" in again.stderr
    assert content(tmp_path / "x.db")[0] == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["x.db"]


@pytest.mark.parametrize("after", [0.05, 0.7])
def test_a_terminal_s_ctrl_c_reaches_all_and_is_answered_once(many, tmp_path, after):
    """Also while the process that tokenizes is only beginning."""
    (tmp_path / "corpus").mkdir()
    collect = command(
        (many[0], many[1] | {"dataset": (corpus(tmp_path / "corpus", 30_000),)}), tmp_path / "x.db"
    )
    collect += ["--sampling", "sequential"]
    with subprocess.Popen(collect, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        stderr = ""
        while "Tokenizing" not in stderr:
            stderr += running.stderr.readline()
        time.sleep(after)
        os.killpg(running.pid, signal.SIGINT)
        stderr += running.stderr.read()
    assert (running.returncode, "Traceback" in stderr) == (130, False), stderr


def test_what_killed_processes_left_of_tokens_is_swept(tmp_path):
    path = tmp_path / "x.tokens"
    left, beside, mine = new_file(path), tmp_path / "y.tokens.a", new_file(path)
    for file in (left, beside):
        file.touch()
        os.utime(file, (0, 0))
    other = new_file(path)
    assert set(tmp_path.iterdir()) == {beside, mine, other}
