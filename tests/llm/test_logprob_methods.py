"""Which log-probability method the server engine chooses, and that no wrong answer becomes a value."""

import itertools

import numpy as np
import pytest

from neuroexplain.errors import EngineError, LlmReplyError
from tests.llm.scripted import connect
from tests.llm.test_distributions import next_answer, npy, top_answer

pytestmark = pytest.mark.usefixtures("impatient")


class Server032:
    """Answers in the shapes of vLLM 0.32. What follows a token depends on that token alone."""

    def __init__(self, offered, block=16):
        self.offered, self.block = offered, block
        self.logits = np.random.default_rng(0).normal(size=(330, 330)) * 2
        self.logprobs = self.logits - np.log(np.exp(self.logits).sum(axis=1, keepdims=True))
        self.cached = False

    def __call__(self, body):
        if "token_ids" in body:
            return self.at_rows(body) if "rows" in self.offered else (404, {"detail": "Not Found"})
        if "logprobs" in body and "logprob_token_ids" not in body:
            return self.top_next(body)
        if "logprob_token_ids" in body:
            return (
                self.at_next(body)
                if "next" in self.offered
                else (400, {"error": {"message": "unknown field"}})
            )
        if body["prompt_logprobs"] > max((0, *(k for k in self.offered if isinstance(k, int)))):
            return 400, {"error": {"message": "greater than max allowed"}}
        return self.top(body)

    def at_rows(self, body):
        ids, options = body["token_ids"], body["sampling_params"]
        start, rows = options["prompt_logprob_start"], options["prompt_logprob_token_ids"]
        assert len(rows) == len(ids) - 1 - start
        usage = {"prompt_tokens": len(ids)}
        if self.cached and not options["skip_reading_prefix_cache"]:
            return 200, {"choices": [], "prompt_token_id_logprobs": None, "usage": usage}
        scores = np.full((len(rows), max(map(len, rows))), -np.inf)
        for n, row in enumerate(rows):
            scores[n, : len(row)] = self.logprobs[ids[start + n], row]
        return 200, {"choices": [], "prompt_token_id_logprobs": npy(scores), "usage": usage}

    def at_next(self, body):
        rows = [
            [self.logprobs[prompt[-1], i] for i in body["logprob_token_ids"]] for prompt in body["prompt"]
        ]
        answer = next_answer(rows, body["logprob_token_ids"])
        return 200, {**answer, "usage": {"prompt_tokens": sum(map(len, body["prompt"]))}}

    def top(self, body):
        entries = [None]
        for before, own in itertools.pairwise(body["prompt"]):
            best = {*np.argsort(-self.logprobs[before])[: body["prompt_logprobs"]].tolist(), own}
            entries.append({i: self.logprobs[before, i] for i in best})
        return 200, {**top_answer(*entries), "usage": {"prompt_tokens": len(body["prompt"])}}

    def top_next(self, body):
        k = body["logprobs"]
        if f"top {k}" not in self.offered:
            return 400, {"error": {"message": "greater than max allowed"}}
        best = [np.argsort(-self.logprobs[prompt[-1]])[:k] for prompt in body["prompt"]]
        choices = [
            {
                "index": n,
                "logprobs": {
                    "top_logprobs": [{f"token_id:{i}": self.logprobs[prompt[-1], i] for i in ids.tolist()}]
                },
            }
            for n, (prompt, ids) in enumerate(zip(body["prompt"], best, strict=True))
        ]
        return 200, {"choices": choices, "usage": {"prompt_tokens": sum(map(len, body["prompt"]))}}

    def metrics(self):
        return (
            200,
            f'vllm:cache_config_info{{block_size="{self.block}",enable_prefix_caching="True"}} 1.0'.encode(),
        )


PROMPT, ROWS, LEVELS = list(range(3, 203)), list(range(8, 195, 6)), [[5], [6, 7], [8]]


@pytest.mark.parametrize(
    ("offered", "block", "method"),
    [
        ({"rows", "next", 20}, 16, "prompt_logprob_token_ids"),
        ({"next", 20}, 8, "logprob_token_ids"),
        # 32 cuts would compute 64 tokens each, more than the whole prompt
        ({"next", 20}, 128, "prompt_logprobs=20"),
        ({"next"}, 128, "logprob_token_ids"),
        ({100}, 16, "prompt_logprobs=100"),
        ({20}, 16, "prompt_logprobs=20"),
        ({5}, 16, "prompt_logprobs=5"),
    ],
)
def test_the_best_method_that_the_server_offers_is_chosen_once(scripted, offered, block, method):
    scripted.choose = server = Server032(offered, block)
    scripted.metrics = server.metrics()
    engine = connect(scripted)
    levels = engine.level_distributions(PROMPT, ROWS, LEVELS)
    p = np.exp(server.logprobs[np.array(PROMPT)[ROWS]])
    true = np.stack([p[:, ids].sum(axis=1) for ids in LEVELS], axis=1)
    if "=" not in method:
        np.testing.assert_allclose(levels, true, rtol=1e-5)
    else:
        assert ((levels < true + 1e-9) & ((levels > 0) | (true < 0.1))).all()
    assert engine.version == f"unknown, {method}"
    n = len(scripted.requests)
    engine.level_distributions(PROMPT, ROWS, LEVELS)
    assert len(scripted.requests) == n + 1


def test_a_method_with_wrong_answers_is_not_chosen(scripted):
    scripted.choose = server = Server032({"rows", "next", 20})
    server.at_rows = lambda body: (200, {"prompt_token_id_logprobs": npy(np.full((1, 1), -1.0))})
    right = server.at_next

    def shifted(body):
        return right({**body, "prompt": [[*prompt[:-1], prompt[0]] for prompt in body["prompt"]]})

    server.at_next = shifted
    engine = connect(scripted)
    engine.level_distributions(PROMPT, ROWS, LEVELS)
    assert engine.version.endswith("prompt_logprobs=20")


def test_a_server_without_any_method_says_what_to_start(scripted):
    scripted.choose = Server032(set())
    with pytest.raises(
        EngineError, match=r"(?s)prompt_logprob_token_ids: 404.*logprob_token_ids: 400.*Start vLLM 0.32"
    ):
        connect(scripted).level_distributions(PROMPT, ROWS, LEVELS)


def test_faults_while_methods_are_tried_do_not_change_the_choice(scripted):
    scripted.choose = Server032({"rows", "next", 20})
    for reply in (
        (503, {}),
        (429, {}),
        (200, b"{"),
        (200, {"choices": [], "prompt_token_id_logprobs": None}),
    ):
        scripted.replies = [reply] * 2
        engine = connect(scripted)
        engine.level_distributions(PROMPT, ROWS, LEVELS)
        assert engine.version.endswith("prompt_logprob_token_ids")


def test_rows_in_the_prefix_cache_are_requested_without_it(scripted):
    scripted.choose = server = Server032({"rows"})
    engine = connect(scripted)
    levels = engine.level_distributions(PROMPT, ROWS, LEVELS)
    server.cached = True
    np.testing.assert_array_equal(engine.level_distributions(PROMPT, ROWS, LEVELS), levels)
    assert [body["sampling_params"]["skip_reading_prefix_cache"] for body in scripted.requests[-2:]] == [
        False,
        True,
    ]


def test_log_probabilities_that_cannot_be_are_a_failed_attempt_with_the_reply(scripted):
    scripted.choose = Server032({"next", 20}, 8)
    engine = connect(scripted)
    engine.level_distributions(PROMPT, ROWS, LEVELS)
    scripted.replies = [(200, next_answer([[0.7] * 4] * len(ROWS), (5, 6, 7, 8)))]
    with pytest.raises(LlmReplyError, match="no log-probability") as failed:
        engine.level_distributions(PROMPT, ROWS, LEVELS)
    assert "top_logprobs" in failed.value.reply


QUESTIONS = [[*PROMPT[:5], n] for n in range(3, 80)]


@pytest.mark.parametrize(
    ("offered", "method"),
    [
        ({"next", "top 20"}, "logprob_token_ids"),
        ({"next"}, "logprob_token_ids"),
        ({"top 20"}, "logprobs=20"),
        ({"top 5", "top 20"}, "logprobs=20"),
        ({"top 5"}, "logprobs=5"),
    ],
)
def test_next_tokens_are_asked_for_by_the_best_method_many_prompts_a_request(scripted, offered, method):
    scripted.choose = server = Server032(offered)
    engine = connect(scripted)
    levels = engine.next_distributions(QUESTIONS, LEVELS)
    p = np.exp(server.logprobs[np.array(QUESTIONS)[:, -1]])
    true = np.stack([p[:, ids].sum(axis=1) for ids in LEVELS], axis=1)
    if "=" not in method:
        np.testing.assert_allclose(levels, true, rtol=1e-5)
    else:
        assert ((levels < true + 1e-9) & ((levels > 0) | (true < 0.1))).all()
        assert (levels > 0).any()
    assert engine.version == f"unknown, {method}"
    n = len(scripted.requests)
    many = QUESTIONS * 4  # 308 prompts, 128 a request
    np.testing.assert_array_equal(engine.next_distributions(many, LEVELS), np.tile(levels, (4, 1)))
    assert len(scripted.requests) == n + 3
    assert engine.next_distributions([], LEVELS).shape == (0, 3)


def test_a_server_that_cuts_its_answers_cannot_answer_exactly(scripted):
    scripted.choose = Server032({"top 20"})
    engine = connect(scripted)
    with pytest.raises(EngineError, match=r"logprobs=20.*--simulator-local"):
        engine.next_distributions(QUESTIONS, LEVELS, exact=True)


def test_a_method_for_next_tokens_with_wrong_answers_is_not_chosen(scripted):
    scripted.choose = server = Server032({"next", "top 20"})
    right = server.at_next
    server.at_next = lambda body: right({**body, "prompt": [[*p, 3] for p in body["prompt"]]})
    engine = connect(scripted)
    engine.next_distributions(QUESTIONS, [[i] for i in range(3, 40)])
    assert engine.version.endswith(", logprobs=20")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: answer["choices"].pop(),
        lambda answer: answer["choices"].reverse(),
        lambda answer: answer["choices"][0]["logprobs"]["top_logprobs"].append({}),
        lambda answer: answer["choices"][0]["logprobs"]["top_logprobs"][0].popitem(),
        lambda answer: answer["choices"][0]["logprobs"]["top_logprobs"][0].update({"token_id:5": 0.5}),
    ],
)
@pytest.mark.parametrize("offered", ["next", "top 20"])
def test_wrong_next_tokens_are_no_values(scripted, offered, spoil):
    scripted.choose = server = Server032({offered})
    engine = connect(scripted)
    engine.next_distributions(QUESTIONS, LEVELS)

    def spoiled(body):
        answer = (server.at_next if offered == "next" else server.top_next)(body)[1]
        spoil(answer)
        return 200, answer

    scripted.choose = spoiled
    with pytest.raises(LlmReplyError):
        engine.next_distributions(QUESTIONS[:4], LEVELS)
