"""The protocol of a scorer, which turns an explanation and records into scores.

A scorer chooses the parts of records that it looks at (`trials`, pure), has a model predict them from the
explanation (`run`), and compares the predictions with the truth (`score`, pure; `verify` calls it again).
`plan` lists the requests of `run` for a dry run. A new scorer is one file in this folder with `SCORER`, or an
entry point of a package in the group `neuroexplain.scorers`. No other file names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from neuroexplain.errors import NeuroexplainError
from neuroexplain.evidence import (
    NOT_FAILED,
    POPULATION,
    Headline,
    Prediction,
    RecordKey,
    Score,
    Status,
    Tokens,
)
from neuroexplain.llm.engine import Usage
from neuroexplain.registry import Registry
from neuroexplain.runs import Run
from neuroexplain.scoring.side_evidence import HELD_OUT, BackgroundDraw, SideEvidence, Trial
from neuroexplain.scoring.windows import hard_negatives

if TYPE_CHECKING:
    from neuroexplain.llm.distributions import LogprobRequest, NextTokenRequest
    from neuroexplain.llm.prompts import Prompt

# Sampled and random records of a split that a scorer reads, each: of a scorer that costs nothing, and of one
# that asks a model for each record (error against prompt tokens: docs/score-accuracy.md).
RECORDS_OF_CHEAP, RECORDS_OF_COSTLY = 16, 8
DRAWN_BACKGROUND = (
    3  # records that a costly scorer draws from a background, for each sampled one that it reads
)

Needs = Literal["distributions", "vectors", "nothing"]


@dataclass(frozen=True)
class PredictedTrial:
    """What a scorer's model predicts for one trial."""

    values: NDArray[np.float32]  # [n], for simulators levels; NaN: no prediction, so not scored
    detail: NDArray[np.float32] | None = None  # [n], for simulators the mass on all level tokens


@dataclass(frozen=True)
class Predictions:
    """What a scorer's model predicts for several trials, in their order."""

    trials: Sequence[PredictedTrial]
    prompt_tokens: int = 0  # sent for them


@dataclass(frozen=True)
class Request:
    """One request to a scorer's model."""

    n_tokens: int  # of its prompt
    key: Hashable = None  # of several requests with the same key only one is sent; with None all are


class Scorer(ABC):
    """The part of a scorer that needs no model: its names, its trials and its scores."""

    name: ClassVar[str]
    main_metric: ClassVar[str]  # stored also if it is undefined
    metrics: ClassVar[tuple[str, ...]] = ()  # further ones, stored if they have a value
    # What its model must give: the probabilities of chosen tokens, an engine; the vectors of texts, an
    # embedder; nothing if the scorer asks no model.
    needs: ClassVar[Needs] = "distributions"
    codec: ClassVar[str] = "floats"  # how predictions are stored: a key of scoring.codecs.CODECS
    asks_per_record: ClassVar[bool] = True  # whether more records need more requests
    reads_explanation: ClassVar[bool] = True  # if not, another explanation is no control
    reads_background: ClassVar[bool] = True  # where a run has one; if not, the random records of every unit
    reads_hard: ClassVar[bool] = False  # whether it reads hard negatives, where they were measured
    predicts_tokens: ClassVar[bool] = True  # whether a record has a value for each token, else one for all
    records_of_split: ClassVar[int | None] = None  # that it reads by default; None: by what a record costs

    def trials(self, evidence: SideEvidence) -> list[Trial]:
        """The parts of records that the scorer looks at. By default a crop of each held-out record."""
        return evidence.crops()

    @abstractmethod
    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        """The scores of a prediction with the status `ok`, for all splits that it has records of."""
        ...

    @abstractmethod
    def open(self, engine: Any, run: Run) -> OpenScorer:
        """The scorer with its model: by `needs` an engine, an embedder or None."""
        ...

    def headline(self, run: Run) -> Headline:
        """Which of this scorer's scores stands for a unit."""
        return Headline(self.main_metric, run.headline.subsets)

    def subsets_of(self, run: Run, metric: str) -> tuple[str, ...]:
        """The records whose score by one of its metrics stands for a unit, one subset for each side.

        Empty if a run of this kind has no such scores.
        """
        return self.headline(run).subsets

    def why_no_control(self, prediction: Prediction) -> str | None:
        """Why a prediction has no control; None if it has one."""
        if prediction.control_explanation_id is not None:
            return None
        if prediction.reason:
            return prediction.reason
        return "not asked for" if self.asks_per_record else "no other explanation in this command"

    def failed(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        """The scores of a failed prediction: undefined, with the prediction's status and reason."""
        return self.undefined(evidence, prediction.status, prediction.reason)

    def undefined(self, evidence: SideEvidence, status: Status, reason: str | None) -> list[Score]:
        """Undefined scores of the main metric on `report`, for each of the side's subsets of records."""
        subsets = [f"{evidence.strongest}_and_random", evidence.strongest, "random"]
        if evidence.n_sampled:
            subsets = [POPULATION]
        return [Score("report", subset, self.main_metric, status, None, 0, 0, reason) for subset in subsets]


class OpenScorer(ABC):
    """A scorer and its model. A failed request raises LlmReplyError.

    n_read: how many sampled and how many random records of a split it reads in runs that have samples.
    with_bills: whether it also reads the strongest records there, for Bills' score. By default that depends
    on what a record costs.
    """

    scorer: Scorer
    engine: Any
    prompt: Prompt | None = None
    n_read: int | None = None
    with_bills: bool | None = None
    guesser: OpenScorer | None = None  # guesses where an explanation fires, to draw from a background by

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def asks_per_record(self) -> bool:
        return self.scorer.asks_per_record

    def records_read(self, evidence: SideEvidence) -> int | None:
        """n_read of a prediction from this evidence; None in runs without samples."""
        return self.records_of_split if evidence.n_sampled else None

    @property
    def records_of_split(self) -> int:
        """How many sampled and how many random records of a split it reads."""
        by_cost = RECORDS_OF_COSTLY if self.asks_per_record else RECORDS_OF_CHEAP
        return self.n_read or self.scorer.records_of_split or by_cost

    def background_read(self, evidence: SideEvidence, n_read: int | None) -> int | None:
        """How many records of the background it reads; None without one. All that cost nothing."""
        if not self.scorer.reads_background or not evidence.unit.background or n_read is None:
            return None
        n = len(evidence.background_frame())
        return min(n, DRAWN_BACKGROUND * n_read) if self.asks_per_record else n

    def hard_read(self, evidence: SideEvidence, n_read: int | None) -> int | None:
        """How many hard negatives it reads, at most n_read; None where they were not measured."""
        if not self.scorer.reads_hard or evidence.hard is None or n_read is None:
            return None
        return min(n_read, len(hard_negatives(evidence)))

    @property
    def reads_strongest(self) -> bool:
        """Whether the strongest records are read where there are samples too."""
        return not self.asks_per_record if self.with_bills is None else self.with_bills

    def has_read(self, prediction: Prediction) -> bool:
        """Whether a stored prediction has as many records of a split as this scorer reads."""
        if prediction.status != Status.OK or prediction.n_read is None:
            return True
        has_strongest = bool(prediction.with_bills) or not self.reads_strongest
        return has_strongest and prediction.n_read >= self.records_of_split

    @abstractmethod
    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        """What the model predicts for the trials from the explanation. It does not depend on their order."""
        ...

    def example(self) -> LogprobRequest | NextTokenRequest | None:
        """A request of usual size, to choose a server's log-probability method by; None if none is sent."""
        return None

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        """The requests that `run` would send."""
        return []


def trials_read(
    scorer: Scorer,
    evidence: SideEvidence,
    n_read: int | None,
    with_bills: bool | None,
    background: BackgroundDraw | None = None,
    n_hard: int | None = None,
) -> list[Trial]:
    """The trials of a prediction: see Prediction.n_read. With None for n_read, all trials of the scorer.

    Those of the population, with_bills what Bills' score reads (the strongest records and as many random
    ones), and the first n_hard hard negatives.
    """
    trials = scorer.trials(evidence)
    if n_read is None:
        return trials
    read: set[RecordKey] = {t.key for t in [t for t in trials if t.kind == "hard"][: n_hard or 0]}
    for split in HELD_OUT:
        if with_bills:
            strongest = [t.key for t in trials if t.split == split and t.kind == evidence.strongest]
            random = [t.key for t in trials if t.split == split and t.kind == "random"]
            read |= {*strongest, *random[: len(strongest)]}
        read |= {d.record.key for d in evidence.draw(split, n_read, background)}
    return [trial for trial in trials if trial.key in read]


class NoEngine:
    """Stands for the engine of a scorer that asks no LLM."""

    engine, version, in_flight, n_servers = "none", None, 1, None
    revision: str | None = None

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage = Usage()

    def close(self) -> None:
        """Nothing to do."""


SCORERS: Registry[Scorer] = Registry("scorers", "SCORER", "scorer")


def compute_scores(evidence: SideEvidence, prediction: Prediction) -> list[Score]:
    """The scores of a prediction, as they are stored and as `verify` computes them again.

    Raises NeuroexplainError if its scorer is not installed.
    """
    scorer = SCORERS.load(prediction.scorer)
    if prediction.status not in NOT_FAILED:
        return scorer.failed(evidence, prediction)
    return scorer.score(evidence, prediction)


def main_metrics() -> tuple[str, ...]:
    """The main metrics of all scorers: those that a failed prediction has an undefined score of."""
    return tuple(sorted({SCORERS.load(name).main_metric for name in SCORERS.names()}))


def choose_headline(run: Run, metric: str | None = None, scorer: str | None = None) -> Headline:
    """The score to show and to sort by: the run's own unless a metric or a scorer is named.

    A metric is that of the population where the run has sampled records and the metric is defined on them,
    else that of Bills' records. Raises NeuroexplainError for an unknown scorer or metric, with the known
    ones, and for a metric that this run cannot have.
    """
    if metric is None and scorer is None:
        return run.headline
    if scorer is not None:
        scorers = [SCORERS.load(scorer, "--scorer")]
        if metric in (None, scorers[0].main_metric):
            return scorers[0].headline(run)
    else:
        scorers = [SCORERS.load(name) for name in SCORERS.names()]
    by_metric = {m: candidate for candidate in scorers for m in (*candidate.metrics, candidate.main_metric)}
    if metric not in by_metric:
        raise NeuroexplainError(f"--metric {metric!r} is not known. There is {', '.join(sorted(by_metric))}.")
    subsets = by_metric[metric].subsets_of(run, metric)
    if not subsets:
        raise NeuroexplainError(
            f"Run {run.id} has no {metric}, because it has no sampled records. "
            "Collect again to have them, or leave out --metric."
        )
    return Headline(metric, subsets)
