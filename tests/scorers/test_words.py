"""The simulator `words`: its questions, its values by hand, and what is asked once."""

import threading

import numpy as np
import pytest

from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import VocabularyEntry
from neuroexplain.llm.engine import Message, chat_text, chat_token_ids
from neuroexplain.scorers._questions import LEAST, TEXT_PLACE, WordQuestions, find_answer_ids, log_odds
from neuroexplain.scorers.words import SCORER, WordsSimulator, words_of_record
from neuroexplain.scoring.side_evidence import Trial
from tests.fakes import WORDS, tiny_tokenizer
from tests.tokens import HOSTILE, vocabulary_of


class Answering:
    """Says yes with the given probability for each word of a question; counts what it is asked."""

    in_flight = 1

    def __init__(self, yes, tokenizer=None):
        self.tokenizer = tokenizer or tiny_tokenizer()
        self._yes, self.asked = yes, []

    def next_distributions(self, prompts, level_token_ids, shared=0, *, exact=False):
        assert len({tuple(prompt[:shared]) for prompt in prompts}) == 1
        assert all(len(prompt) > shared for prompt in prompts)
        texts = [self.tokenizer.decode(prompt) for prompt in prompts]
        self.asked += texts
        yes = np.array([self._yes(text) for text in texts])
        return np.stack([(1 - yes) * 0.9, yes * 0.9], axis=1)


def test_a_value_is_how_much_the_explanation_raises_the_odds_of_yes():
    def yes(text):
        own = "river" in text.split("belongs to")[1].split(".")[0]
        return 0.8 if own and text.endswith("Word: mill") else 0.1 if own else 0.4

    vocabulary = vocabulary_of([" mill", "\n", " geese"])
    simulator = WordsSimulator(Answering(yes))
    (trial,) = simulator.simulate("rivers", [[0, 1, 2, 0]], vocabulary).trials
    raised = np.log(0.72 + LEAST) - np.log(0.18 + LEAST) - np.log(0.36 + LEAST) + np.log(0.54 + LEAST)
    assert trial.values.tolist() == pytest.approx([raised**2, 0, 0, raised**2], rel=1e-5)


def test_each_word_is_asked_for_once_with_each_explanation():
    engine = Answering(lambda text: 0.3)
    simulator = WordsSimulator(engine)
    vocabulary = vocabulary_of([" mill", "ed", " geese", " Geese"])
    first = simulator.simulate("rivers", [[0, 1, 2], [0, 1], [2, 2]], vocabulary)
    assert len(engine.asked) == len(set(engine.asked)) == 2 * 5  # "milled" and "geese", four neutral ones
    assert first.prompt_tokens == sum(len(engine.tokenizer(text).input_ids) for text in engine.asked)
    assert simulator.simulate("rivers", [[2, 0, 1]], vocabulary).prompt_tokens == 0
    simulator.simulate("the sea", [[0, 1, 3]], vocabulary)
    assert len(engine.asked) == 10 + 2 + 4  # the neutral ones of "Geese" alone


def test_the_plan_is_what_is_sent(engine):
    vocabulary = vocabulary_of([" mill", " geese", "ed", "\n"])
    trials = [Trial("random", n, "report", 0, ids) for n, ids in enumerate([(0, 2, 3), (1, 0)])]
    simulator = WordsSimulator(engine)
    for explanation in ("rivers", "the sea", "rivers"):
        before = engine.usage.snapshot()
        planned = {
            request.key: request.n_tokens for request in simulator.plan(explanation, trials, vocabulary)
        }
        predictions = simulator.run(explanation, trials, vocabulary)
        assert predictions.prompt_tokens == engine.usage.prompt_tokens - before.prompt_tokens
        if before.requests == 0:
            assert (len(planned), sum(planned.values())) == (engine.usage.requests, predictions.prompt_tokens)


def test_values_do_not_depend_on_what_else_is_asked(engine):
    texts = [*WORDS, *HOSTILE]
    vocabulary = vocabulary_of(texts)
    ids = list(range(len(texts)))
    together = WordsSimulator(engine).simulate("rivers", [[i] for i in ids], vocabulary).trials
    for i in ids[::5]:
        (alone,) = WordsSimulator(engine).simulate("rivers", [[i]], vocabulary).trials
        np.testing.assert_array_equal(alone.values, together[i].values)
    assert np.isfinite([trial.values for trial in together]).all()
    assert any(trial.values.any() for trial in together)


def test_white_space_and_special_tokens_get_nothing_and_are_not_asked_for():
    engine = Answering(lambda text: 0.9)
    vocabulary = {0: VocabularyEntry(0, " \n", False), 1: VocabularyEntry(1, "</s>", True)}
    (trial,) = WordsSimulator(engine).simulate("rivers", [[0, 1]], vocabulary).trials
    assert trial.values.tolist() == [0, 0]
    assert words_of_record([0, 1], vocabulary) == ["", ""]
    assert not engine.asked


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("text", ["names of {{word}}", "a\nb", f"a{TEXT_PLACE}b", "<|im_end|>", "😀"])
def test_a_question_is_the_chat_with_the_word_in_its_place(template, text):
    """Token by token: the part before the word is that of every word, and a hostile text stays text."""
    tokenizer = tiny_tokenizer()
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[answer]"
        )
    engine = Answering(lambda question: 0.5, tokenizer)
    questions = WordQuestions(engine, WordsSimulator(engine).prompt)
    prompt = tokenizer.decode(questions.build_prompts(text, ["mill"])[0])
    assert prompt.count("mill") == 1
    assert TEXT_PLACE not in prompt
    assert prompt.rstrip().endswith("[answer]" if template else "Word: mill")
    if text == "names of {{word}}":
        turn = f"For each word say whether it belongs to: {text}. Answer yes or no.\nWord: mill"
        whole = chat_token_ids(tokenizer, [Message("user", turn)])
        assert tokenizer.decode(whole) == prompt
        assert (
            prompt.strip()
            == tokenizer.decode(tokenizer(chat_text(tokenizer, [Message("user", turn)])).input_ids).strip()
        )


def test_where_the_engine_gives_neither_answer_nothing_is_predicted():
    class Silent(Answering):
        def next_distributions(self, prompts, level_token_ids, shared=0, *, exact=False):
            return super().next_distributions(prompts, level_token_ids, shared) * [
                ["mill" not in self.tokenizer.decode(prompt)] for prompt in prompts
            ]

    simulator = WordsSimulator(Silent(lambda text: 0.5))
    (trial,) = simulator.simulate("rivers", [[0, 1]], vocabulary_of([" mill", " geese"])).trials
    assert np.isnan(trial.values).tolist() == [True, False]


def test_log_odds_by_hand():
    odds = log_odds(np.array([[0.25, 0.75], [0.0, 0.0], [0.0, 0.5]]))
    assert odds[0] == pytest.approx(np.log(3), abs=1e-5)
    assert np.isnan(odds[1])
    assert odds[2] == pytest.approx(np.log(0.5 / LEAST), abs=1e-4)
    with pytest.raises(LlmReplyError, match="not finite"):
        log_odds(np.array([[np.nan, 0.5]]))


class Spelling:
    """A tokenizer of whole texts, of letters, or of one id for everything."""

    def __init__(self, encode):
        self._encode = encode

    def __call__(self, text, add_special_tokens=True):
        return type("Encoded", (), {"input_ids": self._encode(text)})


def test_answers_are_single_tokens_or_else_first_ones():
    names = ["no", "No", " no", " No", "yes", "Yes", " yes", " Yes"]
    assert find_answer_ids(Spelling(lambda text: [names.index(text)])) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    only_lower = Spelling(lambda text: [names.index(text)] if text in ("no", " yes") else [9, 9])
    assert find_answer_ids(only_lower) == [[0], [6]]
    letters = Spelling(lambda text: list(map(ord, text)))
    assert find_answer_ids(letters) == [[ord("N"), ord("n")], [ord("Y"), ord("y")]]
    with pytest.raises(NeuroexplainError, match="yes from no"):
        find_answer_ids(Spelling(lambda text: [7] * len(text)))


def test_many_threads_ask_for_each_word_once():
    started = threading.Barrier(8)
    lock = threading.Lock()

    def yes(text):
        with lock:
            return 0.3

    engine = Answering(yes)
    simulator = WordsSimulator(engine)
    vocabulary = vocabulary_of(WORDS)
    results = {}

    def work(n):
        started.wait()
        record = [[(n + i) % len(WORDS) for i in range(len(WORDS))]]
        results[n] = simulator.simulate("rivers", record, vocabulary).trials[0].values

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(engine.asked) == len(set(engine.asked))


def test_it_asks_a_model_for_each_record():
    assert SCORER.asks_per_record
    assert SCORER.needs == "distributions"
    assert isinstance(SCORER.open(Answering(lambda text: 0.5), None), WordsSimulator)
