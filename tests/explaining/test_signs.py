"""The negative side: collected, explained and scored as the positive one is, by the lowest activations."""

import json

import numpy as np
import pytest

from neuroexplain.as_json import unit_json
from neuroexplain.collecting.run import run_collect
from neuroexplain.config import CollectConfig, ExplainConfig
from neuroexplain.evidence import Explanation, Provenance
from neuroexplain.explaining.explainers import EXPLAINERS
from neuroexplain.explaining.run import run_explain
from neuroexplain.explaining.score import run_score
from neuroexplain.explaining.verify import verify_run
from neuroexplain.llm.local import LocalEngine
from neuroexplain.lookup import find_explanations, load_page
from neuroexplain.scorers.base import SCORERS
from neuroexplain.scoring.correlation import correlation_score
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_explained import save_explanation
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from tests.explaining.conftest import write_documents
from tests.explaining.explained import score_by_hand
from tests.fakes import ScriptedLlm, tiny_subject

UNITS = tuple(UnitId(layer, n) for layer in (0, 1) for n in range(6))
BILLS = {"positive": "top_and_random", "negative": "bottom_and_random"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs")
    write_documents(folder / "text.jsonl", 120)
    tiny_subject(folder / "model")
    return folder


@pytest.fixture(scope="module")
def explained(folder):
    """A function that opens a run of a sign, explained by peak tokens and scored."""
    engine = LocalEngine(str(folder / "model"))
    made = {}

    def explain(sign):
        if sign not in made:
            store = made[sign] = open_store(str(folder / f"{sign}.db"), create=True)
            options = {
                "model": str(folder / "model"),
                "dataset": (str(folder / "text.jsonl"),),
                "positions": (32, 97),
            }
            list(run_collect(store, CollectConfig(**options, activation="post", sign=sign)))
            run = load_run(store)
            list(
                run_explain(
                    store,
                    run,
                    ExplainConfig(UNITS, "tokens"),
                    None,
                    SCORERS.load("lexical").open(engine, run),
                )
            )
        return made[sign], load_run(made[sign])

    yield explain
    for store in made.values():
        store.close()


def true_of(a, side, sign):
    """What is true of activations, from the definition."""
    facing = a if side == "positive" else -a
    return np.where(facing > 0, facing, 0) if sign == "both" else facing


@pytest.mark.parametrize(("sign", "sides"), [("negative", {"negative"}), ("both", {"positive", "negative"})])
def test_every_side_is_explained_and_scored(explained, sign, sides):
    store, run = explained(sign)
    explanations = list_explanations(store, run.id)
    assert {e.side for e in explanations} == sides
    assert len({(e.unit, e.side) for e in explanations}) == len(explanations) == len(UNITS) * len(sides)
    assert all(e.status == "ok" and e.chosen for e in explanations)
    sides_of = {e.id: e.side for e in explanations}
    n_checked = 0
    for s in list_scores(store, sides_of):
        side = sides_of[s.explanation_id]
        assert s.score.subset in ("population", BILLS[side], *BILLS[side].split("_and_"))
        control = s.score.control_explanation_id
        assert control is None or sides_of[control] == side
    for prediction in list_predictions(store, sides_of):
        side = sides_of[prediction.explanation_id]
        unit = load_unit(store, run, prediction.unit)
        strongest = BILLS[side].split("_")[0]
        assert {r.kind for r in prediction.records} <= {strongest, "random", "sampled"}
        by_place = {(x.kind, x.rank): x for x in unit.exemplars}
        assert {by_place[r.key].side for r in prediction.records} == {None, side}
        mine = [s.score for s in list_scores(store, [prediction.explanation_id]) if s.score.split == "report"]
        values = {(s.subset, s.metric): s.value for s in mine}
        expected = score_by_hand(run, unit, prediction, "report", side)
        assert values["population", "correlation"] == pytest.approx(expected, abs=1e-6)
        n_checked += expected is not None
        levels = {r.key: r for r in prediction.records if by_place[r.key].split == "report"}
        top = [key for key in levels if key[0] == strongest]
        chosen = [*top, *[key for key in sorted(levels) if key[0] == "random"][: len(top)]]
        truth = [
            true_of(by_place[key].activations[levels[key].first :][:32].astype(np.float64), side, sign)
            for key in chosen
        ]
        bills = correlation_score(
            np.concatenate([levels[key].values for key in chosen]), np.concatenate(truth)
        )
        assert values[BILLS[side], "correlation"] == pytest.approx(bills)
    assert n_checked > 5
    assert list(verify_run(store, run)) == []


def test_the_lowest_records_are_shown_the_right_way_up(explained):
    store, run = explained("both")
    unit = load_unit(store, run, UNITS[0])
    evidence = SideEvidence.of(run, unit, "negative")
    records = evidence.explain_records(5)
    assert records
    assert all(
        x.kind == "bottom" and x.split == "explain" and x.activation == x.activations[32] > 0 for x in records
    )
    tokens = load_page(store, run, UNITS[0]).tokens
    pairs = EXPLAINERS["pairs"].render(records, tokens)
    assert "\t10" in pairs  # the strongest of what is shown


def test_query_and_show_have_both_sides_best_first(explained):
    store, run = explained("both")
    rows = find_explanations(store, run, limit=100)
    assert {row.side for row in rows} == {"positive", "negative"}
    assert {row.subset for row in rows if row.score is not None} == {"population"}
    scores = [row.score for row in rows if row.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert find_explanations(store, run, limit=3) == rows[:3]
    bills = {
        s.explanation_id: s.score.value
        for s in list_scores(store, [row.explanation_id for row in rows])
        if (s.score.split, s.score.subset, s.score.metric) == ("report", "top_and_random", "correlation")
    }
    assert all(row.correlation == bills.get(row.explanation_id) for row in rows)
    assert len(bills) == sum(row.side == "positive" for row in rows) > 0
    page = unit_json(load_page(store, run, UNITS[0]))
    assert json.loads(json.dumps(page))["explanations"][0]["side"] in BILLS
    assert {e["side"] for e in page["explanations"]} == set(BILLS)


def test_a_hypothesis_of_ones_own_is_scored_on_its_side(explained, folder):
    store, run = explained("negative")
    mine = Provenance("none", None, "human", None, None)
    own = save_explanation(
        store, run.id, Explanation(UNITS[0], "human", "ok", "rivers", mine, side="negative")
    )
    list(run_score(store, run, [own], SCORERS.load("lexical").open(LocalEngine(str(folder / "model")), run)))
    subsets = {s.score.subset for s in list_scores(store, [own.id])}
    assert subsets == {"population", "bottom_and_random", "bottom", "random"}


def test_candidates_and_revisions_work_on_either_side(explained, folder):
    store, run = explained("both")
    llm = ScriptedLlm(
        lambda messages, sampling: f"words like {len(messages[-1].content) % 7} and {sampling['seed']}"
    )
    scorer = SCORERS.load("lexical").open(LocalEngine(str(folder / "model")), run)
    config = ExplainConfig(UNITS[:2], "excerpts", candidates=2, revise=1)
    list(run_explain(store, run, config, llm, scorer))
    n_asked = len(llm.requests)
    assert n_asked >= 2 * 2 * 3
    made = list_explanations(store, run.id, explainer="excerpts")
    assert {(e.unit, e.side, e.candidate) for e in made} == {
        (u, s, c) for u in UNITS[:2] for s in BILLS for c in range(3)
    }
    assert sum(e.chosen for e in made) == 4
    assert list(verify_run(store, run)) == []
    list(run_explain(store, run, config, llm, scorer))
    assert len(llm.requests) == n_asked  # nothing is asked again


def test_a_side_that_never_fires_is_dead_and_the_unit_is_not(folder):
    """SiLU's output is above 0 somewhere and below 0 elsewhere; ReLU's is never below."""
    with open_store(str(folder / "opt.db"), create=True) as store:
        from transformers import OPTConfig, OPTForCausalLM

        from tests.fakes import tiny_tokenizer

        shape = {
            "vocab_size": 330,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 24,
        }
        OPTForCausalLM(OPTConfig(**shape, word_embed_proj_dim=16)).save_pretrained(folder / "opt")
        tiny_tokenizer().save_pretrained(folder / "opt")
        text = (str(folder / "text.jsonl"),)
        list(
            run_collect(
                store, CollectConfig(model=str(folder / "opt"), dataset=text, segments=40, sign="both")
            )
        )
        run = load_run(store)
        list(run_explain(store, run, ExplainConfig((UnitId(0, 3),), "tokens"), None, None))
        statuses = {e.side: (e.status, e.reason) for e in list_explanations(store, run.id)}
        assert statuses["negative"] == ("dead", "its strongest record is not below 0")
        assert statuses["positive"][0] == "ok"
        assert load_unit(store, run, UnitId(0, 3)).status == "ok"
