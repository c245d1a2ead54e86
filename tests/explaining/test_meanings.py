"""Several meanings in one answer."""

import numpy as np
import pytest

from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import Exemplar
from neuroexplain.explaining.replies import parse_meanings
from neuroexplain.explaining.verify import verify_run
from neuroexplain.store.explanations import list_explanations, list_predictions
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import load_unit
from neuroexplain.units import UnitId
from tests.explaining.explained import NEURONS, by_words, explain
from tests.fakes import ScriptedLlm


def test_several_meanings_are_stored_with_what_they_cover_and_their_union(store, scorer):
    llm = ScriptedLlm(
        lambda messages, sampling: "old mills | 1, 3\n2. sleeping geese | 2\n- money | 1, 4, 5\nmore | 1"
    )
    explain(store, llm, scorer, "meanings")
    run = load_run(store)
    assert len(llm.requests) == len(NEURONS)
    for neuron in NEURONS:
        of_neuron = list_explanations(store, run.id, neuron)
        assert [e.text for e in of_neuron] == [
            "old mills",
            "sleeping geese",
            "money",
            "old mills; or sleeping geese; or money",
        ]
        exemplars = load_unit(store, run, neuron).exemplars
        explained = [x.rank for x in exemplars if x.kind == "top" and x.split == "explain"]
        assert len(explained) >= 5
        assert of_neuron[0].covers == (explained[0], explained[2])
        assert of_neuron[3].covers == tuple(explained[:5])
        assert sum(e.provenance.prompt_tokens for e in of_neuron) == llm.prompt_tokens
        assert sum(e.chosen for e in of_neuron) == 1
        *parts, union = (list_predictions(store, [e.id])[0] for e in of_neuron)
        for r in union.records:
            same = [p for s in parts for p in s.records if (p.kind, p.rank) == (r.kind, r.rank)]
            if len(same) == 3:
                greatest = np.max([p.values for p in same], axis=0)
                np.testing.assert_array_equal(r.values, greatest)
        assert union.records
    assert list(verify_run(store, run)) == []
    nothing = ScriptedLlm(by_words)
    explain(store, nothing, scorer, "meanings")
    assert nothing.requests == []


def test_meanings_that_were_not_simulated_are_the_next_time(store, scorer):
    """Every hypothesis of an answer is known again, and one of them is chosen."""
    llm = ScriptedLlm(lambda messages, sampling: "old mills | 1, 3\nsleeping geese | 2\nmoney | 1, 4, 5")
    explain(store, llm, None, "meanings")
    explain(store, llm, scorer, "meanings")
    assert len(llm.requests) == len(NEURONS)
    for neuron in NEURONS:
        of_neuron = list_explanations(store, 1, neuron)
        assert (len(of_neuron), sum(e.chosen for e in of_neuron)) == (4, 1)
        assert all(list_predictions(store, [e.id]) for e in of_neuron)


def test_a_line_of_white_space_takes_no_time_and_a_number_has_an_end():
    for reply in (
        "words | x\n" + " " * 100_000 + "x",
        "words | " + "9" * 5_000,
        "words | " + "1," * 50_000 + "x",
    ):
        with pytest.raises(LlmReplyError, match="no line is of the form"):
            parse_meanings(reply, [])


@pytest.mark.parametrize(
    "reply",
    ["", "rivers", "rivers | ", "rivers | 0", "rivers | 1, 11", "| 1", "<think>rivers | 1", "I cannot | 1"],
)
def test_what_does_not_name_meanings_is_a_failed_attempt(reply):
    records = [
        Exemplar(UnitId(0, 0), "top", rank, 0, 0, 0, 0, 1.0, np.zeros(64), np.zeros(64)) for rank in range(10)
    ]
    with pytest.raises(LlmReplyError) as failed:
        parse_meanings(reply, records)
    assert (failed.value.status, failed.value.reply) == ("parse_error", reply)
