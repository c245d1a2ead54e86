"""A run of latents with a background: what is read of it, scored, checked, merged and exported."""

import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from neuroexplain.arrays import BackgroundArrays
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig, ExplainConfig
from neuroexplain.evidence import Status
from neuroexplain.explaining.controls import run_controls
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.llm.local import LocalEngine
from neuroexplain.scorers.base import SCORERS
from neuroexplain.scorers.combined import CombinedSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.collected import load_collected_layer
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from tests.explaining.conftest import write_documents
from tests.explaining.explained import shares_text
from tests.fakes import tiny_subject
from tests.runs import assert_whole, content, merge
from tests.sources.test_latents import make

N_BACKGROUND = 20
UNITS = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(3))


def collect(folder, db, **options):
    config = CollectConfig(
        model=str(folder / "model"),
        dataset=(str(folder / "text.jsonl"),),
        source="sae",
        dictionary=str(folder / "sae"),
        background_records=N_BACKGROUND,
        top_k=8,
        batch_size=8,
        **options,
    )
    with open_store(str(db), create=True) as store:
        list(run_collect(store, config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("background")
    write_documents(folder / "text.jsonl", 120)
    tiny_subject(folder / "model")
    make(folder / "sae", "jumprelu")
    collect(folder, folder / "bare.db")
    engine = LocalEngine(str(folder / "model"))
    (folder / "explained.db").write_bytes((folder / "bare.db").read_bytes())
    with open_store(str(folder / "explained.db")) as store:
        run = load_run(store)
        lexical = LexicalSimulator(engine, run.tokenizer_sha256)
        costly = CombinedSimulator(engine, run.tokenizer_sha256)
        costly.guesser, costly.n_read = lexical, 4
        for scorer in (lexical, costly):
            list(run_explain(store, run, ExplainConfig(UNITS, "tokens"), None, scorer))
        list(run_controls(store, run, list_explanations(store, run.id), costly))
    return folder


@pytest.fixture
def store(folder, tmp_path):
    (tmp_path / "x.db").write_bytes((folder / "explained.db").read_bytes())
    with open_store(str(tmp_path / "x.db")) as opened:
        yield opened


def predictions_by(store, scorer):
    run = load_run(store)
    ids = [e.id for e in list_explanations(store, run.id, status=Status.OK)]
    return run, [p for p in list_predictions(store, ids) if p.scorer == scorer and p.status == Status.OK]


def test_the_background_is_the_next_random_segments_of_report(store):
    run = load_run(store)
    unit, _ = load_unit_to_score(store, run, UNITS[1])
    assert len(unit.background) == N_BACKGROUND
    assert {record.split for record in unit.background} == {"report"}
    random = [x.segment for x in unit.exemplars if x.kind == "random" and x.split == "report"]
    hashes = [stable_hash(run.seed, "random", n) for n in (*random, *(x.segment for x in unit.background))]
    assert hashes == sorted(hashes)
    assert load_unit(store, run, UNITS[1]).background == ()  # pages do not read it


def test_judges_leave_the_background_out(store):
    run = load_run(store)
    unit, tokens = load_unit_to_score(store, run, UNITS[0])
    evidence = SideEvidence.of(run, unit, "positive", tokens)
    assert len(evidence.background_frame()) == 16 + N_BACKGROUND
    reads = {name: SCORERS.load(name).reads_background for name in SCORERS.names()}
    assert {name for name, does in reads.items() if does} == {"combined", "digits", "lexical", "words"}


def weights_by_hand(run, unit, prediction):
    """1 / probability of each record of `report` that is read, by key, from the definition."""
    n = prediction.n_read
    report = [x for x in unit.exemplars if x.split == "report"]
    sampled = [x for x in report if x.kind == "sampled"]
    frame = [*(x for x in report if x.kind == "random"), *unit.background]
    share, n_segments = len(frame) / run.split_segments["report"], run.split_segments["report"]
    chances, read = dict.fromkeys((x.segment for x in (*frame, *sampled)), share), frame
    if prediction.guesses is not None:
        guesses = np.array(prediction.guesses)
        mean = guesses[: len(frame)].mean()
        sizes = 0.5 + (guesses / mean if mean else 0 * guesses)
        every = [*frame, *sampled]
        key = [
            size / ((stable_hash(run.seed, "background", x.segment) + 1) / 2**64)
            for x, size in zip(every, sizes, strict=True)
        ]
        order = sorted(range(len(frame)), key=lambda i: -key[i])
        inside, m = {frame[i].segment for i in order[: prediction.n_background]}, prediction.n_background
        read = [x for x in frame if x.segment in inside]
        for x, size in zip(every, sizes, strict=True):
            bound = key[order[m]] if x.segment in inside else key[order[m - 1]]
            chances[x.segment] = share * min(1, size / bound)
    assert n_segments >= len(frame)

    def size_of(x):
        first = 32 * (stable_hash(run.seed, "half", x.segment) % 2)
        return float((np.maximum(x.activations[first : first + 32], 0).astype(float) ** 2).sum())

    ratios = [size_of(x) / ((stable_hash(run.seed, "sampled", x.segment) + 1) / 2**64) for x in sampled]
    thresholds = [*ratios, unit.thresholds["positive", "report"]]
    inside = sampled[:n]
    weights = {}
    for x in [*inside, *(x for x in read if x.segment not in {y.segment for y in inside})]:
        share = 0.0
        if inside and size_of(x) > 0:
            bound = thresholds[len(inside)] if x in inside else ratios[len(inside) - 1]
            share = min(1, size_of(x) / bound) if bound else 1.0
        weights[x.key] = 1 / (1 - (1 - share) * (1 - chances[x.segment]))
    return weights


@pytest.mark.parametrize("scorer", ["lexical", "combined"])
def test_scores_are_weighted_by_the_probabilities_of_what_is_read(store, scorer):
    run, predictions = predictions_by(store, scorer)
    assert predictions
    for prediction in predictions:
        unit, _ = load_unit_to_score(store, run, prediction.unit)
        records = {x.key: x for x in (*unit.exemplars, *unit.background)}
        explained = [x for x in unit.exemplars if x.split == "explain"]
        weights = weights_by_hand(run, unit, prediction)
        predicted = {r.key: r for r in prediction.records}
        if scorer == "lexical":
            assert prediction.guesses is None
            assert prediction.n_background == 16 + N_BACKGROUND
            assert sum(key[0] in ("random", "background") for key in weights) > N_BACKGROUND + 8
        else:
            assert prediction.n_background == 12
            assert len(prediction.guesses) == 16 + N_BACKGROUND + sum(
                x.kind == "sampled" and x.split == "report" for x in unit.exemplars
            )
            assert len(set(prediction.guesses)) > 1
        w, p, t = [], [], []
        for key, weight in weights.items():
            if shares_text(records[key], explained):
                assert key not in predicted
                continue
            first = predicted[key].first
            w += [weight] * 32
            p += predicted[key].values.tolist()
            t += records[key].activations[first : first + 32].tolist()
        p, t, w = np.array(p), np.array(t), np.array(w)
        usable = ~np.isnan(p)
        p, t, w = p[usable], t[usable], w[usable]
        p, t = p - np.average(p, weights=w), t - np.average(t, weights=w)
        expected = (w * p * t).sum() / np.sqrt((w * p * p).sum() * (w * t * t).sum())
        scores = (s.score for s in list_scores(store, [prediction.explanation_id]) if s.scorer == scorer)
        (score,) = [
            s for s in scores if (s.split, s.subset, s.metric) == ("report", "population", "correlation")
        ]
        assert score.value == pytest.approx(expected, abs=1e-6)


def test_verify_finds_nothing_wrong(store):
    assert list(verify_run(store, load_run(store))) == []


DAMAGES = [
    (
        "UPDATE background_activations SET positions = CAST(positions || x'00' AS BLOB) WHERE unit = 1",
        "differ in number",
    ),
    ("UPDATE background_activations SET activations = zeroblob(length(activations))", "are 0, repeated"),
    ("DELETE FROM background_activations WHERE unit = 2", "its background differs from its random record"),
    (
        "UPDATE backgrounds SET segments = substr(segments, 1, length(segments) - 4)",
        "outside of the background",
    ),
    (
        "UPDATE backgrounds SET segments = CAST(substr(segments, 5) || substr(segments, 1, 4) AS BLOB)",
        "not in the order",
    ),
    ("DELETE FROM backgrounds WHERE layer = 0", "The background of layer 0"),
    (
        "UPDATE units SET histogram = zeroblob(length(histogram)) WHERE unit = 3",
        "3: its histogram has 0.0000",
    ),
    ("UPDATE units SET histogram = x'00' WHERE unit = 3", "A row of units"),
    ("UPDATE predictions SET background = substr(background, 1, 9)", "A row of predictions"),
    ("UPDATE predictions SET background = NULL WHERE scorer = 'lexical'", "differs from the recomputed"),
    ("UPDATE predictions SET guesses = NULL", "differs from the recomputed"),
]


@pytest.mark.parametrize(("sql", "fault"), DAMAGES)
def test_verify_finds_each_damage(store, sql, fault):
    run = load_run(store)
    with sqlite3.connect(store.file) as connection:
        assert connection.execute(sql).rowcount > 0
    connection.close()
    with open_store(str(store.file)) as again:
        assert any(fault in line for line in verify_run(again, run)), list(verify_run(again, run))


def test_parts_are_merged_into_the_whole(folder, tmp_path):
    for n in (1, 2):
        collect(folder, tmp_path / f"{n}.db", shard=(n, 2))
    merge(tmp_path / "2.db", tmp_path / "1.db", tmp_path / "both.db")
    assert_whole(tmp_path / "both.db", content(folder / "bare.db")[0])
    with open_store(str(tmp_path / "both.db")) as store:
        assert list(verify_run(store, load_run(store))) == []


def test_an_export_comes_back_as_it_was(store, tmp_path, database):
    run = load_run(store)
    list(export_parquet(store, run, tmp_path / "out"))
    with open_store(database, create=True) as back:
        list(import_parquet(back, tmp_path / "out"))
        again = load_run(back)
        assert replace(again, id=run.id, started_at=run.started_at) == run
        assert list(verify_run(back, again)) == []
        for layer in run.layers:
            mine, theirs = (load_collected_layer(s, r, layer) for s, r in ((store, run), (back, again)))
            np.testing.assert_array_equal(mine.histogram, theirs.histogram)
            for name in BackgroundArrays.__dataclass_fields__:
                np.testing.assert_array_equal(
                    getattr(mine.background, name), getattr(theirs.background, name)
                )
    assert run.health["0"]["l0"] > 0
    assert set(run.health) == {"0", "1"}
