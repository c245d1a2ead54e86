"""Interrupted, killed, cut into parts: the result is that of one undisturbed run."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from neuroexplain.collecting import kernels, prepare_collector
from neuroexplain.collecting.collector import Collector
from neuroexplain.collecting.run import run_collect
from neuroexplain.collecting.statistics import RunningStats, sum_segments
from neuroexplain.config import CollectConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.store.units import load_unit
from neuroexplain.subject.load import load_subject
from neuroexplain.units import UnitId
from tests.runs import assert_whole, command, content, merge

N_PARTS = 4


@pytest.mark.parametrize("stages", [("collecting", 0), ("collecting", 2), ("collecting", 8), ("saving", 1)])
def test_stopped_anywhere_and_run_again_it_ends_the_same(made, undisturbed, tmp_path, stages):
    config = CollectConfig(**made[1] | {"checkpoint_every": 1e6})
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config)
        for event in events:
            if (event.stage, event.done) == stages:
                events.close()
        assert [run.status for run in list_runs(store)] == ["running"]
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any("continuing" in note for note in notes) == (stages != ("collecting", 0))
    assert content(tmp_path / "x.db")[0] == undisturbed
    assert sorted(file.name for file in tmp_path.glob("*checkpoint*")) == []


def test_other_options_than_the_interrupted_runs_are_named(made, tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, CollectConfig(**made[1]))
        next(event for event in events if event.done == 4)
        events.close()
        with pytest.raises(NeuroexplainError, match=r"top_k: 4 then, 5 now[^;]*runs --drop 1"):
            next(run_collect(store, CollectConfig(**made[1] | {"top_k": 5})))


def test_what_is_compared_holds_records_of_every_kind_and_split(made, undisturbed, tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        list(run_collect(store, CollectConfig(**made[1])))
        run = load_run(store)
        units = [load_unit(store, run, UnitId(1, n)) for n in range(24)]
    records = [record for unit in units for record in unit.exemplars]
    groups = {(x.kind, x.side, x.split) for x in records if x.kind in ("random", "sampled")}
    sides = [("random", None), ("sampled", "positive"), ("sampled", "negative")]
    assert groups == {(*side, split) for side in sides for split in ("explain", "select", "report")}
    assert {x.kind for x in records} == {"top", "bottom", "random", "sampled"}
    assert content(tmp_path / "x.db")[0] == undisturbed
    assert undisturbed["split_segments"] == sorted(run.split_segments.items())
    assert len(undisturbed["split_segments"]) == 3
    assert all(n > 0 for _, n in undisturbed["split_segments"])
    assert len(undisturbed["samples"]) == 2 * 2 * 24  # layers, sides and neurons
    thresholds = [threshold for unit in units for threshold in unit.thresholds.values()]
    assert sum(threshold > 0 for threshold in thresholds) > len(thresholds) / 2  # the draws have a choice


def test_a_run_of_an_earlier_version_is_not_gone_on_with(made, undisturbed, tmp_path):
    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config)
        next(event for event in events if event.done == 4)
        events.close()
        make_old(store)
        for options in (config, replace(config, sampled_records=0), replace(config, top_k=5)):
            with pytest.raises(NeuroexplainError, match="earlier version began it") as error:
                next(run_collect(store, options))
            assert "copy of the database from before the upgrade" in str(error.value)
            assert f"neuroexplain runs --drop 1 --db {store.name}" in str(error.value)
            assert "then," not in str(error.value)  # a list of options would help nobody
    drop = [sys.executable, "-m", "neuroexplain.cli.main", "runs", "--drop", "1", "--db", store.name]
    subprocess.run(drop, check=True, capture_output=True)
    with open_store(str(tmp_path / "x.db")) as store:
        list(run_collect(store, config))
    assert content(tmp_path / "x.db")[0] == undisturbed


def make_old(store):
    """Make a run what earlier versions left, after the upgrade of its database."""
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE runs SET split_rule = 'ranks', n_sampled = 0, split_segments = '{}', "
            "config = json_remove(config, '$.sampled_records')"
        )
        connection.exec_driver_sql("UPDATE segments SET split = NULL")


@pytest.fixture
def compiles(monkeypatch):
    """A processor that compiles as a GPU does; what is compiled is traced only."""
    torch._dynamo.reset()
    monkeypatch.setattr(prepare_collector, "can_compile", lambda device: True)
    monkeypatch.setattr(kernels, "compile_options", lambda: {"backend": "aot_eager", "dynamic": False})
    monkeypatch.setattr(
        "neuroexplain.collecting.collector.compiled_sum_segments", lambda batch_size: sum_segments
    )


def test_compiled_kernels_give_the_same_and_only_they_go_on(
    made, undisturbed, tmp_path, compiles, monkeypatch
):
    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config)
        notes = [event.note for event in takewhile(lambda event: event.done < 4, events)]
        events.close()
        assert "Compiling the model's attention and norms ..." in notes
        with pytest.raises(NeuroexplainError, match="kernels: compiled then, plain now"):
            list(run_collect(store, replace(config, compile=False)))
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(prepare_collector, "can_compile", lambda device: False)
            with pytest.raises(NeuroexplainError, match="kernels: compiled then, plain now"):
                list(run_collect(store, config))
        list(run_collect(store, config))
        assert list_runs(store)[0].versions["kernels"] == "compiled"
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_parts_of_other_kernels_are_merged_when_asked_for(parts, made, tmp_path, compiles):
    with open_store(str(tmp_path / "2.db"), create=True) as store:
        list(run_collect(store, CollectConfig(**made[1] | {"shard": (2, N_PARTS)})))
    with pytest.raises(NeuroexplainError, match="kernels: plain and compiled"):
        merge(parts / "1.db", tmp_path / "2.db", tmp_path / "x.db")
    merge(parts / "1.db", tmp_path / "2.db", tmp_path / "x.db", allow_mixed=True)


def test_a_checkpoint_of_before_there_was_a_choice_goes_on_plain(made, undisturbed, tmp_path, compiles):
    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, replace(config, compile=False))
        next(event for event in events if event.done == 4)
        events.close()
        path = store.checkpoint_path(1)
        saved = torch.load(path)
        del saved["kernels"]
        torch.save(saved, path)
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any("continuing: 4 of" in note for note in notes)
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_too_large_a_batch_is_said_while_compiling(made, tmp_path, compiles, monkeypatch):
    monkeypatch.setattr(
        Collector, "probe", MagicMock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    )
    with (
        open_store(str(tmp_path / "x.db"), create=True) as store,
        pytest.raises(NeuroexplainError, match=r"does not hold a batch of 2 segments.*--batch-size"),
    ):
        list(run_collect(store, CollectConfig(**made[1])))


def test_where_the_compiler_fails_it_says_so_and_reads_as_before(
    made, undisturbed, tmp_path, compiles, monkeypatch
):
    def broken(graph, inputs):
        raise OSError("no compiler\nat all")

    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        with monkeypatch.context() as at_first:
            at_first.setattr(kernels, "compile_options", lambda: {"backend": broken})
            events = run_collect(store, config)
            notes = [event.note for event in takewhile(lambda event: event.done < 4, events)]
            events.close()
        assert any("the model is read as it is, more slowly: no compiler" in note for note in notes if note)
        list(run_collect(store, config))  # it could compile by now, but the run has begun without
        assert list_runs(store)[0].versions["kernels"] == "plain"
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(made, undisturbed, tmp_path, monkeypatch):
    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config)
        next(event for event in events if event.done == 4)
        with monkeypatch.context() as patched:
            patched.setattr(
                "torch.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            with pytest.raises(NeuroexplainError, match=r"No space left on device.*intact"):
                next(events)
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any("continuing: 4 of" in note for note in notes)
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_out_of_memory_leaves_the_checkpoint(made, undisturbed, tmp_path, monkeypatch):
    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        with monkeypatch.context() as patched:
            fold, folded = RunningStats.fold_slice, []

            def run_out(self, *args):
                folded.append(self)
                if len(folded) == 8:  # the fourth batch's second layer: the first is folded already
                    raise torch.OutOfMemoryError("CUDA out of memory")
                fold(self, *args)

            patched.setattr(RunningStats, "fold_slice", run_out)
            with pytest.raises(
                NeuroexplainError, match=r"ran out of memory.*checkpoint is intact.*--windows host"
            ):
                list(run_collect(store, config))
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any("continuing: 6 of" in note for note in notes)
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_windows_on_the_host_change_nothing_not_even_in_the_middle(made, undisturbed, tmp_path):
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, CollectConfig(**made[1] | {"windows": "host"}))
        next(event for event in events if event.done == 6)
        events.close()
        list(run_collect(store, CollectConfig(**made[1] | {"windows": "device"})))
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_an_interrupted_run_does_not_tokenize_again(made, undisturbed, tmp_path):
    config = CollectConfig(**made[1])
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config)
        next(event for event in events if event.done == 4)
        events.close()
        assert len(list(tmp_path.glob("neuroexplain-*.tokens"))) == 1
        assert "tokenizing" not in {event.stage for event in run_collect(store, config)}
    assert content(tmp_path / "x.db")[0] == undisturbed
    assert list(tmp_path.glob("*.tokens*")) == []


def test_a_corpus_that_changed_or_broke_off_is_not_gone_on_with(made, undisturbed, tmp_path):
    text = tmp_path / "text.jsonl"
    whole = Path(made[1]["dataset"][0]).read_bytes()
    text.write_bytes(whole)
    config = CollectConfig(**made[1] | {"dataset": (str(text),)})
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config)
        next(event for event in events if event.done == 4)
        events.close()
        for changed, message in (
            (whole.replace(b"river", b"rover"), "text: .* then, .* now"),
            (whole[:-5], "Cannot read"),
        ):
            text.write_bytes(changed)
            with pytest.raises(NeuroexplainError, match=message):
                list(run_collect(store, config))
        text.write_bytes(whole)  # with another time: it is tokenized again, and found to be the same
        notes = [event.note for event in run_collect(store, config) if event.note]
        assert any("continuing: 4 of" in note for note in notes)
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_a_checkpoint_of_another_run_is_not_gone_on_with(made, tmp_path):
    """The database was deleted, its checkpoint was not, and a run of other options got the same number."""
    stopped = {}
    for activation in ("act", "post"):
        (tmp_path / "x.db").unlink(missing_ok=True)
        config = CollectConfig(**made[1] | {"activation": activation})
        with open_store(str(tmp_path / "x.db"), create=True) as store:
            events = run_collect(store, config)
            next(event for event in events if event.done == 4)
            events.close()
            (checkpoint,) = tmp_path.glob("*.checkpoint")
            stopped[activation] = checkpoint.read_bytes()
    checkpoint.write_bytes(stopped["act"])
    with (
        open_store(str(tmp_path / "x.db")) as store,
        open_store(str(tmp_path / "y.db"), create=True) as other,
    ):
        assert not any("continuing" in (event.note or "") for event in run_collect(store, config))
        list(run_collect(other, config))
    assert content(tmp_path / "x.db")[0] == content(tmp_path / "y.db")[0]
    assert not checkpoint.exists()


def test_a_model_whose_weights_were_replaced_is_not_gone_on_with(made, undisturbed, tmp_path):
    config, subject = CollectConfig(**made[1]), load_subject(made[1]["model"])
    other = load_subject(made[1]["model"])
    other.model.get_parameter("layers.1.mlp.down_proj.weight").data += 0.25
    with open_store(str(tmp_path / "x.db"), create=True) as store:
        events = run_collect(store, config, subject)
        next(event for event in events if event.done == 4)
        events.close()
        with pytest.raises(NeuroexplainError, match=r"weights: .* then, .* now$"):
            list(run_collect(store, config, other))
        list(run_collect(store, config, subject))
    assert content(tmp_path / "x.db")[0] == undisturbed


def test_a_model_and_a_tokenizer_that_do_not_belong_together_are_refused(made, tmp_path):
    subject = load_subject(made[1]["model"])
    small = replace(subject, unembedding=subject.unembedding[:50])
    with (
        open_store(str(tmp_path / "x.db"), create=True) as store,
        pytest.raises(NeuroexplainError, match="the model knows 50"),
    ):
        list(run_collect(store, CollectConfig(**made[1]), small))


def test_a_part_that_gets_no_segment_says_why(made, tmp_path):
    config = CollectConfig(**made[1] | {"segments": 3, "shard": (4, 4)})
    with (
        open_store(str(tmp_path / "x.db"), create=True) as store,
        pytest.raises(NeuroexplainError, match="Take fewer parts"),
    ):
        list(run_collect(store, config))


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 1 << 63}, {"checkpoint_every": float("nan")}])
def test_impossible_numbers_are_refused(made, wrong):
    with pytest.raises(NeuroexplainError, match="out of range"):
        CollectConfig(**made[1] | wrong)


def wait_for_checkpoint(running, folder):
    while not list(folder.glob("*.checkpoint")):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.002)


def test_killed_five_times_at_random_moments_it_ends_the_same(made, undisturbed, tmp_path):
    """Each time a while after a new checkpoint; records of all kinds and statistics are in `content`."""
    moments = random.Random(7)
    checkpoint = tmp_path / "x.db.run1.checkpoint"
    for _ in range(5):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(command(made, tmp_path / "x.db"), stderr=subprocess.DEVNULL) as running:
            while running.poll() is None and not (
                checkpoint.exists() and checkpoint.stat().st_mtime_ns != before
            ):
                time.sleep(0.001)
            time.sleep(moments.random() * 0.1)
            running.kill()
    again = subprocess.run(command(made, tmp_path / "x.db"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert content(tmp_path / "x.db")[0] == undisturbed
    assert [file.name for file in tmp_path.iterdir()] == ["x.db"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal_it_says_how_to_go_on(made, undisturbed, tmp_path, how):
    """Ctrl-C (130), kill, and a terminal that is closed."""
    with subprocess.Popen(command(made, tmp_path / "x.db"), stderr=subprocess.PIPE, text=True) as running:
        wait_for_checkpoint(running, tmp_path)
        running.send_signal(how)
        stderr = running.stderr.read()
    assert (running.returncode, "Traceback" in stderr) == (128 + how, False), stderr
    assert "the same command goes on from there" in stderr
    again = subprocess.run(command(made, tmp_path / "x.db"), capture_output=True, text=True, check=False)
    assert "continuing" in again.stderr
    assert content(tmp_path / "x.db")[0] == undisturbed


@pytest.fixture(scope="module")
def parts(made, tmp_path_factory):
    """The parts of one collection, each in its database."""
    folder = tmp_path_factory.mktemp("parts")
    subject = load_subject(made[1]["model"])
    for n in range(1, N_PARTS + 1):
        with open_store(str(folder / f"{n}.db"), create=True) as store:
            list(run_collect(store, CollectConfig(**made[1], shard=(n, N_PARTS)), subject))
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_parts_merged_in_any_order_equal_the_whole(parts, undisturbed, tmp_path, seed):
    """Two at a time, drawn at random from the parts and from what was merged before."""
    draw = random.Random(seed)
    left = [parts / f"{n}.db" for n in range(1, N_PARTS + 1)]
    while len(left) > 1:
        draw.shuffle(left)
        merge(left.pop(), left.pop(), tmp_path / f"{len(left)}.db")
        left.append(tmp_path / f"{len(left)}.db")
    assert_whole(left[0], undisturbed)


@pytest.mark.parametrize("n_processes", [1, 2])
def test_parts_merged_all_at_once_equal_the_whole(parts, undisturbed, tmp_path, n_processes):
    names = [str(parts / f"{n}.db") for n in (3, 1, 4, 2)]
    command = [
        sys.executable,
        "-m",
        "neuroexplain.cli.main",
        "merge",
        *names,
        "--into",
        str(tmp_path / "x.db"),
        *("--processes", str(n_processes)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "It is whole" in done.stderr) == (0, True), done.stderr
    assert_whole(tmp_path / "x.db", undisturbed)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True), again.stderr
    with open_store(str(tmp_path / "x.db")) as store:
        assert len(list_runs(store)) == 1


def test_what_does_not_belong_together_is_not_merged(parts, made, tmp_path):
    with pytest.raises(NeuroexplainError, match="Part 1 of 4 is in both"):
        merge(parts / "1.db", parts / "1.db", tmp_path / "x.db")
    for name, more, message in (
        ("seed", {"seed": 5, "shard": (2, N_PARTS)}, "seed: 0 in .*5 in"),
        ("of", {"shard": (2, 3)}, "a part of 4, the other of 3"),
        ("whole", {}, "no part of a collection"),
        ("mixed", {"shard": (2, N_PARTS), "batch_size": 4}, "batch_size: 2 and 4"),
    ):
        with open_store(str(tmp_path / f"{name}.db"), create=True) as store:
            list(run_collect(store, CollectConfig(**made[1] | more)))
        with pytest.raises(NeuroexplainError, match=message):
            merge(parts / "1.db", tmp_path / f"{name}.db", tmp_path / "x.db")
    subject = load_subject(made[1]["model"])
    subject.model.get_parameter("layers.0.mlp.gate_proj.weight").data *= 2
    with open_store(str(tmp_path / "weights.db"), create=True) as store:
        list(run_collect(store, CollectConfig(**made[1] | {"shard": (2, N_PARTS)}), subject))
    with pytest.raises(NeuroexplainError, match="with other weights"):
        merge(parts / "1.db", tmp_path / "weights.db", tmp_path / "x.db", allow_mixed=True)
    merge(parts / "1.db", tmp_path / "mixed.db", tmp_path / "y.db", allow_mixed=True)
    with open_store(str(tmp_path / "other.db"), create=True) as store:
        other = "bfloat16" if content(parts / "1.db")[1].dtype == "float32" else "float32"
        list(run_collect(store, CollectConfig(**made[1] | {"shard": (2, N_PARTS), "dtype": other})))
    for n, two in enumerate(
        ((parts / "1.db", tmp_path / "other.db"), (tmp_path / "other.db", parts / "1.db"))
    ):
        merge(*two, tmp_path / f"z{n}.db", allow_mixed=True)
        assert content(tmp_path / f"z{n}.db")[1].dtype == "float32"  # which holds the values of both


@pytest.fixture(scope="module")
def old_parts(made, tmp_path_factory):
    """Two parts as earlier versions left them: their random records are those of all segments."""
    folder = tmp_path_factory.mktemp("old")
    for n in (1, 2):
        with open_store(str(folder / f"{n}.db"), create=True) as store:
            options = made[1] | {"sampled_records": 0, "random_records": 8}
            list(run_collect(store, CollectConfig(**options, shard=(n, 2))))
            make_old(store)
    return folder


def test_an_old_part_and_a_new_one_are_not_merged(old_parts, made, tmp_path):
    options = made[1] | {"random_records": 8}
    for name, more in (("new", {}), ("without", {"sampled_records": 0})):
        with open_store(str(tmp_path / f"{name}.db"), create=True) as store:
            list(run_collect(store, CollectConfig(**options | more, shard=(2, 2))))
        for two in (
            (old_parts / "1.db", tmp_path / f"{name}.db"),
            (tmp_path / f"{name}.db", old_parts / "1.db"),
        ):
            for allow_mixed in (False, True):
                with pytest.raises(NeuroexplainError) as error:
                    merge(*two, tmp_path / "x.db", allow_mixed=allow_mixed)
                assert str(error.value) == (
                    f"{old_parts / '1.db'} was collected by an earlier version, whose random records and "
                    "splits are others: merge old parts with old ones, or collect this part again with this "
                    "version."
                )


def test_old_parts_are_merged_by_their_own_rule(old_parts, tmp_path):
    merge(old_parts / "2.db", old_parts / "1.db", tmp_path / "x.db")
    tables, run = content(tmp_path / "x.db")
    assert (run.split_rule, run.n_sampled, tables["samples"], tables["split_segments"]) == (
        "ranks",
        0,
        [],
        [],
    )
    parts = [random_segments(old_parts / f"{n}.db") for n in (1, 2)]
    assert [len(segments) for segments in parts] == [8, 8]
    expected = sorted([*parts[0], *parts[1]], key=lambda segment: stable_hash(run.seed, segment))[:8]
    assert random_segments(tmp_path / "x.db") == expected


def random_segments(db):
    with open_store(str(db)) as store:
        unit = load_unit(store, load_run(store), UnitId(1, 7))
    return [x.segment for x in unit.exemplars if x.kind == "random"]


def test_a_part_needs_a_batch_size_and_a_number_that_exists(made):
    with pytest.raises(NeuroexplainError, match="same batch shape"):
        CollectConfig(**made[1] | {"batch_size": None}, shard=(1, 2))
    with pytest.raises(NeuroexplainError, match="is no part"):
        CollectConfig(**made[1], shard=(3, 2))
