"""Hard negatives from the pass of the subject to the page: a tiny model's units, judged by a command."""

import json
import sqlite3
from collections import Counter

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.collecting import measure_hard
from neuroexplain.collecting.measure_hard import find_look_alikes, find_peak_places, run_measure_hard
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig, ExplainConfig
from neuroexplain.errors import NeuroexplainError
from neuroexplain.explaining.merge import run_merge_explained
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.verify import verify_run
from neuroexplain.scoring import hard_faults, windows
from neuroexplain.scoring.look_alikes import MOST_MEASURED
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.copy_rows import copy_collection
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.hard import list_measured, load_hard, load_hard_rows
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_collected import delete_run
from neuroexplain.store.save_hard import save_hard
from neuroexplain.store.units import load_segments, load_unit
from neuroexplain.subject.load import load_subject
from neuroexplain.units import UnitId
from neuroexplain.web.app import make_app
from tests.answering import AnsweringServer
from tests.fakes import tiny_subject
from tests.scorers.parquet import through_parquet

UNITS = [UnitId(0, 1), UnitId(0, 3), UnitId(1, 2)]
SIDES = [(unit, "positive") for unit in UNITS]
NAMES = ("detection", "fuzzing", "embedding")


def typed(*words, status=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == status, (done.output, done.exception)
    return done


@pytest.fixture(scope="module", autouse=True)
def rarely_firing():
    """A tiny model's units fire in every window: only what is near the peak counts here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (windows, hard_faults):
            patch.setattr(module, "POSITIVE_SHARE", 0.85)
        yield


@pytest.fixture(scope="module")
def model(hostile):
    return str(hostile / "model")


@pytest.fixture(scope="module")
def collected(hostile, model, tmp_path_factory):
    """The hostile text read in float32, in which a test can tell what is the same; ten units explained."""
    db = tmp_path_factory.mktemp("collected") / "x.db"
    with open_store(str(db), create=True) as store:
        config = CollectConfig(model=model, dataset=(str(hostile / "text.jsonl"),), dtype="float32")
        list(run_collect(store, config))
        units = tuple(UnitId(0, n) for n in range(10))
        list(run_explain(store, load_run(store), ExplainConfig(units, "tokens"), None, None))
    return db


def copy_of(db, folder):
    folder.mkdir(exist_ok=True)
    copy = folder / "copy.db"
    copy.write_bytes(db.read_bytes())
    return copy


def measure(db, model, sides=SIDES, loads=None, **more):
    """Measure, and count how often the model is loaded."""
    with open_store(str(db)) as store:
        run = load_run(store)

        def load():
            if loads is not None:
                loads.append(model)
            return load_subject(model, run.dtype, "cpu")

        return list(run_measure_hard(store, run, sides, model, load, **more))


@pytest.fixture(scope="module")
def measured(collected, model, tmp_path_factory):
    db = copy_of(collected, tmp_path_factory.mktemp("measured"))
    measure(db, model)
    return db


@pytest.fixture(scope="module")
def judged(hostile, collected, model, tmp_path_factory):
    """Units that judges scored before, scored again with hard negatives; and the prompts of each command."""
    db = copy_of(collected, tmp_path_factory.mktemp("judged"))
    server = AnsweringServer(hostile / "model")
    command = ("score", "0:0-9", "--scorer", ",".join(NAMES), "--server", server.url, "--db", db)
    counts = []
    for more in ((), ("--subject", model), ("--subject", model), ("--control",)):
        before = len(server.bodies)
        typed(*command, *more)
        prompts = [body["prompt"] for body in server.bodies[before:]]
        counts.append(sum(len(p) if isinstance(p[0], list) else 1 for p in prompts))
    server.kill()
    return db, counts


def rows_of(db):
    with open_store(str(db), read_only=True) as store:
        run = load_run(store)
        return {(r.unit, r.side): r for layer in run.layers for r in load_hard_rows(store, run, layer)}


def test_activations_are_those_of_a_plain_forward_pass(measured, model):
    rows = rows_of(measured)
    assert set(rows) == set(SIDES)
    subject = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with open_store(str(measured), read_only=True) as store:
        for (unit, _), row in rows.items():
            own = row.records
            assert 8 < len(own.segments) <= MOST_MEASURED
            segments = load_segments(store, 1, set(own.segments.tolist()))
            for number, start, acts in zip(own.segments, own.starts, own.activations, strict=True):
                kept = {}
                mlp = subject.model.layers[unit.layer].mlp
                handle = mlp.act_fn.register_forward_hook(lambda _, __, out, kept=kept: kept.update(acts=out))
                with torch.no_grad():
                    subject(torch.from_numpy(segments[int(number)].token_ids.astype(np.int64))[None])
                handle.remove()
                expected = kept["acts"][0, start : start + 64, unit.index].numpy()
                np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-5)


def test_they_are_held_out_records_with_a_peak_token_or_of_the_nearest_units(measured):
    rows = rows_of(measured)
    reasons = Counter()
    with open_store(str(measured), read_only=True) as store:
        run = load_run(store)
        for (unit_id, side), row in rows.items():
            unit, own = load_unit(store, run, unit_id), row.records
            peaks = Counter(int(x.token_ids[32]) for x in unit.exemplars if x.kind == "top")
            frequent = sorted(peaks, key=lambda token: (-peaks[token], token))[:8]
            known = {x.segment for x in unit.exemplars if x.kind in ("random", "sampled")}
            shared = {}
            for n in range(run.width(unit_id.layer)):
                other = load_unit(store, run, UnitId(unit_id.layer, n))
                theirs = Counter(int(x.token_ids[32]) for x in other.exemplars if x.kind == "top")
                shared[n] = -sum((peaks & theirs).values()), n
            nearest = sorted((n for n in shared if n != unit_id.index), key=shared.get)[:8]
            reasons.update(own.reasons.tolist())
            assert len(set(own.segments.tolist())) == len(own.segments)
            for x, reason, n in zip(
                load_hard(store, run, unit_id)[side], own.reasons, own.others, strict=True
            ):
                assert x.split == "report"
                assert x.segment not in known
                if reason == 0:
                    assert n == unit_id.index
                    assert x.token_ids[32] in frequent
                    assert 64 <= x.start + 32 < 97
                else:
                    top = load_unit(store, run, UnitId(unit_id.layer, int(n))).exemplars
                    (theirs,) = [
                        y for y in top if (y.kind, y.segment, y.start) == ("top", x.segment, x.start)
                    ]
                    assert n in nearest
                    assert np.array_equal(theirs.token_ids, x.token_ids)
    assert min(reasons[0], reasons[1]) > 10


def test_latents_are_compared_with_their_nearest_ones(latents, hostile, tmp_path):
    """Of a dictionary, encoded by the pass as when collecting; in the machine's dtype."""
    db = tmp_path / "x.db"
    with open_store(str(db), create=True) as store:
        text, model, folder = (str(hostile / "text.jsonl"),), str(latents / "model"), str(latents / "saes")
        source = {"source": "sae", "dictionary": folder, "background_records": 64}
        list(run_collect(store, CollectConfig(model=model, dataset=text, **source)))
    sides = [(UnitId(1, n), "positive") for n in range(8)]
    measure(db, model, sides)
    with open_store(str(db), read_only=True) as store:
        run, n_nearest = load_run(store), 0
        for (unit, _), row in rows_of(db).items():
            nearest = [n for n, _ in load_unit(store, run, unit).nearest]
            others = [n for n, by in zip(row.records.others, row.records.reasons, strict=True) if by == 1]
            assert set(others) <= set(nearest[:8])
            n_nearest += len(others)
        assert n_nearest > 20
        assert list(verify_run(store, run)) == []


def test_each_side_has_its_own(hostile, model, tmp_path):
    db = tmp_path / "both.db"
    with open_store(str(db), create=True) as store:
        text = (str(hostile / "text.jsonl"),)
        list(run_collect(store, CollectConfig(model=model, dataset=text, dtype="float32", sign="both")))
    unit = UnitId(0, 3)
    measure(db, model, [(unit, "positive"), (unit, "negative")])
    with open_store(str(db), read_only=True) as store:
        run = load_run(store)
        whole, _ = load_unit_to_score(store, run, unit)
        assert list(verify_run(store, run)) == []
        for side, kind in (("positive", "top"), ("negative", "bottom")):
            own = SideEvidence.of(run, whole, side)
            peaks = {int(x.token_ids[32]) for x in whole.exemplars if x.kind == kind}
            (row,) = [r for (_, name), r in rows_of(db).items() if name == side]
            by_token = [x for x, by in zip(own.hard, row.records.reasons, strict=True) if by == 0]
            assert by_token
            assert all(int(x.token_ids[32]) in peaks for x in by_token)
            silent = {t.rank for t in windows.hard_negatives(own)}
            for x in own.hard:
                window = x.activations[own.first_of(x) :][:32] * (1 if side == "positive" else -1)
                counted = own.counts(x)[own.first_of(x) :][:32]
                assert (x.rank in silent) == (
                    x.key not in own.leaking and max(window[counted]) <= 0.85 * own.peak
                )


@pytest.mark.parametrize("segments_at_once", [1, 7, 64])
def test_neither_the_batch_size_nor_the_company_nor_an_interruption_changes_anything(
    collected, measured, model, tmp_path, segments_at_once, monkeypatch
):
    db, loads = copy_of(collected, tmp_path), []
    monkeypatch.setattr(measure_hard, "SIDES_AT_ONCE", 1)
    with open_store(str(db)) as store:
        run = load_run(store)
        events = run_measure_hard(
            store, run, SIDES, model, lambda: load_subject(model, run.dtype, "cpu"),
            segments_at_once=segments_at_once,
        )  # fmt: skip
        for event in events:
            if event.done == 1:
                events.close()
                break
        assert len(list_measured(store, run.id)) == 1
    (done,) = rows_of(db).items()
    events = measure(db, model, loads=loads, segments_at_once=segments_at_once)
    assert next(event.done for event in events) == 1
    assert len(loads) == 1
    rows, expected = rows_of(db), rows_of(measured)
    np.testing.assert_array_equal(rows[done[0]].records.activations, done[1].records.activations)
    for side, row in rows.items():
        for name in ("segments", "starts", "reasons", "others"):
            np.testing.assert_array_equal(getattr(row.records, name), getattr(expected[side].records, name))
        np.testing.assert_allclose(
            row.records.activations, expected[side].records.activations, rtol=1e-4, atol=1e-5
        )


def test_a_model_that_is_not_the_subject_is_refused(collected, model, tmp_path):
    db = copy_of(collected, tmp_path)
    other = tiny_subject(tmp_path / "other")
    weights = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        weights.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    weights.save_pretrained(other)
    with pytest.raises(NeuroexplainError) as refused:
        measure(db, str(other))
    assert f"--subject {model}" in str(refused.value)
    assert str(other) in str(refused.value)
    assert rows_of(db) == {}
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE runs SET versions = '{}'")
    with pytest.raises(NeuroexplainError, match="does not tell the hash"):
        measure(db, model)
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE runs SET n_sampled = 0")
    with pytest.raises(NeuroexplainError, match="has no sampled ones"):
        measure(db, model)


def test_values_that_collecting_did_not_see_are_refused(collected, model, tmp_path):
    """As if another version of Transformers computed something else from the same weights."""
    db = copy_of(collected, tmp_path)
    with open_store(str(db)) as store:
        run = load_run(store)

        def load():
            subject = load_subject(model, run.dtype, "cpu")
            assert len(subject.weights_sha256) == 64  # known before the change
            with torch.no_grad():
                subject.layers[0].mlp.gate_proj.weight[3] *= 1.01
            return subject

        with pytest.raises(NeuroexplainError, match=r"of unit 0:3, segment \d+, its activations differ"):
            list(run_measure_hard(store, run, SIDES, model, load))
    assert rows_of(db) == {}


def test_the_command_measures_once_and_asks_about_hard_negatives_alone(judged):
    db, counts = judged
    n_opened = counts[2]  # requests by which a command learns how to ask the server
    assert n_opened < 8
    with open_store(str(db), read_only=True) as store:
        run = load_run(store)
        assert list(verify_run(store, run)) == []
        assert len(list_measured(store, run.id)) == 10
        ids = [e.id for e in list_explanations(store, 1) if e.unit.layer == 0]
        predictions = [p for p in list_predictions(store, ids) if p.scorer in NAMES]
        for prediction in predictions:
            unit, tokens = load_unit_to_score(store, run, prediction.unit)
            evidence = SideEvidence.of(run, unit, "positive", tokens)
            silent = [t.key for t in windows.hard_negatives(evidence)]
            assert [r.key for r in prediction.records if r.kind == "hard"] == silent[:16]
            assert prediction.n_hard == min(16, len(silent))
        scores = [s for s in list_scores(store, ids) if s.score.subset == "hard"]
    by_judges = [p for p in predictions if p.scorer != "embedding"]
    hard, others = (
        sum((r.kind == "hard") is kind for p in by_judges for r in p.records) for kind in (True, False)
    )
    assert hard / 2 < counts[1] - n_opened <= hard  # of equal windows one is asked about
    assert others / 2 < counts[0] - n_opened <= others
    assert {s.scorer for s in scores} == set(NAMES)
    assert {(s.score.metric, s.score.split) for s in scores} == {("auroc", "report")}
    valued = [s for s in scores if s.score.value is not None]
    assert len(valued) > 5
    assert all(
        s.score.ci_low <= s.score.value <= s.score.ci_high for s in valued if s.score.ci_low is not None
    )
    assert any(s.score.control is not None for s in valued if s.scorer == "detection")
    undefined = [s.score for s in scores if s.score.value is None]
    assert all(s.reason and s.status != "ok" for s in undefined)


def test_a_stored_control_is_tried_on_hard_negatives_too(hostile, collected, model, tmp_path):
    db, server = copy_of(collected, tmp_path), AnsweringServer(hostile / "model")
    command = ("score", "0:0-4", "--scorer", "detection", "--server", server.url, "--db", db)
    typed(*command, "--control")
    typed(*command, "--subject", model)
    server.kill()
    with open_store(str(db), read_only=True) as store:
        scores = [s.score for s in list_scores(store, range(1, 99)) if s.scorer == "detection"]
        assert list(verify_run(store, load_run(store))) == []
    assert {s.subset for s in scores if s.control is not None} == {"population", "hard"}
    assert all(s.control is not None for s in scores if s.value is not None)


def test_population_scores_do_not_change(judged, hostile, collected, tmp_path):
    """They are those of a command that knows of no look-alikes."""
    db, server = copy_of(collected, tmp_path), AnsweringServer(hostile / "model")
    typed("score", "0:0-9", "--scorer", ",".join(NAMES), "--server", server.url, "--control", "--db", db)
    server.kill()

    def scores_of(file):
        with open_store(str(file), read_only=True) as store:
            stored = list_scores(store, [e.id for e in list_explanations(store, 1)])
        return {(s.explanation_id, s.scorer, s.score) for s in stored if s.score.subset != "hard"}

    assert scores_of(db) == scores_of(judged[0])


def test_it_stands_in_query_show_and_the_viewer(judged):
    db, _ = judged
    rows = json.loads(typed("query", "--scorer", "detection", "--json", "--db", db).stdout)
    valued = [row for row in rows if row["hard"] is not None]
    assert valued
    assert all(
        row["hard_low"] is None or row["hard_low"] <= row["hard"] <= row["hard_high"] for row in valued
    )
    assert "alike" in typed("query", "--scorer", "detection", "--db", db).stdout
    unit = valued[0]["unit"]
    assert "AUROC among look-alikes" in typed("show", f"0:{unit}", "--db", db).stdout
    with open_store(str(db), read_only=True) as store:
        client = TestClient(make_app(store))
        assert "AUROC among look-alikes" in client.get(f"/0/{unit}").text
        assert "among look-alikes" in client.get("/search", params={"scorer": "detection"}).text


def test_it_goes_through_parquet(judged, tmp_path):
    before, after = through_parquet(judged[0], tmp_path, *NAMES)
    assert before == after
    assert any(subset == "hard" for _, _, subset, *_ in before[1])
    for side, row in rows_of(judged[0]).items():
        np.testing.assert_array_equal(
            rows_of(tmp_path / "y.db")[side].records.activations, row.records.activations
        )


DAMAGES = [
    ("UPDATE hard_records SET checksum = 'x' WHERE unit = 3", "differ from their checksum"),
    ("UPDATE hard_records SET segments = x'00' WHERE unit = 3", "cannot be read"),
    ("DELETE FROM hard_records WHERE unit = 3", "the prediction cannot be read: its record hard"),
    ("UPDATE predictions SET n_hard = 5 WHERE scorer = 'fuzzing'", "were predicted, not the first 5"),
    ("UPDATE predictions SET n_hard = NULL WHERE scorer = 'fuzzing'", "none are to be read"),
    ("UPDATE scores SET value = 0.123 WHERE subset = 'hard'", "differs from the recomputed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "fault"), DAMAGES)
def test_verify_finds_what_was_changed(judged, tmp_path, change, fault):
    db = copy_of(judged[0], tmp_path)
    with sqlite3.connect(db) as connection:
        assert connection.execute(change).rowcount
    with open_store(str(db), read_only=True) as store:
        assert any(fault in line for line in verify_run(store, load_run(store)))


def test_verify_finds_a_changed_activation(judged, tmp_path):
    db = copy_of(judged[0], tmp_path)
    with sqlite3.connect(db) as connection:
        (blob,) = connection.execute("SELECT activations FROM hard_records WHERE unit = 3").fetchone()
        values = np.frombuffer(blob, "<f4").copy()
        values[40] *= 1.5
        sql = "UPDATE hard_records SET activations = ? WHERE unit = 3"
        connection.execute(sql, (values.tobytes(),))
    with open_store(str(db), read_only=True) as store:
        lines = list(verify_run(store, load_run(store)))
    assert "0:3: its positive side's look-alikes differ from their checksum" in lines


def test_merging_brings_what_was_measured(judged, collected, tmp_path):
    """Into the same collection without it; and what two machines measured differently is refused."""
    into = copy_of(collected, tmp_path)
    with open_store(str(judged[0]), read_only=True) as part, open_store(str(into)) as store:
        list(run_merge_explained([(part, load_run(part))], store))
        assert list(verify_run(store, load_run(store))) == []
        assert list_measured(store, 1) == list_measured(part, 1)
        again = [s for s in list_scores(store, range(1, 99)) if s.score.subset == "hard"]
        assert len(again) == len([s for s in list_scores(part, range(1, 99)) if s.score.subset == "hard"])
    with sqlite3.connect(into) as connection:
        connection.execute("UPDATE hard_records SET checksum = 'x' WHERE unit = 3")
    with (
        open_store(str(judged[0]), read_only=True) as part,
        open_store(str(into)) as store,
        pytest.raises(NeuroexplainError, match="different records of unit 0:3"),
    ):
        list(run_merge_explained([(part, load_run(part))], store))


def test_every_database_keeps_it(measured, database):
    """Rows are the same on PostgreSQL, saving them again changes nothing, and they go with their run."""
    with open_store(str(measured), read_only=True) as source, open_store(database, create=True) as store:
        run = load_run(source)
        list(copy_collection(source, run, store))
        own = load_run(store)
        assert list_measured(store, own.id) == set(SIDES)
        rows = {(r.unit, r.side): r for layer in own.layers for r in load_hard_rows(store, own, layer)}
        assert all(row.is_sound for row in rows.values())
        expected = rows_of(measured)
        for side, row in rows.items():
            np.testing.assert_array_equal(row.records.activations, expected[side].records.activations)
        save_hard(store, own.id, own.dtype, dict.fromkeys(SIDES, expected[SIDES[0]].records))
        row = load_hard_rows(store, own, 1)[0]
        np.testing.assert_array_equal(row.records.segments, expected[SIDES[2]].records.segments)
        places = find_peak_places(store, own, SIDES)
        look_alikes = find_look_alikes(store, own, *SIDES[1], places).look_alikes
        assert [c.segment for c in look_alikes] == expected[SIDES[1]].records.segments.tolist()
        delete_run(store, own.id)
        with store.read() as reader:
            assert reader.value("SELECT count(*) FROM hard_records") == 0


def test_subject_is_refused_where_nothing_reads_it(collected, model):
    for more, reason in (
        (("0:1", "--scorer", "lexical"), "--scorer lexical does not read them"),
        (("0:1",), "--scorer combined does not read them"),
        (("--controls", "--scorer", "detection"), "leave out --subject"),
    ):
        refused = CliRunner().invoke(app, ["score", *more, "--subject", model, "--db", str(collected)])
        assert isinstance(refused.exception, NeuroexplainError)
        assert reason in str(refused.exception)
