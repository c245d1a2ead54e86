"""The cost of an explain command: its steps on a sample, with an engine and a scorer that only count."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError, NeuroexplainError
from neuroexplain.evidence import ExplanationResult, Status, Tokens
from neuroexplain.explaining.bank import LabelBank
from neuroexplain.explaining.plan import Requests, plan_explanations
from neuroexplain.explaining.replies import whole_text
from neuroexplain.explaining.run import headline_of
from neuroexplain.explaining.side import explain_side
from neuroexplain.explaining.trials import SideTrials
from neuroexplain.llm.engine import Engine, Message, Reply, chat_token_ids
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer, PredictedTrial, Predictions
from neuroexplain.scoring.side_evidence import SideEvidence, Trial
from neuroexplain.store.engine import Store

SAMPLE_SIZE = 16  # sides whose prompts are built: their mean is good enough, and takes a second
STAND_IN = "words and phrases that have to do with travelling by sea"  # for a control that is not written yet


@dataclass(frozen=True)
class Estimate:
    """What is still to be done. Numbers for all units are those of a sample, scaled up."""

    n_units: int  # to be explained
    n_finished: int
    n_requests: int
    n_prompt_tokens: int
    seconds: float  # one request after the other
    in_flight: int  # requests that may run at the same time, which divides the seconds at best


@dataclass
class Tally:
    """What the sample would cost."""

    n_requests: int = 0
    n_tokens: float = 0.0
    seconds: float = 0.0
    sent_once: set[Hashable] = field(default_factory=set)  # keys of requests that are sent once a command


class CountingEngine:
    """Counts an explainer's requests. Only the first one is sent, to time it; replies are examples."""

    def __init__(self, engine: Engine, example_reply: str, tally: Tally) -> None:
        self._engine, self._example_reply, self._tally = engine, example_reply, tally
        self._seconds: float | None = None  # a request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, messages: Sequence[Message], **sampling: Any) -> Reply:
        """An example of a reply, different each time: equal explanations would be scored once."""
        if self._seconds is None:
            began = time.perf_counter()
            with suppress(LlmReplyError):  # a refused request takes time all the same
                self._engine.generate(messages, **sampling)
            self._seconds = time.perf_counter() - began
        n_tokens = len(chat_token_ids(self._engine.tokenizer, messages))
        self._tally.n_requests += 1
        self._tally.n_tokens += n_tokens
        self._tally.seconds += self._seconds
        reply = self._example_reply.replace("#", str(self._tally.n_requests))
        return Reply(reply, n_tokens, 0, self._seconds)


class CountingScorer(OpenScorer):
    """Counts a scorer's requests. Only the first trials are run, to time them; it predicts 0 everywhere."""

    def __init__(self, scorer: OpenScorer, tally: Tally) -> None:
        self.scorer, self.engine, self.prompt = scorer.scorer, scorer.engine, scorer.prompt
        self.n_read, self.with_bills = scorer.n_read, scorer.with_bills
        self.guesser = None if scorer.guesser is None else CountingScorer(scorer.guesser, tally)
        self._scorer, self._tally = scorer, tally
        self._cost: tuple[float, float] | None = None  # see _measure

    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        """Zeros for each trial; the requests are counted that the scorer would send."""
        tally = self._tally
        if self._cost is None:
            self._cost = self._measure(explanation, trials, tokens)
        seconds, sent_per_token = self._cost
        requests = self._scorer.plan(explanation, trials, tokens)
        new = [request for request in requests if request.key is None or request.key not in tally.sent_once]
        tally.sent_once |= {request.key for request in new if request.key is not None}
        tally.n_requests += len(new)
        tally.n_tokens += sent_per_token * sum(request.n_tokens for request in new)
        tally.seconds += seconds * (len(new) or 1)
        return Predictions([PredictedTrial(np.zeros(len(trial.token_ids), np.float32)) for trial in trials])

    def _measure(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> tuple[float, float]:
        """(seconds a request, tokens sent for each token of its prompt).

        A server that takes only cut prompts is sent a prompt's beginning many times.
        """
        planned = [request.n_tokens for request in self._scorer.plan(explanation, trials, tokens)]
        began, sent_before = time.perf_counter(), self.engine.usage.prompt_tokens
        try:
            self._scorer.run(explanation, trials, tokens)
        except LlmReplyError as error:
            raise NeuroexplainError(
                f"A prompt to score with, {max(planned, default=0):,} tokens long, got no usable answer "
                f"({error.status}): {error.reason}"
            ) from error
        n_sent = self.engine.usage.prompt_tokens - sent_before
        seconds = time.perf_counter() - began
        return seconds / max(1, len(planned)), n_sent / sum(planned) if planned else 1.0


def estimate_explain(
    store: Store,
    run: Run,
    config: ExplainConfig,
    engine: Engine | None,
    scorer: OpenScorer | None,
    *,
    with_control: bool = False,
) -> Estimate:
    """Do what the command would do for a sample of sides, spread over the selection, and count.

    Prompt tokens are counted as they are sent. Not counted: controls that finished units still lack, and
    questions that an answer leads to, like which verbs are meant.
    """
    requests = Requests.of(config, engine)
    plan = plan_explanations(store, run, config, requests, scorer)
    if not plan.pending:
        return Estimate(0, plan.n_finished, 0, 0, 0.0, 1)
    sample = plan.pending[:: -(-len(plan.pending) // SAMPLE_SIZE)]
    tally = Tally()
    counting = None if scorer is None else CountingScorer(scorer, tally)
    requests = requests.with_bank(UnreadBank, run)
    if engine is not None and requests.bank is None:
        example_reply = requests.explainer.example_reply
        requests = replace(requests, engine=CountingEngine(engine, example_reply, tally))
    for target in sample:
        task = plan.task(store, run, target)
        results = explain_side(task, requests=requests, scorer=counting, headline=headline_of(run, scorer))
        if counting is not None and (with_control or not counting.asks_per_record):
            for result in results:
                _count_control(result, SideTrials(counting, task.evidence, task.tokens))
    scale = len(plan.pending) / len(sample)
    engines = (engine, None if scorer is None else scorer.engine)
    return Estimate(
        n_units=len(plan.pending),
        n_finished=plan.n_finished,
        n_requests=round(tally.n_requests * scale),
        n_prompt_tokens=round(tally.n_tokens * scale),
        seconds=tally.seconds * scale,
        in_flight=max((e.in_flight for e in engines if e is not None), default=1),
    )


class UnreadBank(LabelBank):
    """A bank whose labels are not compared, since that costs no request."""

    def choose(self, evidence: SideEvidence) -> str | None:
        return self.labels[0]


def _count_control(result: ExplanationResult, trials: SideTrials) -> None:
    """Count the control of a chosen explanation: another unit's explanation of the same form."""
    explanation = result.explanation
    if not explanation.chosen or explanation.status != Status.OK:
        return
    parts = explanation.parts and tuple(f"{STAND_IN} {n}" for n in range(len(explanation.parts)))
    whole = explanation.rule and whole_text(STAND_IN, explanation.examples or ())
    control = replace(explanation, text=whole or STAND_IN, rule=explanation.rule and STAND_IN, parts=parts)
    for new in result.predictions:
        trials.add_control(new.prediction, control)
