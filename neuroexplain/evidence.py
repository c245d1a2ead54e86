"""What is known of a unit: records, explanations, predictions and scores, as frozen types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # numpy is not imported to look at rows of text: `query` starts quickly
    import numpy as np
    from numpy.typing import NDArray
from neuroexplain.units import SEGMENT_LENGTH, Kind, Side, UnitId

Split = Literal["explain", "select", "report"]
Subset = Literal["top_and_random", "top", "random", "bottom_and_random", "bottom"]
SUBSETS: Mapping[Side, tuple[Subset, ...]] = {
    "positive": ("top_and_random", "top", "random"),
    "negative": ("bottom_and_random", "bottom", "random"),
}


class Status(StrEnum):
    """How an attempt to explain, to predict or to score ended. Only `ok` has a value; the others come with a reason."""

    OK = "ok"
    DEAD = "dead"  # the unit never fires: there is nothing to explain
    NO_RECORDS = "no_records"  # there are no records to show or to score
    NOT_CHOSEN = "not_chosen"  # another candidate was chosen, so this one was not scored on `report`
    CONTEXT_TOO_LONG = "context_too_long"  # the prompt does not fit into the model's context
    LLM_ERROR = "llm_error"  # the request failed
    PARSE_ERROR = "parse_error"  # the reply holds no hypothesis
    CONSTANT_ACTIVATIONS = "constant_activations"
    CONSTANT_SIMULATION = "constant_simulation"
    LOW_DIGIT_MASS = "low_digit_mass"  # too few tokens came back with a prediction

    @property
    def failed(self) -> bool:
        """Whether something went wrong that a person may want to look at."""
        return self not in (Status.OK, Status.DEAD, Status.NOT_CHOSEN)

    @property
    def is_worth_retrying(self) -> bool:
        """Whether `--retry-failed` tries again."""
        return self.failed

    @property
    def has_nothing_to_ask(self) -> bool:
        """Whether the unit's records alone decided it, so that no LLM was asked."""
        return self in (Status.DEAD, Status.NO_RECORDS)


FINE = tuple(status for status in Status if not status.failed)


@dataclass(frozen=True, slots=True)
class Headline:
    """Which score stands for a unit wherever a single value is shown: a metric on the `report` records of a subset.

    Each side has a subset of its own; a score is of one side, so at most one of them has it.
    """

    metric: str
    subsets: tuple[str, ...]

    def is_of(self, score: Score) -> bool:
        return score.split == "report" and score.metric == self.metric and score.subset in self.subsets

    def __str__(self) -> str:
        return f"{self.metric}, {' or '.join(self.subsets)}"


@dataclass(frozen=True, slots=True)
class Segment:
    """128 consecutive token ids of the stream."""

    segment: int  # number of the grid cell in the token stream
    token_ids: NDArray[np.uint32]  # [128]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A record kept as evidence for a neuron."""

    unit: UnitId
    kind: Kind
    rank: int  # 0 is strongest; random: order of the draw
    segment: int
    start: int  # the record's first token in the segment
    document: int | None  # number of the peak's document; None where the source does not tell
    token_offset: int | None  # of the record's first token in that document; may be negative
    activation: float  # at the peak
    token_ids: NDArray[np.uint32]  # [64]
    activations: NDArray[np.float32]  # [64], raw; bfloat16 is widened without loss
    stride: int = SEGMENT_LENGTH  # tokens from one segment number to the next; below 128 segments overlap

    def shares_segment(self, other: Exemplar) -> bool:
        """Whether the two segments have a token of the stream in common."""
        return abs(self.segment - other.segment) * self.stride < SEGMENT_LENGTH


@dataclass(frozen=True, slots=True)
class Stats:
    """A neuron's activations over tokens 64..127 of every segment."""

    mean: float
    std: float
    min: float
    max: float
    share_positive: float  # of tokens above 0


@dataclass(frozen=True, slots=True)
class VocabularyEntry:
    """One token of the subject's vocabulary as it is shown."""

    token_id: int
    text: str  # decode([id]); U+FFFD where it is part of a character
    special: bool


Tokens = Mapping[int, VocabularyEntry]  # by id


@dataclass(frozen=True, slots=True)
class Unit:
    """What collecting stored about one neuron, exemplars included."""

    id: UnitId
    status: Status  # ok or dead
    stats: Stats | None  # None where the data was imported without
    exemplars: tuple[Exemplar, ...]  # top, bottom, random; each in rank order
    promoted: tuple[tuple[int, float], ...]  # (token id, logit), strongest first
    suppressed: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an LLM's answer came from."""

    engine: str  # local, server, or none for explainers that ask no LLM
    engine_version: str | None
    model: str
    model_revision: str | None
    prompt_sha256: str | None  # of the prompt file; None where there is no prompt
    sampling: Mapping[str, Any] = field(default_factory=dict)  # temperature, max_tokens, seed, ...
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    created_at: str | None = None  # ISO 8601, UTC; None until it is stored


@dataclass(frozen=True, slots=True)
class Explanation:
    """A hypothesis about a neuron in words, or the failed attempt to get one."""

    unit: UnitId
    explainer: str  # pairs, excerpts, tokens; human for a person's own
    status: Status
    text: str | None  # None unless status is ok
    provenance: Provenance
    candidate: int = 0
    chosen: bool = True
    reason: str | None = None
    reply: str | None = None  # the raw answer, kept for looking where it could not be used
    covers: tuple[int, ...] | None = (
        None  # `meanings`: ranks of the top records that this hypothesis is said to cover
    )
    parts: tuple[str, ...] | None = (
        None  # of a union: its hypotheses; the greatest of their simulated levels is its own
    )
    id: int | None = None  # set by the store
    side: Side = "positive"

    @property
    def hypotheses(self) -> tuple[str, ...]:
        """What is simulated: the text, or each part of a union."""
        return self.parts or (self.text or "",)

    @property
    def request_key(self) -> str:
        """A hash of the request: a unit has one explanation for each, however often it is repeated.

        A person's explanation is its own request, so its text is part of the key.
        """
        import hashlib  # here, since `query` starts sooner without it
        import json

        by = self.provenance
        request: list[Any] = [self.explainer, by.model, by.model_revision, by.prompt_sha256]
        request += [dict(by.sampling), self.candidate]
        if self.explainer == "human":
            request.append(self.text)
        if self.side != "positive":  # keys of the version without sides stay valid
            request.append(self.side)
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PredictedRecord:
    """What a scorer predicted of one record, from its token `first` on. The scorer's codec says what numbers mean."""

    kind: Kind
    rank: int
    first: int  # the first token in the record that was scored
    values: NDArray[np.float32]  # levels [32]; NaN where there is no prediction: such a token is not scored
    detail: NDArray[np.float32] | None = (
        None  # beside each value; of levels the probability that fell on level tokens
    )
    control: NDArray[np.float32] | None = None  # like values, predicted from the control's text


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that one scorer and model predicted from one explanation, or the failed attempt."""

    explanation_id: int
    unit: UnitId
    scorer: str  # digits, lexical, ...: a name of scorers.base.SCORERS
    status: Status
    records: tuple[PredictedRecord, ...]
    provenance: Provenance
    reason: str | None = None
    reply: str | None = None
    control_explanation_id: int | None = None  # whose text gave `control`
    id: int | None = None
    codec: str = "levels"  # how the store keeps the records' numbers


@dataclass(frozen=True, slots=True)
class Score:
    """How well one explanation's predictions agree with the truth: one metric on one split and subset of records."""

    split: Split
    subset: str
    metric: str
    status: Status
    value: float | None
    n_tokens: int
    n_records: int
    reason: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_reason: str | None = None  # why there is no interval; None too where the metric never has one
    control: float | None = None
    control_explanation_id: int | None = None
    control_reason: str | None = None  # why there is no control; None too where the metric never has one


@dataclass(frozen=True, slots=True)
class Explained:
    """One explanation with what was found out about it: what is stored together."""

    explanation: Explanation
    prediction: Prediction | None = None  # None: nothing new was predicted
    scores: tuple[Score, ...] = ()
    replaces: Prediction | None = None  # the stored prediction that this one goes on from


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score together with whose it is."""

    unit: UnitId
    explanation_id: int
    scorer: str
    scorer_model: str
    score: Score


@dataclass(frozen=True, slots=True)
class Failure:
    """An explanation or a prediction that could not be had."""

    unit: UnitId
    what: str  # the explainer, or the scorer
    status: Status
    reason: str | None
    reply: str | None
