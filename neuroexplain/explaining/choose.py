"""One side of a unit -> its explanations: candidates asked for, tried, the best chosen, revised. Nothing is stored here."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import ExplainConfig
from neuroexplain.errors import LlmReplyError
from neuroexplain.evidence import (
    Exemplar,
    Explained,
    Explanation,
    Headline,
    Prediction,
    Provenance,
    Split,
    Status,
    Tokens,
    Unit,
)
from neuroexplain.explaining.explainers import (
    EXPLAINERS,
    MOST_MEANINGS,
    Explainer,
    parse_meanings,
    render_mistakes,
    union_text,
)
from neuroexplain.explaining.trials import Trials, begin_prediction, select_score
from neuroexplain.llm.engine import Engine, Message
from neuroexplain.llm.prompts import Prompt, load_prompt
from neuroexplain.scorers.base import OpenScorer, compute_scores
from neuroexplain.scoring.codecs import as_stored
from neuroexplain.scoring.levels import to_levels
from neuroexplain.scoring.sides import HELD_OUT, Evidence, Place, why_dead
from neuroexplain.scoring.splits import halve_select
from neuroexplain.units import Side, UnitId

Mistakes: TypeAlias = list[tuple[Exemplar, int, list[int], list[int]]]  # see find_mistakes
CANDIDATE_TEMPERATURE = 0.8  # of the candidates and revisions after the first, which is the likeliest answer
MOST_MISTAKES = 3  # records that a revision is shown


@dataclass(frozen=True)
class Asking:
    """How every neuron of a command is explained."""

    explainer: Explainer
    engine: Engine | None  # None where the explainer asks no LLM, like the prompt
    prompt: Prompt | None
    revision: Prompt | None  # what a revision adds to the first request
    candidates: int = 1
    revise: int = 0
    seed: int = 0

    @classmethod
    def of(cls, config: ExplainConfig, engine: Engine | None) -> Asking:
        explainer = EXPLAINERS[config.explainer]
        revision = load_prompt("explain/revise") if config.revise else None
        prompt = explainer.load_prompt()
        return cls(explainer, engine, prompt, revision, config.candidates, config.revise, config.seed)

    @property
    def revising(self) -> Prompt | None:
        """All that an LLM is told for a revision: both prompt files."""
        if self.prompt is None or self.revision is None:
            return None
        return Prompt(f"{self.prompt.name}+revise", f"{self.prompt.text}### revision\n{self.revision.text}")

    @property
    def says_several(self) -> bool:
        """Whether one answer may hold several hypotheses."""
        return self.explainer.parse is parse_meanings

    @property
    def chooses(self) -> bool:
        """Whether a neuron may get several explanations, of which one is chosen on `select`."""
        return self.candidates > 1 or self.revise > 0 or self.says_several

    def request(self, unit: UnitId, candidate: int, side: Side = "positive") -> Explanation:
        """The request as an explanation without text: what is asked, of whom, by which prompt.

        Candidates from `candidates` on are revisions; of an explainer that answers several things at once, the first
        candidate is the request, and the others are the rest of its answer.
        """
        if self.prompt is None or self.engine is None:
            nobody = Provenance("none", None, self.explainer.name, None, None)
            return Explanation(unit, self.explainer.name, Status.OK, None, nobody, side=side)
        revises = self.revising is not None and candidate >= self.candidates
        prompt = self.revising if revises and self.revising is not None else self.prompt
        samples = candidate not in (0, self.candidates) and not self.says_several
        sampling = {
            "temperature": CANDIDATE_TEMPERATURE if samples else 0.0,
            "max_tokens": self.explainer.max_tokens,
            "seed": self.seed + (candidate if samples else 0),
        }
        e = self.engine
        whom = Provenance(e.engine, e.version, e.model, e.revision, prompt.sha256, sampling)
        return Explanation(unit, self.explainer.name, Status.OK, None, whom, candidate, side=side)

    def possible(self, unit: UnitId, side: Side) -> Iterator[Explanation]:
        """Every request whose answer this command may store."""
        several = MOST_MEANINGS + 1 if self.says_several else 0
        for candidate in range(max(self.candidates + self.revise, several)):
            yield self.request(unit, candidate, side)


@dataclass(frozen=True)
class ExplainTask:
    """What the explanations of one side of a unit need, read from the store beforehand."""

    evidence: Evidence
    tokens: Tokens
    found: Mapping[int, Explanation]  # stored answers, by candidate
    predicted: Mapping[int, Prediction]  # stored predictions by this scorer, by explanation

    @property
    def unit(self) -> Unit:
        return self.evidence.unit


def explain_unit(
    task: ExplainTask, *, asking: Asking, scorer: OpenScorer | None, headline: Headline, at_once: int
) -> list[Explained]:
    """Everything that the command wants of one side of a unit: each explanation, and what was newly predicted from it.

    What the store holds is not asked again. Candidates are compared on `select`, and `report` is predicted for the chosen one
    alone where every record costs a request.
    """
    shown = task.evidence.shown(asking.explainer.n_records)
    explanations = list(_answers(task, asking, shown))
    usable = [e for e in explanations if e.status == Status.OK]
    if scorer is None or not usable:
        chosen = _without_scores(explanations)
        return [Explained(replace(e, chosen=e is chosen)) for e in explanations]
    trials = Trials(scorer, task.evidence, task.tokens, at_once)
    made: dict[int, Prediction] = {}

    def predict(e: Explanation, *splits: Split) -> None:
        before = made.get(e.candidate) or task.predicted.get(e.id or 0) or begin_prediction(e, scorer)
        after = trials.extend(before, e.hypotheses, splits)
        made[e.candidate] = before if after is before else as_stored(after)

    def on_select(e: Explanation, among: Collection[Place] | None = None) -> float:
        return _or_least(select_score(task.evidence, made[e.candidate], headline, among))

    everything: tuple[Split, ...] = HELD_OUT
    first: tuple[Split, ...] = (
        everything if not scorer.asks_per_record else ("select",) if asking.chooses else ("report",)
    )
    for e in usable:
        predict(e, *first)
    best = usable[0]
    if asking.chooses:
        best = max(usable, key=on_select)  # first of equals
    shows, held = halve_select(task.unit.exemplars, task.evidence.splits, task.evidence.kinds)
    for number in range(asking.candidates, asking.candidates + asking.revise):
        mistakes = find_mistakes(task.evidence, made[best.candidate], shows)
        revised = task.found.get(number) or _revise(task, asking, shown, best, mistakes, number)
        explanations.append(revised)
        if revised.status == Status.OK:
            predict(revised, *first)
            if on_select(revised, held) > on_select(best, held):  # on records that the revision was not shown
                best = revised
    predict(best, *(everything if asking.chooses else first))
    explained = []
    for e in explanations:
        new = made.get(e.candidate)
        new = None if new is None or new is task.predicted.get(e.id or 0) else new
        scores = () if new is None else tuple(compute_scores(task.evidence, new))
        explained.append(Explained(replace(e, chosen=e is best), new, scores, task.predicted.get(e.id or 0)))
    return explained


def _answers(task: ExplainTask, asking: Asking, shown: Sequence[Exemplar]) -> Iterator[Explanation]:
    """The candidates, without revisions: those that are stored, and new ones."""
    if asking.says_several and task.found:
        yield from (task.found[candidate] for candidate in sorted(task.found))
        return
    for candidate in range(asking.candidates):
        if candidate in task.found:
            yield task.found[candidate]
            if task.found[candidate].status.has_nothing_to_ask:
                return
            continue
        asked = asking.request(task.unit.id, candidate, task.evidence.side)
        if task.evidence.is_dead:
            status, reason = why_dead(task.evidence.side)
            yield replace(asked, status=status, reason=reason)
            return
        if not shown:
            reason = f"there is no {task.evidence.strongest} record to show"
            yield replace(asked, status=Status.NO_RECORDS, reason=reason)
            return
        yield from ask(task, asking, asked, shown)


def ask(
    task: ExplainTask, asking: Asking, asked: Explanation, shown: Sequence[Exemplar]
) -> list[Explanation]:
    """The answer to one request. A request that fails or a reply that is no hypothesis is a failed attempt with its reason."""
    try:
        if asking.prompt is None or asking.engine is None:
            return [replace(asked, text=asking.explainer.render(shown, task.tokens))]
    except LlmReplyError as error:
        return [replace(asked, status=error.status, reason=error.reason, reply=error.reply)]
    return _generate(asking, asked, asking.explainer.messages(asking.prompt, shown, task.tokens), shown)


def _generate(
    asking: Asking, asked: Explanation, messages: list[Message], shown: Sequence[Exemplar]
) -> list[Explanation]:
    assert asking.engine is not None
    try:
        reply = asking.engine.generate(messages, **asked.provenance.sampling)
    except LlmReplyError as error:
        return [replace(asked, status=error.status, reason=error.reason, reply=error.reply)]
    cost = replace(
        asked.provenance,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=reply.seconds,
    )
    asked = replace(asked, provenance=cost, reply=reply.text)
    try:
        found = asking.explainer.parse(reply.text, shown)
    except LlmReplyError as error:
        return [replace(asked, status=error.status, reason=error.reason, reply=error.reply)]
    answers = [replace(asked, text=found[0].text, covers=found[0].covers)]
    free = replace(
        asked.provenance, prompt_tokens=0, completion_tokens=0, seconds=0.0
    )  # one request is paid for once
    for candidate, more in enumerate(found[1:], asked.candidate + 1):
        answers.append(
            replace(
                asked, text=more.text, covers=more.covers, candidate=candidate, provenance=free, reply=None
            )
        )
    if len(found) > 1:
        texts = tuple(one.text for one in found)
        covered = tuple(sorted({rank for one in found for rank in one.covers or ()}))
        union = replace(
            answers[-1], text=union_text(texts), covers=covered, parts=texts, candidate=MOST_MEANINGS
        )
        answers.append(union)
    return answers


def _revise(
    task: ExplainTask,
    asking: Asking,
    shown: Sequence[Exemplar],
    best: Explanation,
    mistakes: Mistakes,
    number: int,
) -> Explanation:
    """Ask again, showing where the prediction was most wrong on the `select` records of ranks 2 mod 8."""
    asked = asking.request(task.unit.id, number, task.evidence.side)
    if not mistakes:
        reason = "there is no simulated select record of a rank 2 mod 8 to show"
        return replace(asked, status=Status.NO_RECORDS, reason=reason)
    assert asking.prompt is not None
    assert asking.revision is not None
    lines = render_mistakes(mistakes, task.tokens)
    before = best.text or ""
    messages = asking.explainer.revision_messages(
        asking.prompt, asking.revision, shown, task.tokens, before, lines
    )
    return _generate(asking, asked, messages, shown)[0]


def find_mistakes(evidence: Evidence, prediction: Prediction, shown: Collection[Place]) -> Mistakes:
    """The shown `select` records that were predicted worst: (record, first token of its crop, true levels, predicted levels).

    Both are on 0..10, each scaled by its own greatest value over these records; worst is the greatest sum of squares.
    """
    records = [
        (evidence.by_place[r.kind, r.rank], r) for r in prediction.records if (r.kind, r.rank) in shown
    ]
    if not records:
        return []
    true = [evidence.truth(x)[r.first : r.first + len(r.values)] for x, r in records]
    predicted = [_known(r.values) for _, r in records]
    most, most_predicted = (max(float(values.max()) for values in side) for side in (true, predicted))
    levels = [
        (to_levels(a, most), to_levels(b, most_predicted)) for a, b in zip(true, predicted, strict=True)
    ]
    order = sorted(range(len(records)), key=lambda i: -int(((levels[i][0] - levels[i][1]) ** 2).sum()))
    return [
        (records[i][0], records[i][1].first, levels[i][0].tolist(), levels[i][1].tolist())
        for i in order[:MOST_MISTAKES]
    ]


def _known(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.nan_to_num(levels)  # a token without a prediction is shown as silent


def _or_least(score: float | None) -> float:
    """For comparing only: what has no score is below all that have one."""
    return -math.inf if score is None else score


def _without_scores(explanations: Sequence[Explanation]) -> Explanation:
    """Chosen where nothing was scored: the union where there is one, else the first that can be used, else the first."""
    usable = [e for e in explanations if e.status == Status.OK] or list(explanations)
    return next((e for e in usable if e.parts), usable[0])
