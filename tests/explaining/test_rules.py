"""Explanations of a rule and examples: what is stored, predicted, scored and compared of the rule alone."""

import csv
import io
import re
import sqlite3

import pytest

from neuroexplain.as_json import query_csv, query_json, unit_json
from neuroexplain.explaining.rendering import firing_words
from neuroexplain.explaining.score import run_score
from neuroexplain.explaining.verify import verify_run
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.formats.parquet import export_parquet
from neuroexplain.formatting import rule_comparison
from neuroexplain.lookup import find_explanations, load_page
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.engine import open_store
from neuroexplain.store.explanations import list_explanations, list_predictions, list_scores
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from tests.explaining.explained import NEURONS, by_words, explain, score_by_hand
from tests.fakes import ScriptedLlm


@pytest.fixture
def lexical(local, store):
    return LexicalSimulator(local, load_run(store).tokenizer_sha256)


def explained_rules(store, scorer, **options):
    """The run's explanations, rules with examples, by a scripted LLM."""
    explain(store, ScriptedLlm(by_words), scorer, "category", **options)
    return list_explanations(store, load_run(store).id)


def shown_words(store, unit):
    """The words that fire in the records that the explainer is shown."""
    run = load_run(store)
    evidence = SideEvidence.of(run, load_unit(store, run, unit), "positive")
    return firing_words(evidence.explain_records(10), load_page(store, run, unit).tokens)


def population_scores(store, explanation_id, part, split):
    """The values of the population score of a split; a list of one."""
    key = (split, "correlation", "population")
    scores = (stored.score for stored in list_scores(store, [explanation_id], part))
    return [s.value for s in scores if (s.split, s.metric, s.subset) == key]


def test_up_to_five_of_the_words_that_fire_follow_the_rule_but_those_that_it_names(store, lexical):
    explanations = explained_rules(store, lexical)
    assert [e.unit for e in explanations] == list(NEURONS)
    named = 0
    for e in explanations:
        words = shown_words(store, e.unit)
        left = [word for word in words if word not in e.rule.split()]
        named += len(words) - len(left)
        assert e.examples == tuple(left[:5])
        assert e.text == f"{', '.join(e.examples)} and other {e.rule}"
    assert named  # else nothing was tested of words that the rule names


def test_other_explainers_have_neither_rule_nor_examples(store, lexical):
    explain(store, ScriptedLlm(by_words), lexical, "excerpts")
    run = load_run(store)
    for e in list_explanations(store, run.id):
        assert (e.rule, e.examples, e.text_parts) == (None, None, ("whole",))
        assert list_predictions(store, [e.id], "rule") == []
    (explanation, *_) = unit_json(load_page(store, run, NEURONS[0]))["explanations"]
    assert {explanation[key] for key in ("rule", "rule_scores", "rule_predictions")} == {None}
    assert explanation["examples"] is None


@pytest.mark.parametrize("kind", [LexicalSimulator, DigitsSimulator])
def test_rule_and_whole_are_scored_on_the_same_records_each_against_its_own_kind(store, local, kind):
    run = load_run(store)
    scorer = kind(local) if kind is DigitsSimulator else kind(local, run.tokenizer_sha256)
    explained_rules(store, scorer)
    explanations = list_explanations(store, run.id)
    list(run_score(store, run, explanations, scorer, with_control=True))
    by_id = {e.id: e for e in explanations}
    whole, rule = (list_predictions(store, by_id, part) for part in ("whole", "rule"))
    assert len(whole) == len(rule) == len(NEURONS)
    for p, of_rule in zip(whole, rule, strict=True):
        e = by_id[p.explanation_id]
        assert [r.key for r in p.records] == [r.key for r in of_rule.records]
        assert (p.text, of_rule.text) == (e.text, e.rule)
        assert p.control_explanation_id == of_rule.control_explanation_id != e.id
        control = by_id[p.control_explanation_id]
        assert (p.control_text, of_rule.control_text) == (control.text, control.rule)
    for part, predictions in (("whole", whole), ("rule", rule)):
        for p in predictions:
            by_hand = score_by_hand(run, load_unit(store, run, p.unit), p, "report")
            assert population_scores(store, p.explanation_id, part, "report") == [pytest.approx(by_hand)]
    assert list(verify_run(store, run)) == []


def test_candidates_are_compared_by_their_rules(store, lexical):
    explained_rules(store, lexical, candidates=3)
    run = load_run(store)
    differs = 0
    for unit in NEURONS:
        candidates = list_explanations(store, run.id, unit)
        best = {}
        for part in ("whole", "rule"):
            values = [population_scores(store, e.id, part, "select")[0] for e in candidates]
            values = [-2 if value is None else value for value in values]
            best[part] = values.index(max(values))
        assert [e.chosen for e in candidates] == [i == best["rule"] for i in range(3)]
        differs += best["rule"] != best["whole"]
    assert differs  # else nothing was tested


def test_a_costly_scorer_predicts_the_whole_of_the_chosen_candidate_alone(store, local):
    explained_rules(store, DigitsSimulator(local), candidates=3)
    run = load_run(store)
    for e in list_explanations(store, run.id):
        assert len(list_predictions(store, [e.id], "rule")) == 1
        assert len(list_predictions(store, [e.id], "whole")) == e.chosen
    llm = ScriptedLlm(by_words)
    digits = DigitsSimulator(local)
    explain(store, llm, digits, "category", candidates=3)
    assert (llm.requests, digits.engine.usage.prompt_tokens) == ([], local.usage.prompt_tokens)
    assert list(verify_run(store, run)) == []


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "UPDATE rule_scores SET value = value + 1e-9",
            r"rule of explanation \d by lexical: the stored score",
        ),
        ("DELETE FROM rule_predictions", "scores of .* without their prediction"),
        (
            "UPDATE rule_scores SET unit = 7 WHERE id = 1",
            r"rule score 1 of explanation \d stands under another",
        ),
        ("UPDATE explanations SET rule = 'the'", "correlation_beyond_words"),
    ],
)
def test_verify_finds_damage_of_what_rules_have(store, lexical, tmp_path, sql, message):
    explained_rules(store, lexical)
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute(sql)
    connection.close()
    faults = "\n".join(verify_run(store, load_run(store)))
    assert re.search(message, faults), faults


def test_query_show_and_csv_tell_the_rule_first_with_its_score(store, lexical):
    explained_rules(store, lexical, seed=1)  # one rule is predicted alike everywhere
    run = load_run(store)
    rows = find_explanations(store, run, sort="unit")
    for row, record in zip(rows, query_json(rows), strict=True):
        page = load_page(store, run, row.unit)
        (e,) = page.explanations
        (own,) = [s.score.value for s in page.rule_scores if run.headline.is_of(s.score)]
        assert (row.rule, row.examples, row.rule_score) == (e.rule, e.examples, own)
        assert (record["rule"], record["rule_score"]) == (e.rule, own)
        (shown,) = unit_json(page)["explanations"]
        assert (shown["rule"], shown["examples"]) == (e.rule, list(e.examples))
        assert [s["value"] for s in shown["rule_scores"] if s["metric"] == "correlation"]
        assert {p["scorer"] for p in shown["rule_predictions"]} == {"lexical"}
        if own is None:
            assert rule_comparison(page, e) == "rule alone: the same prediction everywhere"
        else:
            gain = f"{row.score - own:+.2f}"
            assert rule_comparison(page, e) == f"rule alone {own:.2f}, examples add {gain}"
    assert {row.rule_score is None for row in rows} == {True, False}
    assert next(csv.DictReader(io.StringIO(query_csv(rows))))["rule"] == rows[0].rule


def test_rules_come_back_from_a_parquet_export(store, lexical, tmp_path):
    explained_rules(store, lexical)
    run = load_run(store)
    list(export_parquet(store, run, tmp_path / "exported"))
    with open_store(str(tmp_path / "y.db"), create=True) as back:
        list(import_parquet(back, tmp_path / "exported"))
        assert list(verify_run(back, load_run(back))) == []
        for unit in NEURONS:
            pages = [load_page(s, load_run(s), unit) for s in (store, back)]
            before, after = (without_ids(unit_json(page)["explanations"]) for page in pages)
            assert before == after


def without_ids(value):
    if isinstance(value, dict):
        left = {k: v for k, v in value.items() if k not in ("id", "control_explanation_id")}
        return {k: without_ids(v) for k, v in left.items()}
    return [without_ids(v) for v in value] if isinstance(value, list) else value
