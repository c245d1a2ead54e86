"""The simulator `digits`: prompts, whose rows are known by construction, and levels by a forward pass."""

import numpy as np
import pytest
import torch

from neuroexplain.errors import NeuroexplainError
from neuroexplain.llm.local import LocalEngine
from neuroexplain.llm.prompts import load_prompt
from neuroexplain.scorers.digits import TOKENS_PER_PROMPT, DigitsSimulator, find_level_words
from neuroexplain.scoring.side_evidence import Trial
from tests.fakes import WORDS, tiny_subject, tiny_tokenizer
from tests.tokens import HOSTILE, vocabulary_of


def test_no_token_moves_a_row(engine):
    digits = DigitsSimulator(engine)
    ids, rows = digits.build_prompt("rivers", range(len(HOSTILE)), vocabulary_of(HOSTILE))
    tab, mark = (
        engine.tokenizer(x, add_special_tokens=False).input_ids for x in ("\t", digits.level_words[0])
    )
    assert len(rows) == len(HOSTILE)
    for row in rows:
        assert ids[row + 1 - len(tab) : row + 1] == tab
        assert ids[row + 1 : row + 1 + len(mark)] == mark
    lines = engine.tokenizer.decode(ids[len(digits.build_prompt("rivers", [], {})[0]) :])
    assert lines.count("\t") == lines.count("\n") == len(rows)


def by_hand(engine, digits, explanation, token_ids, vocabulary):
    """(expected levels in 0..1, masses) against one forward pass of the whole model, softmax by hand."""
    ids, rows = digits.build_prompt(explanation, token_ids, vocabulary)
    with torch.inference_mode():
        probabilities = engine._model(torch.tensor([ids])).logits[0].double().softmax(-1).numpy()
    by_level = np.array(
        [[probabilities[row, spelled].sum() for spelled in digits.level_token_ids] for row in rows]
    )
    most = by_level.shape[1] - 1
    return by_level @ np.arange(most + 1) / by_level.sum(1) / most, by_level.sum(1)


def log_odds(share):
    """Not exactly: a share of 0 counts as one of 0.001."""
    return np.log((share + 1e-3) / (1 - share + 1e-3))


def raised(levels, neutral):
    ratio = np.maximum(0, log_odds(levels) - log_odds(neutral))
    return ratio * ratio / (ratio + 0.2)


def test_levels_are_those_of_the_exact_distributions_over_the_neutral_ones(engine):
    digits = DigitsSimulator(engine)
    vocabulary = vocabulary_of(["river", " ran", " past"])
    (levels, mass), (neutral, _) = (
        by_hand(engine, digits, x, [0, 1, 2], vocabulary) for x in ("rivers", None)
    )
    (predicted,) = digits.simulate("rivers", [[0, 1, 2]], vocabulary).trials
    np.testing.assert_allclose(predicted.detail, mass, rtol=1e-4)
    np.testing.assert_allclose(predicted.values, raised(levels, neutral), rtol=2e-2, atol=1e-4)
    assert (predicted.values > 0).any()
    neutral_prompt = digits._turns("")[-1].content.removeprefix("The neuron looks for: ")
    assert not digits.simulate(neutral_prompt, [[0, 1, 2]], vocabulary).trials[0].values.any()


def test_a_record_is_predicted_the_same_whatever_others_there_are(engine):
    """Two records of a crop and one of two crops are four prompts, and four neutral ones, asked for once."""
    digits = DigitsSimulator(engine)
    vocabulary = vocabulary_of([f" {word}" for word in WORDS])
    lengths = (TOKENS_PER_PROMPT, 2 * TOKENS_PER_PROMPT, TOKENS_PER_PROMPT)
    records = [
        [(3 * n + i * (n + 1)) % len(WORDS) for i in range(length)] for n, length in enumerate(lengths)
    ]
    sent = engine.usage.requests
    predictions = digits.simulate("rivers", records, vocabulary)
    assert engine.usage.requests == sent + 8
    trials = [Trial("top", rank, "report", 0, tuple(record)) for rank, record in enumerate(records)]
    planned = digits.plan("rivers", trials, vocabulary)
    assert predictions.prompt_tokens == sum(request.n_tokens for request in planned)
    again = digits.simulate("rivers", [records[2], records[1]], vocabulary)
    for n, trial in zip((2, 1), again.trials, strict=True):
        np.testing.assert_array_equal(trial.values, predictions.trials[n].values)
        np.testing.assert_array_equal(trial.detail, predictions.trials[n].detail)
    assert engine.usage.requests == sent + 11
    halves = [records[1][:TOKENS_PER_PROMPT], records[1][TOKENS_PER_PROMPT:]]
    of_halves = digits.simulate("rivers", halves, vocabulary).trials
    joined = np.concatenate([trial.values for trial in of_halves])
    np.testing.assert_array_equal(joined, predictions.trials[1].values)
    assert len(np.unique(joined)) > 2


def test_how_many_tokens_share_a_prompt_is_part_of_its_version(engine):
    prompt = DigitsSimulator(engine).prompt
    assert prompt.sha256 != load_prompt("simulate/digits").sha256
    assert prompt.text.endswith(f"### tokens in a prompt\n{TOKENS_PER_PROMPT}\n")


def test_where_no_level_was_given_nothing_is_predicted():
    class Cut:
        tokenizer = tiny_tokenizer()

        def level_distributions(self, ids, rows, level_token_ids, shared=0):
            probabilities = np.zeros((len(rows), len(level_token_ids)))
            probabilities[1:, 0] = 0.5
            probabilities[2, 9] = 0.1 if "rivers" in self.tokenizer.decode(ids) else 0.0
            return probabilities

    (predicted,) = (
        DigitsSimulator(Cut()).simulate("rivers", [[0, 1, 2]], vocabulary_of(["a", "b", "c"])).trials
    )
    assert np.isnan(predicted.values[0])
    assert predicted.values[1:].tolist() == pytest.approx([0, raised(1 / 6, 0)])
    assert predicted.detail.tolist() == pytest.approx([0, 0.5, 0.6])


def test_a_neutral_level_that_is_missing_takes_the_prediction_with_it():
    class Cut:
        tokenizer = tiny_tokenizer()

        def level_distributions(self, ids, rows, level_token_ids, shared=0):
            probabilities = np.full((len(rows), len(level_token_ids)), 0.05)
            if "rivers" not in self.tokenizer.decode(ids):
                probabilities[1] = 0.0
            return probabilities

    (predicted,) = DigitsSimulator(Cut()).simulate("rivers", [[0, 1]], vocabulary_of(["a", "b"])).trials
    assert np.isnan(predicted.values).tolist() == [False, True]
    assert predicted.detail.tolist() == pytest.approx([0.5, 0.0])


def test_what_prompts_share_is_computed_once_and_changes_nothing(engine):
    """Bit for bit the same whatever was asked before; next to the same as without sharing."""
    digits = DigitsSimulator(engine)
    vocabulary = vocabulary_of(["river", " ran", " past"])
    requests = [("rivers", [0, 1]), ("the sea", [2, 1, 0]), ("rivers", [2])]
    first = [digits.simulate(text, [ids], vocabulary).trials[0].values for text, ids in requests]
    n_fixed = len(engine._shared[0])
    assert n_fixed > 100
    cached = engine.usage.cached_tokens
    for (text, ids), levels in reversed(list(zip(requests, first, strict=True))):
        np.testing.assert_array_equal(digits.simulate(text, [ids], vocabulary).trials[0].values, levels)
    assert engine.usage.cached_tokens == cached + 3 * n_fixed
    token_ids, rows = digits.build_prompt(*requests[1], vocabulary)
    whole = engine.level_distributions(token_ids, rows, digits.level_token_ids)
    np.testing.assert_allclose(
        engine.level_distributions(token_ids, rows, digits.level_token_ids, n_fixed), whole, rtol=1e-4
    )
    with pytest.raises(ValueError, match="a row is among"):
        engine.level_distributions(token_ids, rows, digits.level_token_ids, rows[0] + 1)


@pytest.mark.parametrize("takes_system", [True, False])
def test_a_chat_template_without_a_system_turn_gets_its_text_in_the_next(engine, takes_system):
    """As Gemma 2's, which raises an error for it."""
    tokenizer = tiny_tokenizer()
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    tokenizer.chat_template = turns if takes_system else refuse + turns
    digits = DigitsSimulator(type("Engine", (), {"tokenizer": tokenizer}))
    ids, rows = digits.build_prompt("rivers", [0], vocabulary_of([" geese"]))
    text = tokenizer.decode(ids)
    assert text.startswith("<system>You predict" if takes_system else "<user>You predict")
    assert text.endswith("<user>The neuron looks for: rivers\n<assistant> geese\t0\n")
    assert text.count("You predict") == 1
    assert rows == [len(tokenizer(text[:-2]).input_ids) - 1]


def test_yes_and_no_are_asked_for_where_they_are_tokens_and_their_spellings_summed(tmp_path):
    folder = tiny_subject(tmp_path)
    tokenizer = LocalEngine(str(folder)).tokenizer
    assert find_level_words(tokenizer)[0] == tuple("0123456789")
    tokenizer.add_tokens(["no", "yes", " yes"])  # within the model's 330 rows
    tokenizer.save_pretrained(folder)
    engine = LocalEngine(str(folder))
    digits = DigitsSimulator(engine)
    assert digits.level_words == ("no", "yes")
    assert [len(ids) for ids in digits.level_token_ids] == [1, 2]
    vocabulary = vocabulary_of(["river", " ran"])
    text = tokenizer.decode(digits.build_prompt("rivers", [0], vocabulary)[0])
    assert "and yes or no: yes where" in text
    assert " red\tyes\n" in text
    assert text.endswith("river\tno\n")
    (levels, mass), (neutral, _) = (by_hand(engine, digits, x, [0, 1], vocabulary) for x in ("rivers", None))
    (predicted,) = digits.simulate("rivers", [[0, 1]], vocabulary).trials
    np.testing.assert_allclose(predicted.detail, mass, rtol=1e-4)
    np.testing.assert_allclose(predicted.values, raised(levels, neutral), rtol=2e-2, atol=1e-4)


def test_a_tokenizer_without_single_tokens_for_either_is_refused():
    def split(text, **_):
        return type("Encoding", (), {"input_ids": list(text.encode()) * 2})

    with pytest.raises(NeuroexplainError, match="--simulator lexical"):
        find_level_words(split)


def test_the_neutral_prompt_of_records_that_all_units_share_is_sent_once(engine):
    vocabulary = vocabulary_of([" river", " sea", " stone", " the"])
    digits = DigitsSimulator(engine)

    def trials_of(unit):
        own = [Trial("sampled", n, "report", 0, (unit, n % 4) * 16) for n in range(3)]
        return [own[0], *(Trial("random", n, "report", 0, (n % 4,) * 31 + (2,)) for n in range(4)), *own[1:]]

    first, second = (digits.run("rivers", trials_of(unit), vocabulary) for unit in (0, 1))
    planned = [digits.plan("rivers", trials_of(unit), vocabulary) for unit in (0, 1)]
    keys = {request.key for request in planned[0]}
    new = [request for request in planned[1] if request.key is None or request.key not in keys]
    assert first.prompt_tokens == sum(request.n_tokens for request in planned[0])
    assert second.prompt_tokens == sum(request.n_tokens for request in new)
    assert len(planned[1]) == 14
    assert len(new) == 10
