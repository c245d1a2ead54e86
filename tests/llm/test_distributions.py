"""Answers of each way, in the shapes that vLLM 0.32 gives, against numbers that are known."""

import base64
import io
import json

import numpy as np
import pytest

from neuroexplain.llm.distributions import NEUTRAL, AtNext, AtRows, Question, TopOfPrompt, sum_levels

QUESTION = Question([5, 7, 8, 9], [0, 2], [[1, 2], [3]])  # two rows, two levels, one of two spellings
LOGPROBS = np.log([[0.2, 0.3, 0.1], [0.05, 0.05, 0.4]])
LEVELS = [[0.5, 0.1], [0.1, 0.4]]


def npy(array):
    file = io.BytesIO()
    np.save(file, array.astype(np.float32), allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode()


def rows_answer(array):
    return {"choices": [], "prompt_token_id_logprobs": None if array is None else npy(array)}


def next_answer(logprobs, ids=(1, 2, 3)):
    """What /v1/completions gave for two prompts, with the sampled token 99 first."""
    return {
        "choices": [
            {
                "index": n,
                "text": "x",
                "logprobs": {
                    "tokens": ["token_id:99"],
                    "token_logprobs": [-2.0],
                    "top_logprobs": [
                        {"token_id:99": -2.0, **{f"token_id:{i}": x for i, x in zip(ids, row, strict=True)}}
                    ],
                },
            }
            for n, row in enumerate(logprobs)
        ]
    }


def top_answer(*entries):
    def shown(entry):
        return entry and {str(i): {"logprob": x, "rank": 1, "decoded_token": "x"} for i, x in entry.items()}

    return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": [shown(entry) for entry in entries]}]}


def read(way, answer, question=QUESTION):
    return way.read(way.decoder.decode(json.dumps(answer)), question)


def test_scored_rows_are_those_asked_for():
    scores = np.full((3, 3), -np.inf)
    scores[[0, 2]] = LOGPROBS
    np.testing.assert_allclose(read(AtRows(), rows_answer(scores)), LEVELS, rtol=1e-6)
    asked = AtRows().asked(QUESTION)
    assert asked["token_ids"] == [5, 7, 8, 9]
    sampling = asked["sampling_params"]
    assert sampling["prompt_logprob_token_ids"] == [[1, 2, 3], [], [1, 2, 3]]  # prompt_len - 1 - start rows
    assert (sampling["prompt_logprob_start"], sampling["skip_reading_prefix_cache"]) == (0, False)


def test_cut_prompts_are_asked_together_and_read_in_their_order():
    np.testing.assert_allclose(read(AtNext(), next_answer(LOGPROBS)), LEVELS)
    asked = AtNext().asked(QUESTION)
    assert (asked["prompt"], asked["logprob_token_ids"]) == ([[5], [5, 7, 8]], [1, 2, 3])
    assert AtNext().n_prompt_tokens(QUESTION) == 4
    assert {name: asked[name] for name in NEUTRAL} == NEUTRAL


def test_spellings_of_a_level_are_summed_and_the_cut_is_seen():
    found = top_answer(
        None,
        {7: -1.0, 1: np.log(0.2), 2: np.log(0.3), 3: np.log(0.1)},
        {8: -1.0, 4: -3.0},
        {9: -0.1, 4: -3.0},
    )
    np.testing.assert_allclose(read(TopOfPrompt(2), found), [[0.5, 0.1], [0, 0]])


@pytest.mark.parametrize(
    ("way", "answer", "said"),
    [
        (AtRows(), rows_answer(None), "no prompt_token_id_logprobs"),
        (AtRows(), rows_answer(np.zeros((2, 3))), "shape"),
        (AtRows(), rows_answer(np.zeros((3, 2))), "shape"),
        (AtRows(), {"prompt_token_id_logprobs": "AAAA"}, "array|pickle|magic"),
        (AtRows(), {"prompt_token_id_logprobs": npy(np.zeros((3, 3)))[:80]}, "array|header|EOF|magic"),
        (AtRows(), {"prompt_token_id_logprobs": "?"}, "base64|alphabet"),
        (AtRows(), rows_answer(np.full((3, 3), np.nan)), "no log-probability"),
        (AtRows(), rows_answer(np.full((3, 3), -0.1)), "add up"),
        (AtNext(), next_answer(LOGPROBS[:1]), "1 choices for 2"),
        (AtNext(), next_answer(LOGPROBS, ids=(1, 2, 4)), "token_id:3"),
        (AtNext(), {"choices": next_answer(LOGPROBS)["choices"][::-1]}, "another order"),
        (AtNext(), next_answer([[-1, -1, 0.7], [-1, -1, -1]]), "no log-probability"),
        (TopOfPrompt(1), top_answer(None, {7: -1.0}, {8: -1.0}), "3 entries for 4 tokens"),
        (TopOfPrompt(1), top_answer(None, None, {8: -1.0}, {9: -1.0}), "entry 1"),
        (TopOfPrompt(1), top_answer(None, {8: -1.0}, {7: -1.0}, {9: -1.0}), "shifted"),
        (TopOfPrompt(1), top_answer({7: -1.0}, {8: -1.0}, {9: -1.0}, None), "shifted"),
        (TopOfPrompt(2), top_answer(None, {7: -1.0}, {8: -1.0}, {9: -1.0}), "1 tokens for 2"),
        (TopOfPrompt(1), top_answer(None, {7: -1.0, 1: 0.7}, {8: -1.0}, {9: -1.0}), "no log-probability"),
    ],
)
def test_an_answer_that_does_not_fit_the_question_is_refused(way, answer, said):
    with pytest.raises(ValueError, match=said):
        read(way, answer)


def test_more_than_all_probability_is_refused():
    with pytest.raises(ValueError, match="add up"):
        sum_levels(np.log([[0.6, 0.6]]), [[1], [2]])
    np.testing.assert_allclose(sum_levels(np.array([[-9999.0, 0.0, -np.inf]]), [[1, 2], [3]]), [[1, 0]])


def _encoded(data):
    return {"choices": [], "prompt_token_id_logprobs": base64.b64encode(data).decode()}


def test_what_is_no_array_of_numbers_is_refused():
    npz = io.BytesIO()
    np.savez(npz, LOGPROBS)
    whole = base64.b64decode(npy(np.zeros((3, 3))))
    huge = whole.replace(b"(3, 3)", b"(9999999, 9999999)").replace(b" " * 12 + b"\n", b"\n")
    words = io.BytesIO()
    np.save(words, np.full((3, 3), "-1.0"))
    for data in (
        b"PK\x03\x04" + b"x" * 50,
        npz.getvalue(),
        whole[:40],
        whole[:-3],
        huge,
        words.getvalue(),
        b"",
    ):
        with pytest.raises(ValueError, match="prompt_token_id_logprobs"):
            read(AtRows(), _encoded(data))
    none = np.full((3, 3), -np.inf)
    with pytest.raises(ValueError, match="shifted"):
        read(AtRows(), rows_answer(none))
