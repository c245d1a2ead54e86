"""The simulator `lexical`: likelihood ratios against sums by hand."""

import numpy as np
import pytest

from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.prompts import load_prompt
from neuroexplain.scorers._likelihood import mean_log_ratios
from neuroexplain.scorers.lexical import LexicalSimulator
from neuroexplain.scoring.side_evidence import Trial
from tests.fakes import WORDS
from tests.tokens import HOSTILE, vocabulary_of


def test_lexical_gives_nothing_to_white_space_special_tokens_and_parts_of_characters(engine):
    texts = [" ", "\n", "\ufffd", "</s>", *WORDS]
    vocabulary = {i: VocabularyEntry(i, text, text == "</s>") for i, text in enumerate(texts)}
    scorer = LexicalSimulator(engine, "another tokenizer")
    predicted = [
        scorer.simulate(text, [range(len(texts))], vocabulary).trials[0].values
        for text in ("the old mill", "rivers", "a moon")
    ]
    assert not any(levels[:4].any() for levels in predicted)
    assert any(levels[4:].any() for levels in predicted)


def test_lexical_is_the_ratio_to_other_lists_over_the_spellings_of_a_word(engine):
    """Against sums by hand: `river` is one token with and without a space, and its capital is none."""
    scorer = LexicalSimulator(engine, "another tokenizer")
    prompt = load_prompt("simulate/lexical")
    *phrasings, others = [turn.content for turn in prompt.fill({"explanation": "the old mill"})]
    assert all("the old mill" in phrasing for phrasing in phrasings)
    assert "the old mill" not in others
    encoded = [engine.tokenizer(text, add_special_tokens=False).input_ids for text in ("river", " river")]
    spelled = {ids[0] for ids in encoded if len(ids) == 1}
    assert spelled

    def probability(text):
        probabilities = np.exp(engine.next_token_logprobs(engine.tokenizer(text).input_ids))
        return sum(probabilities[i] for i in spelled | {encoded[0][0]})

    ratios = []
    for phrasing in phrasings:
        elsewhere = [probability(phrasing.replace("the old mill", other)) for other in others.splitlines()]
        ratios.append(np.log(probability(phrasing) / np.mean(elsewhere)))
    assert len(ratios) == 3
    expected = max(0.0, np.mean(ratios)) ** 2
    values = scorer.simulate("the old mill", [[3]], {3: VocabularyEntry(3, "river", False)}).trials[0].values
    assert values[0] == pytest.approx(expected, rel=1e-4)


def test_lexical_reads_the_text_of_a_token_not_its_id(engine):
    """Vocabularies of two runs number their tokens differently."""
    scorer = LexicalSimulator(engine, "another tokenizer")
    texts = ("river", "geese", " mill", "money")
    ratios, backwards = (
        scorer.likelihood.ratios("a moon", list(vocabulary_of(order).values()))[0]
        for order in (texts, texts[::-1])
    )
    assert len(set(ratios.tolist())) > 1
    assert backwards.tolist() == ratios.tolist()[::-1]


@pytest.mark.parametrize(
    ("p", "q", "value"),
    [
        ([0.2, 0.1], [0.1, 0.1], np.log(2) / 2),
        ([0.4, 0.1], [0.1, 0.4], 0.0),
        ([0.0], [0.0], 0.0),
        ([0.1], [0.2], -np.log(2)),
    ],
)
def test_the_ratio_is_the_mean_of_logarithms(p, q, value):
    assert mean_log_ratios(np.array([p]), np.array([q])) == pytest.approx([value], abs=1e-9)


def test_lexical_values_do_not_depend_on_ids_or_neighbours(engine):
    scorer = LexicalSimulator(engine, "another tokenizer")
    texts = [" mill", "Mill", "geese", "money", "\n"]
    value_of = {
        text: scorer.simulate("rivers", [[i]], vocabulary_of(texts)).trials[0].values[0]
        for i, text in enumerate(texts)
    }
    order = [3, 0, 4, 2, 1, 0]
    moved = {90 + i: VocabularyEntry(90 + i, text, False) for i, text in enumerate(texts)}
    values = scorer.simulate("rivers", [[90 + i for i in order]], moved).trials[0].values
    assert values.tolist() == [value_of[texts[i]] for i in order]


class OnlyChosen:
    """An engine that gives chosen tokens, at most 128 at once, as a server does."""

    in_flight = 1

    def __init__(self, engine):
        self.engine, self.tokenizer, self.n_requests = engine, engine.tokenizer, 0

    def next_distributions(self, prompts, level_token_ids, shared=0, *, exact=False):
        assert exact
        assert len(level_token_ids) <= 128
        self.n_requests += len(prompts)
        return self.engine.next_distributions(prompts, level_token_ids)


def test_a_server_is_asked_for_the_spellings_that_are_needed_and_gives_the_same_values(engine):
    vocabulary = vocabulary_of([*WORDS, *(f" {word}" for word in WORDS), *HOSTILE])
    record = list(range(len(vocabulary)))
    served = OnlyChosen(engine)
    local, remote = (LexicalSimulator(x, "another tokenizer") for x in (engine, served))
    for explanation in ("the old mill", "rivers"):
        before = served.n_requests
        trials = [Trial("random", 0, "report", 0, tuple(record))]
        planned = {request.key for request in remote.plan(explanation, trials, vocabulary)}
        expected = local.simulate(explanation, [record], vocabulary).trials[0].values
        predictions = remote.simulate(explanation, [record], vocabulary)
        np.testing.assert_allclose(predictions.trials[0].values, expected, rtol=1e-3, atol=1e-6)
        assert predictions.prompt_tokens > 0
        if before == 0:
            assert served.n_requests == len(planned)
        n = served.n_requests
        assert remote.simulate(explanation, [record[::2]], vocabulary).prompt_tokens == 0
        assert served.n_requests == n
    assert local.plan("rivers", [], vocabulary) == []
