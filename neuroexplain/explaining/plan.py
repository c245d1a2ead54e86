"""The plan of an explain command: its requests, the stored answers, and a task for each side of a unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from neuroexplain.config import ExplainConfig
from neuroexplain.evidence import (
    Explanation,
    Prediction,
    Provenance,
    Status,
    TextPart,
    Tokens,
    Unit,
    failures_among,
)
from neuroexplain.explaining.bank import LabelBank
from neuroexplain.explaining.explainers import EXPLAINERS, Explainer
from neuroexplain.explaining.predictions import StoredPredictions, find_predictions
from neuroexplain.explaining.replies import MOST_MEANINGS
from neuroexplain.explaining.shares import Pending
from neuroexplain.llm.engine import Engine
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.runs import Run
from neuroexplain.scorers.base import OpenScorer
from neuroexplain.scoring.side_evidence import SideEvidence
from neuroexplain.store.background import load_unit_to_score
from neuroexplain.store.engine import Store
from neuroexplain.store.explanations import list_explanations
from neuroexplain.units import Side, UnitId, UnitSide

Answers: TypeAlias = Mapping[int, Explanation]  # a side's stored explanations, by candidate
# Of candidates and revisions after the first, which is the likeliest answer. Where worked examples are drawn,
# every candidate is the likeliest answer after others of them.
CANDIDATE_TEMPERATURE = 0.8
UNITS_BY_NAME = 100  # of more units a run's explanations are read as a whole


@dataclass(frozen=True)
class Requests:
    """The requests that a command makes for every side of a unit.

    Candidates 0 .. n_candidates - 1 are first answers; those from n_candidates on are revisions. If a reply
    may hold several hypotheses, candidate 0 is the request, and the next ones are the rest of its reply.
    """

    explainer: Explainer
    engine: Engine | None  # None if the explainer asks no LLM, like the prompt
    prompt: Prompt | None
    revision: Prompt | None  # what a revision adds to the first request
    n_candidates: int = 1
    n_revisions: int = 0
    seed: int = 0
    bank: LabelBank | None = None  # of the explainer whose hypotheses are those of a bank

    @classmethod
    def of(cls, config: ExplainConfig, engine: Engine | None) -> Requests:
        """The requests of a command, to this engine."""
        explainer = EXPLAINERS[config.explainer]
        revision = load_prompt("explain/revise") if config.revise else None
        prompt = explainer.load_prompt()
        return cls(explainer, engine, prompt, revision, config.candidates, config.revise, config.seed)

    def with_bank(self, open_bank: type[LabelBank], run: Run) -> Requests:
        """The same requests; of the explainer `bank` with its labels, see LabelBank."""
        if not self.explainer.is_bank or self.prompt is None or self.engine is None:
            return self
        return replace(self, bank=open_bank(self.engine, self.prompt, run))

    @property
    def revision_prompt(self) -> Prompt | None:
        """All that an LLM reads for a revision: both prompt files."""
        if self.prompt is None or self.revision is None:
            return None
        text = f"{self.prompt.text}### revision\n{self.revision.text}"
        return Prompt(f"{self.prompt.name}+revise", text)

    @property
    def chooses(self) -> bool:
        """Whether a side may get several explanations, of which `select` chooses one."""
        return self.n_candidates > 1 or self.n_revisions > 0 or self.explainer.gives_several

    @property
    def revisions(self) -> range:
        """The candidates that are revisions."""
        return range(self.n_candidates, self.n_candidates + self.n_revisions)

    def request(self, unit: UnitId, candidate: int, side: Side = "positive") -> Explanation:
        """A request as an explanation without text: what is asked, of which model, by which prompt."""
        if self.prompt is None or self.engine is None:
            baseline = Provenance("none", None, self.explainer.name, None, None)
            return Explanation(unit, self.explainer.name, Status.OK, None, baseline, side=side)
        revision_prompt = self.revision_prompt
        is_revision = revision_prompt is not None and candidate >= self.n_candidates
        prompt = revision_prompt if is_revision and revision_prompt is not None else self.prompt
        is_sampled = candidate not in (0, self.n_candidates) and not self.explainer.gives_several
        sampling = {
            "temperature": CANDIDATE_TEMPERATURE if is_sampled and not prompt.pool else 0.0,
            "max_tokens": self.explainer.max_tokens,
            "seed": self.seed + (candidate if is_sampled else 0),
        }
        if self.explainer.is_bank:  # nothing is generated
            sampling = {}
        engine = self.engine
        provenance = Provenance(
            engine.engine, engine.version, engine.model, engine.revision, prompt.sha256, sampling
        )
        return Explanation(unit, self.explainer.name, Status.OK, None, provenance, candidate, side=side)

    def all(self, unit: UnitId, side: Side) -> Iterator[Explanation]:
        """Every request whose answer this command may store."""
        n_parts = MOST_MEANINGS + 1 if self.explainer.gives_several else 0
        for candidate in range(max(self.n_candidates + self.n_revisions, n_parts)):
            yield self.request(unit, candidate, side)


@dataclass(frozen=True)
class ExplainTask:
    """What the explanations of one side of a unit need, read from the store beforehand."""

    evidence: SideEvidence
    tokens: Tokens
    answers: Answers
    predictions: StoredPredictions  # by this command's scorer

    @property
    def unit(self) -> Unit:
        return self.evidence.unit

    def stored_prediction(self, explanation: Explanation, part: TextPart) -> Prediction | None:
        """What the scorer predicted from this part of an explanation before; None if that is new."""
        return self.predictions.get((explanation.id or 0, part))


@dataclass(frozen=True)
class ExplainPlan:
    """Which sides a command explains, what is stored of them, and which are still to do."""

    answers: Mapping[UnitSide, Answers]
    predictions: StoredPredictions
    pending: tuple[UnitSide, ...]

    @property
    def n_targets(self) -> int:
        return len(self.answers)

    @property
    def n_finished(self) -> int:
        return len(self.answers) - len(self.pending)

    @property
    def failures(self) -> Counter[str]:
        """Stored explanations and predictions that failed, by status."""
        explanations = failures_among(e.status for answers in self.answers.values() for e in answers.values())
        return explanations + failures_among(p.status for p in self.predictions.values())

    def tasks(self, store: Store, run: Run) -> list[Pending[ExplainTask]]:
        """The tasks of the sides that are still to do; `store` holds the run's records."""
        return [Pending(side, side, partial(self.task, store, run, side)) for side in self.pending]

    def task(self, store: Store, run: Run, target: UnitSide) -> ExplainTask:
        """Read what a side's explanations need."""
        unit_id, side = target
        unit, tokens = load_unit_to_score(store, run, unit_id)
        answers = self.answers[target]
        sources = [(e.id or 0, part) for e in answers.values() for part in e.text_parts]
        predictions = {source: self.predictions[source] for source in sources if source in self.predictions}
        return ExplainTask(SideEvidence.of(run, unit, side, tokens), tokens, answers, predictions)


def plan_explanations(
    store: Store, run: Run, config: ExplainConfig, requests: Requests, scorer: OpenScorer | None
) -> ExplainPlan:
    """Compare a command's requests with the store. What is to be retried counts as missing."""
    stored = _list_stored(store, run, config, requests)
    answers = _match_answers(stored, run, config, requests)
    explanations = [e for of_side in answers.values() for e in of_side.values()]
    predictions = find_predictions(store, explanations, scorer, retry_failed=config.retry_failed)
    # Other commands may have chosen among other answers: choose again, by what is stored.
    own_ids = {e.id for e in explanations}
    contested = {(e.unit, e.side) for e in stored if e.status == Status.OK and e.id not in own_ids}
    pending = [
        target
        for target, own in answers.items()
        if (requests.chooses and target in contested) or not _is_finished(requests, own, predictions, scorer)
    ]
    return ExplainPlan(answers, predictions, tuple(pending))


def find_answers(
    store: Store, run: Run, config: ExplainConfig, requests: Requests
) -> dict[UnitSide, dict[int, Explanation]]:
    """The stored answers to a command's requests, by side and candidate, without those to be retried."""
    return _match_answers(_list_stored(store, run, config, requests), run, config, requests)


def _list_stored(store: Store, run: Run, config: ExplainConfig, requests: Requests) -> list[Explanation]:
    """The stored explanations of a command's units, at least, by its explainer and model."""
    model = requests.request(config.units[0], 0).provenance.model
    units = config.units if len(config.units) <= UNITS_BY_NAME else None
    return list_explanations(store, run.id, explainer=requests.explainer.name, model=model, units=units)


def _match_answers(
    stored: Sequence[Explanation], run: Run, config: ExplainConfig, requests: Requests
) -> dict[UnitSide, dict[int, Explanation]]:
    """Those of the stored explanations that answer a command's requests."""
    answers: dict[UnitSide, dict[int, Explanation]] = {
        (unit, side): {} for unit in config.units for side in run.sides
    }
    first_unit = config.units[0]
    candidates = {
        request.request_key: request.candidate
        for side in run.sides
        for request in requests.all(first_unit, side)
    }
    for explanation in stored:
        own = answers.get((explanation.unit, explanation.side))
        is_repeated = config.retry_failed and explanation.status.is_worth_retrying
        candidate = candidates.get(explanation.request_key)
        if own is not None and not is_repeated and candidate is not None:
            own[candidate] = explanation
    return answers


def list_chosen(store: Store, run: Run, config: ExplainConfig, engine: Engine | None) -> list[Explanation]:
    """The command's chosen explanations, in the order of units."""
    everything = replace(config, retry_failed=False)
    answers = find_answers(store, run, everything, Requests.of(config, engine))
    return [e for own in answers.values() for e in own.values() if e.chosen and e.status == Status.OK]


def _is_finished(
    requests: Requests,
    answers: Answers,
    predictions: StoredPredictions,
    scorer: OpenScorer | None,
) -> bool:
    """Whether the store holds all that the command would learn about a side, except controls."""
    if 0 not in answers:
        return False
    if answers[0].status.has_nothing_to_ask:
        return True
    usable = [e for e in answers.values() if e.status == Status.OK]
    if usable and not any(e.chosen for e in usable):
        return False  # a later command chose among other explanations
    candidates, revisions = set(range(requests.n_candidates)), set(requests.revisions)
    if not requests.explainer.gives_several and not candidates | revisions <= set(answers):
        return not usable and candidates <= set(answers)  # revisions need an explanation to revise
    own = [
        predictions.get((e.id or 0, part))
        for e in usable
        for part in e.text_parts
        if part == e.ranking_part or e.chosen or (scorer is not None and not scorer.asks_per_record)
    ]
    return scorer is None or all(p is not None and scorer.has_read(p) for p in own)
