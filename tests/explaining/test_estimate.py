"""A dry run says what the run then asks."""

from itertools import pairwise

import pytest

from neuroexplain.config import ExplainConfig
from neuroexplain.explaining.estimate import estimate_explain
from neuroexplain.explaining.run import run_explain
from neuroexplain.llm.engine import chat_token_ids
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.store.runs import list_sessions, load_run
from tests.explaining.explained import NEURONS, by_words, explain
from tests.fakes import ScriptedLlm


def test_progress_only_grows(store, local):
    events = run_explain(
        store,
        load_run(store),
        ExplainConfig(NEURONS, "excerpts"),
        ScriptedLlm(by_words),
        DigitsSimulator(local),
    )
    done = [event.done for event in events if event.stage == "explaining"]
    assert all(a <= b for a, b in pairwise(done))
    assert done[-1] == len(NEURONS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_control": True},
        {"candidates": 3},
        {"candidates": 3, "with_control": True},
        {"explainer": "tokens"},
        "some are there",
    ],
)
def test_an_estimate_says_what_the_run_then_asks(store, local, options):
    """All neurons are in the sample. The last: two candidates are stored, and simulated for half of the
    neurons. If a third one is then chosen, its report records are simulated, which no estimate can know.
    """
    run, llm = load_run(store), ScriptedLlm(by_words)
    llm.tokenizer = local.tokenizer
    with_control = options != "some are there" and options.get("with_control", False)
    unknown = 0.1 if options == "some are there" else 0.0  # the share of one neuron's report records
    if options == "some are there":
        explain(store, llm, None, candidates=2)
        list(
            run_explain(
                store, run, ExplainConfig(NEURONS[:2], "excerpts", candidates=2), llm, DigitsSimulator(local)
            )
        )
        options = {"candidates": 3}
    named = {"explainer": "excerpts"} | {
        name: value for name, value in options.items() if name != "with_control"
    }
    config = ExplainConfig(NEURONS, **named)
    engine = llm if config.asks_llm else None
    estimate = estimate_explain(store, run, config, engine, DigitsSimulator(local), with_control=with_control)
    before, n_asked = local.usage.requests, len(llm.requests)
    list(run_explain(store, run, config, engine, DigitsSimulator(local), with_control=with_control))
    n_sent = local.usage.requests - before + len(llm.requests) - n_asked
    assert estimate.n_requests == pytest.approx(n_sent, rel=unknown)
    explaining = sum(len(chat_token_ids(local.tokenizer, messages)) for messages, _ in llm.requests[n_asked:])
    sent = list_sessions(store, run.id)[-1].scorer_prompt_tokens + explaining
    assert estimate.n_prompt_tokens == pytest.approx(sent, rel=0.05 + unknown)  # texts of other lengths
