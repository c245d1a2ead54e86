"""What turns an explanation and records into scores.

A scorer says which parts of which records it looks at (`trials`, pure), asks a model what the explanation predicts of them
(`run`, the only part that asks), and compares with the truth (`score`, pure: `verify` calls it again). `plan` says what a run
would ask, for a dry run. A new scorer is a file here with `SCORER`, or a package's entry point in the group
`neuroexplain.scorers`; no other file names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import FINE, Headline, Prediction, Score, Status, Tokens
from neuroexplain.llm.engine import Usage
from neuroexplain.registry import Registry
from neuroexplain.runs import Run
from neuroexplain.scoring.side_evidence import SideEvidence, Trial

if TYPE_CHECKING:
    from neuroexplain.llm.prompts import Prompt

Needs = Literal["distributions", "vocabulary", "nothing"]


@dataclass(frozen=True)
class PredictedTrial:
    """What a scorer's model predicts of one trial."""

    values: NDArray[np.float32]  # levels [n]; NaN: no prediction, so not scored
    detail: NDArray[np.float32] | None = (
        None  # [n], beside each value; of levels the mass that fell on level tokens
    )


@dataclass(frozen=True)
class Predictions:
    """What a scorer's model predicts of all trials, in the order in which they were given."""

    trials: Sequence[PredictedTrial]
    prompt_tokens: int = 0  # what they cost


@dataclass(frozen=True)
class Request:
    """One request that a run would make."""

    n_tokens: int  # of its prompt
    key: Hashable = None  # requests with the same key are made once; None: each is made


class Scorer(ABC):
    """A way to score explanations, without a model: what is pure of it."""

    name: ClassVar[str]
    main_metric: ClassVar[str]  # always has its row, also where it is undefined
    metrics: ClassVar[tuple[str, ...]] = ()  # others, which have rows only where they have a value
    needs: ClassVar[Needs] = (
        "distributions"  # of a model: of chosen tokens (any engine), of a whole vocabulary (a local one)
    )
    codec: ClassVar[str] = "floats"  # how predictions are kept: a name of store.packing.CODECS
    asks_per_record: ClassVar[bool] = True  # whether more records are more requests; else the first costs all

    def trials(self, evidence: SideEvidence) -> list[Trial]:
        """What the scorer looks at: unless told, a crop of each held-out record of the side."""
        return evidence.crops()

    @abstractmethod
    def score(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        """The scores of a stored prediction that is ok, of all splits that it has records of."""
        ...

    @abstractmethod
    def open(self, engine: Any, run: Run) -> OpenScorer:
        """The scorer with the model that it asks; `engine` is None where it needs nothing."""
        ...

    def headline(self, run: Run) -> Headline:
        """The score that stands for a unit where this scorer is asked for."""
        return Headline(self.main_metric, run.headline.subsets)

    def failed(self, evidence: SideEvidence, prediction: Prediction) -> list[Score]:
        """The scores of a prediction that failed: the main metric's, undefined with its reason."""
        return self.undefined(evidence, prediction.status, prediction.reason)

    def undefined(self, evidence: SideEvidence, status: Status, reason: str | None) -> list[Score]:
        """The main metric's rows on `report`, undefined."""
        subsets = [f"{evidence.strongest}_and_random", evidence.strongest, "random"]
        return [Score("report", subset, self.main_metric, status, None, 0, 0, reason) for subset in subsets]


class OpenScorer(ABC):
    """A scorer and the model that it asks. A request that fails raises LlmReplyError."""

    scorer: Scorer
    engine: Any
    prompt: Prompt | None = None

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def asks_per_record(self) -> bool:
        return self.scorer.asks_per_record

    @abstractmethod
    def run(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> Predictions:
        """What the explanation predicts of the trials; it does not depend on their order."""
        ...

    def example(self) -> tuple[Sequence[int], Sequence[int], Sequence[Sequence[int]]] | None:
        """A prompt of the usual size, its rows and the ids to choose from, by which a server shows how it gives distributions.

        None where none are read.
        """
        return None

    def plan(self, explanation: str, trials: Sequence[Trial], tokens: Tokens) -> list[Request]:
        """The requests that `run` would make."""
        return []


class NoEngine:
    """In place of an engine, for scorers that ask no model."""

    engine, version, revision, in_flight = "none", None, None, 1

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage = Usage()

    def close(self) -> None:
        """There is nothing to give back."""


SCORERS: Registry[Scorer] = Registry("scorers", "SCORER", "scorer")


def compute_scores(evidence: SideEvidence, prediction: Prediction) -> list[Score]:
    """The scores of a prediction, stored or about to be: what `verify` computes again.

    Raises NeuroexplainError where its scorer is not installed.
    """
    scorer = SCORERS.load(prediction.scorer)
    if prediction.status not in FINE:
        return scorer.failed(evidence, prediction)
    return scorer.score(evidence, prediction)


def choose_headline(run: Run, metric: str | None = None, scorer: str | None = None) -> Headline:
    """The score to show and to sort by: the run's own, unless a metric or a scorer is named.

    Raises NeuroexplainError, naming what there is, for a scorer or a metric that is not known.
    """
    if metric is None and scorer is None:
        return run.headline
    named = None if scorer is None else SCORERS.load(scorer, "--scorer")
    if named is not None and metric in (None, named.main_metric):
        return named.headline(run)
    known = {name: SCORERS.load(name) for name in SCORERS.names()} if named is None else {named.name: named}
    by_metric = {m: one for one in known.values() for m in (*one.metrics, one.main_metric)}
    if metric not in by_metric:
        from neuroexplain.errors import NeuroexplainError

        raise NeuroexplainError(f"--metric {metric!r} is not known. There is {', '.join(sorted(by_metric))}.")
    return Headline(metric, by_metric[metric].headline(run).subsets)
