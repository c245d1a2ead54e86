"""What a run of explain will cost: the run itself on a sample of units, with an engine and a scorer that only count."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import Explained, Status, Tokens
from neuroexplain.explaining.choose import Asking, explain_unit
from neuroexplain.explaining.run import find_answers, headline_of, is_finished, plan_unit
from neuroexplain.explaining.score import find_predictions
from neuroexplain.explaining.trials import Trials
from neuroexplain.llm.engine import Engine, Message, Reply, chat_token_ids
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer, Predicted, Predictions
from neuroexplain.scoring.sides import Trial
from neuroexplain.store.engine import Store

SAMPLED = 16  # units whose prompts are built
STAND_IN = (
    "words and phrases that have to do with travelling by sea"  # for an explanation that is not written yet
)


@dataclass(frozen=True)
class Estimate:
    """What is still to be done. Numbers for all units are those of a sample, scaled up."""

    n_units: int  # to be explained
    n_finished: int
    n_requests: int
    n_prompt_tokens: int
    seconds: float  # one request after the other
    in_flight: int  # requests that may run at once: so much faster at best


@dataclass
class Count:
    """What the sample would cost."""

    requests: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    made: set[Hashable] = field(default_factory=set)  # requests that are made once


class CountingEngine:
    """Counts what an explainer asks; only the first request is really made, to time it. Replies are examples."""

    def __init__(self, engine: Engine, example: str, count: Count) -> None:
        self._engine, self._example, self._count = engine, example, count
        self._seconds: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, messages: Sequence[Message], **sampling: Any) -> Reply:
        if self._seconds is None:
            began = time.perf_counter()
            with suppress(LlmReplyError):  # it took its time all the same
                self._engine.generate(messages, **sampling)
            self._seconds = time.perf_counter() - began
        n_tokens = len(chat_token_ids(self._engine.tokenizer, messages))
        self._count.requests += 1
        self._count.tokens += n_tokens
        self._count.seconds += self._seconds
        reply = self._example.replace(
            "#", str(self._count.requests)
        )  # one like the other would be asked about once
        return Reply(reply, n_tokens, 0, self._seconds)


class CountingScorer(OpenScorer):
    """Counts what a scorer asks; only the first request is really made, to time it. It predicts 0 everywhere."""

    def __init__(self, scorer: OpenScorer, count: Count) -> None:
        self.scorer, self.engine, self.prompt = scorer.scorer, scorer.engine, scorer.prompt
        self._scorer, self._count = scorer, count
        self._each: tuple[float, float] | None = (
            None  # seconds a request, and tokens sent for each of its prompts
        )

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        requests = self._scorer.plan(explanation, trials, tokens)
        if self._each is None:
            self._each = self._try(explanation, trials, tokens)
        seconds, as_sent = self._each
        new = [one for one in requests if one.key is None or one.key not in self._count.made]
        self._count.made |= {one.key for one in new if one.key is not None}
        self._count.requests += len(new)
        self._count.tokens += as_sent * sum(one.n_tokens for one in new)
        self._count.seconds += seconds * (len(new) or 1)
        return Predictions([Predicted(np.zeros(len(trial.token_ids), np.float32)) for trial in trials])

    def _try(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> tuple[float, float]:
        """(seconds, tokens sent) for one of the planned requests: a server that takes cut prompts is sent each many times."""
        planned = [one.n_tokens for one in self._scorer.plan(explanation, trials, tokens)]
        began, before = time.perf_counter(), self.engine.used.prompt_tokens
        try:
            self._scorer.run(explanation, trials, tokens)
        except LlmReplyError as error:
            raise NeuroexplainError(
                f"A prompt to score with, {max(planned, default=0):,} tokens long, got no usable answer "
                f"({error.status}): {error.reason}"
            ) from error
        sent = self.engine.used.prompt_tokens - before
        return (time.perf_counter() - began) / max(1, len(planned)), sent / sum(planned) if planned else 1.0


def estimate_explain(
    store: Store,
    run: Run,
    config: ExplainConfig,
    engine: Engine | None,
    scorer: OpenScorer | None,
    *,
    with_control: bool = False,
) -> Estimate:
    """Do what the run would do for some units, spread over the selection, and count.

    Prompt tokens are counted as they are sent. Not counted: controls that finished units still lack.
    """
    asking = Asking.of(config, engine)
    answers = find_answers(store, run, asking, config)
    stored = [e for of_side in answers.values() for e in of_side.values()]
    predictions = find_predictions(store, stored, scorer, retry_failed=config.retry_failed)
    pending = [target for target, own in answers.items() if not is_finished(asking, own, predictions, scorer)]
    n_finished = len(answers) - len(pending)
    if not pending:
        return Estimate(0, n_finished, 0, 0, 0.0, 1)
    sample = pending[:: -(-len(pending) // SAMPLED)]
    count = Count()
    counting = None if scorer is None else CountingScorer(scorer, count)
    if engine is not None:
        asking = replace(asking, engine=CountingEngine(engine, asking.explainer.example_reply, count))
    for target in sample:
        task = plan_unit(store, run, target, answers[target], predictions)
        explained = explain_unit(
            task, asking=asking, scorer=counting, headline=headline_of(run, scorer), at_once=1
        )
        if counting is not None and (with_control or not counting.asks_per_record):
            for one in explained:
                _count_control(one, Trials(counting, task.evidence, task.tokens))
    scale = len(pending) / len(sample)
    in_flight = max(engine.in_flight if engine else 1, scorer.engine.in_flight if scorer else 1)
    n_requests, n_tokens = round(count.requests * scale), round(count.tokens * scale)
    return Estimate(len(pending), n_finished, n_requests, n_tokens, count.seconds * scale, in_flight)


def _count_control(explained: Explained, trials: Trials) -> None:
    """A chosen explanation gets a control, which is another unit's of the same form."""
    e, prediction = explained.explanation, explained.prediction
    if e.chosen and e.status == Status.OK and prediction is not None:
        parts = None if e.parts is None else tuple(f"{STAND_IN} {number}" for number in range(len(e.parts)))
        other = replace(e, text=STAND_IN, parts=parts)
        trials.compare(prediction, other)
