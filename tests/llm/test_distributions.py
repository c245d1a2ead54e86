"""Answers to each log-probability method, in the shapes of vLLM 0.32, against known numbers."""

import base64
import io
import json

import numpy as np
import pytest

from neuroexplain.llm.distributions import (
    NEUTRAL_SAMPLING,
    LogprobRequest,
    LogprobTokenIds,
    PromptLogprobs,
    PromptLogprobTokenIds,
    sum_levels,
)

REQUEST = LogprobRequest(
    [5, 7, 8, 9], [0, 2], [[1, 2], [3]]
)  # two rows; two levels, the first with two spellings
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
    def as_json(entry):
        return entry and {str(i): {"logprob": x, "rank": 1, "decoded_token": "x"} for i, x in entry.items()}

    return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": [as_json(entry) for entry in entries]}]}


def read(method, answer):
    return method.read(method.decoder.decode(json.dumps(answer)), REQUEST)


def test_scored_rows_are_the_requested_ones():
    scores = np.full((3, 3), -np.inf)
    scores[[0, 2]] = LOGPROBS
    np.testing.assert_allclose(read(PromptLogprobTokenIds(), rows_answer(scores)), LEVELS, rtol=1e-6)
    body = PromptLogprobTokenIds().body(REQUEST)
    assert body["token_ids"] == [5, 7, 8, 9]
    sampling = body["sampling_params"]
    assert sampling["prompt_logprob_token_ids"] == [[1, 2, 3], [], [1, 2, 3]]  # prompt_len - 1 - start rows
    assert (sampling["prompt_logprob_start"], sampling["skip_reading_prefix_cache"]) == (0, False)


def test_cut_prompts_are_sent_together_and_read_in_their_order():
    np.testing.assert_allclose(read(LogprobTokenIds(), next_answer(LOGPROBS)), LEVELS)
    body = LogprobTokenIds().body(REQUEST)
    assert (body["prompt"], body["logprob_token_ids"]) == ([[5], [5, 7, 8]], [1, 2, 3])
    assert LogprobTokenIds().n_prompt_tokens(REQUEST) == 4
    assert {name: body[name] for name in NEUTRAL_SAMPLING} == NEUTRAL_SAMPLING


def test_spellings_of_a_level_are_summed_and_the_cut_is_seen():
    answer = top_answer(
        None,
        {7: -1.0, 1: np.log(0.2), 2: np.log(0.3), 3: np.log(0.1)},
        {8: -1.0, 4: -3.0},
        {9: -0.1, 4: -3.0},
    )
    np.testing.assert_allclose(read(PromptLogprobs(2), answer), [[0.5, 0.1], [0, 0]])


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        (PromptLogprobTokenIds(), rows_answer(None), "no prompt_token_id_logprobs"),
        (PromptLogprobTokenIds(), rows_answer(np.zeros((2, 3))), "shape"),
        (PromptLogprobTokenIds(), rows_answer(np.zeros((3, 2))), "shape"),
        (PromptLogprobTokenIds(), {"prompt_token_id_logprobs": "AAAA"}, "array|pickle|magic"),
        (
            PromptLogprobTokenIds(),
            {"prompt_token_id_logprobs": npy(np.zeros((3, 3)))[:80]},
            "array|header|EOF|magic",
        ),
        (PromptLogprobTokenIds(), {"prompt_token_id_logprobs": "?"}, "base64|alphabet"),
        (PromptLogprobTokenIds(), rows_answer(np.full((3, 3), np.nan)), "no log-probability"),
        (PromptLogprobTokenIds(), rows_answer(np.full((3, 3), -0.1)), "add up"),
        (LogprobTokenIds(), next_answer(LOGPROBS[:1]), "1 choices for 2"),
        (LogprobTokenIds(), next_answer(LOGPROBS, ids=(1, 2, 4)), "token_id:3"),
        (LogprobTokenIds(), {"choices": next_answer(LOGPROBS)["choices"][::-1]}, "another order"),
        (LogprobTokenIds(), next_answer([[-1, -1, 0.7], [-1, -1, -1]]), "no log-probability"),
        (PromptLogprobs(1), top_answer(None, {7: -1.0}, {8: -1.0}), "3 entries for 4 tokens"),
        (PromptLogprobs(1), top_answer(None, None, {8: -1.0}, {9: -1.0}), "entry 1"),
        (PromptLogprobs(1), top_answer(None, {8: -1.0}, {7: -1.0}, {9: -1.0}), "shifted"),
        (PromptLogprobs(1), top_answer({7: -1.0}, {8: -1.0}, {9: -1.0}, None), "shifted"),
        (PromptLogprobs(2), top_answer(None, {7: -1.0}, {8: -1.0}, {9: -1.0}), "1 tokens for 2"),
        (PromptLogprobs(1), top_answer(None, {7: -1.0, 1: 0.7}, {8: -1.0}, {9: -1.0}), "no log-probability"),
    ],
)
def test_an_answer_that_does_not_fit_the_request_is_refused(method, answer, message):
    with pytest.raises(ValueError, match=message):
        read(method, answer)


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
            read(PromptLogprobTokenIds(), _encoded(data))
    none = np.full((3, 3), -np.inf)
    with pytest.raises(ValueError, match="shifted"):
        read(PromptLogprobTokenIds(), rows_answer(none))
