"""What several test files look at: one small database made by the real pipeline from hostile text."""

from __future__ import annotations

import json
import os
import secrets

import pytest
from sqlalchemy import create_engine, text

from neuroexplain.cli.progress import draw
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig, EngineConfig, ExplainConfig, ScoreConfig
from neuroexplain.evidence import Explanation, Provenance
from neuroexplain.explaining.engines import open_engines
from neuroexplain.explaining.run import run_explain
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_explained import save_checks, save_explanation
from neuroexplain.units import UnitId
from tests.fakes import made_check, tiny_subject, words
from tests.sources.test_latents import make as make_dictionary

ATTACK = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1">'
MARKUP = "</script></pre> <svg/onload=alert(1)> &lt;b&gt; <!-- ]]> javascript:alert(1)"
HOSTILE_TEXT = f" {ATTACK} {MARKUP} \x00\x1b[31m \u202eevil\u202c {'x' * 400} {{{{7*7}}}} \" ' OR 1=1 -- "
HOSTILE_EXPLANATION = f'=HYPERLINK("http://x") "quotes" OR NEAR(a b) {ATTACK} \u202e'


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A folder with a tiny model, `model`, and `x.db`: two layers of 24 neurons, 20 of them explained and
    scored.

    Neuron 0:1 has a hostile explanation, 0:2 one that was not chosen.
    """
    folder = tmp_path_factory.mktemp("hostile")
    tiny_subject(folder / "model")
    texts = [words(500, seed=n) + HOSTILE_TEXT * 3 for n in range(30)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = str(folder / "model")
    with open_store(str(folder / "x.db"), create=True) as store:
        draw(run_collect(store, CollectConfig(model=model, dataset=(str(folder / "text.jsonl"),))))
        run = load_run(store)
        neurons = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(10))
        engine = EngineConfig(local=model)
        with open_engines(
            run, engine, ScoreConfig(("lexical",), None), explains=False, tell=lambda line: None
        ) as (
            engine,
            scorers,
        ):
            draw(run_explain(store, run, ExplainConfig(neurons, "tokens", 0, False), engine, scorers[0]))
        mine = Provenance(
            engine="none", engine_version=None, model="human", model_revision=None, prompt_sha256=None
        )
        save_explanation(store, run.id, Explanation(UnitId(0, 1), "human", "ok", HOSTILE_EXPLANATION, mine))
        other = Explanation(
            UnitId(0, 2), "human", "ok", f"not chosen {ATTACK}", mine, candidate=1, chosen=False
        )
        save_explanation(store, run.id, other)
        checks = [made_check(scorer_model=name) for name in (model, f"not the scorer {ATTACK}")]
        save_checks(store, run.id, checks)
    return folder


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """Where a new database can be made: a file, and where scripts/with_postgresql.sh started one, a
    PostgreSQL URL.
    """
    if request.param == "sqlite":
        yield str(tmp_path / "x.db")
        return
    yield from new_postgresql()


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def shared_database(request, tmp_path_factory):
    """As `database`, one for all tests of a file."""
    if request.param == "sqlite":
        yield str(tmp_path_factory.mktemp("shared") / "x.db")
        return
    yield from new_postgresql()


@pytest.fixture
def postgresql():
    """The URL of a new database on PostgreSQL."""
    yield from new_postgresql()


def new_postgresql():
    url = os.environ.get("NEUROEXPLAIN_TEST_POSTGRESQL")
    if url is None:
        pytest.skip("no PostgreSQL: run with scripts/with_postgresql.sh")
    name = f"test_{secrets.token_hex(6)}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.rsplit("/", 1)[0] + "/" + name
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    """A folder with a tiny model, `model`, SAEs of its two layers, `saes`, and `x.db`: 22 latents a layer.

    Eight latents of each layer are explained and scored.
    """
    folder = tmp_path_factory.mktemp("latents")
    tiny_subject(folder / "model")
    make_dictionary(folder / "saes", "topk")
    (folder / "text.jsonl").write_text(json.dumps({"text": words(8_000)}) + "\n")
    text, model = (str(folder / "text.jsonl"),), str(folder / "model")
    config = CollectConfig(
        model=model, dataset=text, source="sae", dictionary=str(folder / "saes"), background_records=64
    )
    with open_store(str(folder / "x.db"), create=True) as store:
        draw(run_collect(store, config))
        run = load_run(store)
        units = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(8))
        scoring = ScoreConfig(("lexical",), None)
        with open_engines(run, EngineConfig(local=model), scoring, explains=False, tell=str) as opened:
            engine, scorers = opened
            draw(run_explain(store, run, ExplainConfig(units, "tokens", 0, False), engine, scorers[0]))
    return folder
