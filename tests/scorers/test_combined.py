"""The simulator `combined`: the sum of what `lexical` and `words` are made of."""

import numpy as np

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.prompts import load_prompt
from neuroexplain.scorers._likelihood import LikelihoodRatios
from neuroexplain.scorers._questions import WordQuestions
from neuroexplain.scorers.combined import NOISE, RULE, WEIGHT, CombinedSimulator
from neuroexplain.scoring.side_evidence import Trial
from tests.fakes import WORDS
from tests.tokens import HOSTILE, vocabulary_of


def test_a_value_is_what_the_sum_has_above_the_noise(engine):
    texts = [*(f" {word}" for word in WORDS), *HOSTILE]
    vocabulary = {**vocabulary_of(texts), 500: VocabularyEntry(500, "</s>", True)}
    record = [*range(len(texts)), 500]
    (trial,) = CombinedSimulator(engine, "another").simulate("rivers", [record], vocabulary).trials
    likelihood = LikelihoodRatios(engine, load_prompt("simulate/lexical"), "another")
    questions = WordQuestions(engine, load_prompt("simulate/words"))
    for place in range(len(WORDS)):
        (ratio,), _ = likelihood.ratios("rivers", [vocabulary[place]])
        (raised,), _ = questions.raised_odds("rivers", [WORDS[place]])
        expected = max(0.0, ratio + WEIGHT * raised - NOISE)
        np.testing.assert_allclose(trial.values[place], expected, rtol=1e-4, atol=1e-9)
    assert np.isfinite(trial.values).all()
    assert trial.values[-1] == trial.values[texts.index("\n")] == 0
    assert len(set(trial.values.tolist())) > 3


def test_the_plan_and_the_prompt_are_of_both(engine):
    vocabulary = vocabulary_of([f" {word}" for word in WORDS])
    trials = [Trial("random", 0, "report", 0, (0, 1, 2))]
    simulator = CombinedSimulator(engine, "another")
    before = engine.usage.snapshot()
    planned = {request.key: request.n_tokens for request in simulator.plan("geese", trials, vocabulary)}
    predictions = simulator.run("geese", trials, vocabulary)
    assert sum(planned.values()) == predictions.prompt_tokens
    assert engine.usage.prompt_tokens - before.prompt_tokens > predictions.prompt_tokens  # phrasings, here
    texts = [load_prompt(f"simulate/{name}").text for name in ("words", "lexical")]
    assert simulator.prompt.text == "".join([*texts, RULE])
    assert (
        "max(0, ratio + 2.0 * raised - 1.5)" in RULE
    )  # a changed rule is a changed prompt, so nothing is mixed
