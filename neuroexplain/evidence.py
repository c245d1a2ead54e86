"""What is known of a unit: records, explanations, predictions and scores, as frozen types.

One file, a little over the usual length: the types name each other, and every folder imports several of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from neuroexplain.units import PEAK_INDEX, SEGMENT_LENGTH, STRONGEST, Kind, Side, UnitId, UnitSide

if TYPE_CHECKING:  # `query` starts sooner without numpy
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["explain", "select", "report"]
SPLITS: tuple[Split, ...] = ("explain", "select", "report")
Subset = Literal["population", "top_and_random", "top", "random", "bottom_and_random", "bottom", "hard"]
POPULATION: Subset = "population"  # random and sampled records, weighted
# Of these the windows where a unit fires, and windows of its look-alikes where it does not.
HARD: Subset = "hard"
INTRUDER = "intruder_found", "windows"  # metric and subset: how often a judge finds the odd of five windows
INTRUDER_CHANCE = 0.2  # what guessing earns of it
INTRUDER_CLEAR = 0.5  # an interval that reaches from chance to above it tells nothing
SUBSETS: Mapping[Side, tuple[Subset, ...]] = {
    "positive": ("top_and_random", "top", "random"),
    "negative": ("bottom_and_random", "bottom", "random"),
}


def headline_subset(side: Side, n_sampled: int, n_random: int) -> Subset:
    """The records whose score stands for a side of a unit, in a run that draws so many.

    The population score where there are sampled records: an estimate for the whole corpus. Without sampled
    records it is the score of Bills et al. (2023), over the side's strongest and random records. Imported
    arrays have no random records: the strongest records alone count.
    """
    if n_sampled:
        return POPULATION
    both, strongest, _ = SUBSETS[side]
    return both if n_random else strongest


class Status(StrEnum):
    """How an attempt to explain, predict or score ended. Only `ok` has a value; the others have a reason."""

    OK = "ok"
    DEAD = "dead"  # the unit never fires: there is nothing to explain
    NO_RECORDS = "no_records"  # there are no records to show or to score
    NOT_CHOSEN = "not_chosen"  # another candidate was chosen, so this one was not scored on `report`
    CONTEXT_TOO_LONG = "context_too_long"  # the prompt does not fit into the model's context
    LLM_ERROR = "llm_error"  # the request failed
    PARSE_ERROR = "parse_error"  # the reply holds no hypothesis
    CONSTANT_ACTIVATIONS = "constant_activations"  # a correlation with them is undefined
    CONSTANT_SIMULATION = "constant_simulation"  # likewise
    LOW_DIGIT_MASS = "low_digit_mass"  # too few tokens came back with a prediction
    FEW_RECORDS = "few_records"  # one or two records have nearly all of the weight
    LITTLE_VARIATION = "little_variation"  # the tokens that are left vary little

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
        """Whether the unit's records alone decided the status, so that no LLM was asked."""
        return self in (Status.DEAD, Status.NO_RECORDS)


NOT_FAILED = tuple(status for status in Status if not status.failed)


def failures_among(statuses: Iterable[Status]) -> Counter[str]:
    """How many of the attempts failed, by status."""
    return Counter(status for status in statuses if status.failed)


HUMAN = "human"  # the explainer of hypotheses that people write
TextPart = Literal["whole", "rule"]  # of an explanation, from which something is predicted and scored
TEXT_PARTS: tuple[TextPart, ...] = ("whole", "rule")
RecordKey = tuple[Kind, int]  # a record's kind and rank, by which a unit's records are told apart


@dataclass(frozen=True, slots=True)
class Segment:
    """128 consecutive token ids of the stream."""

    segment: int  # its number in the stream
    token_ids: NDArray[np.uint32]  # [128]
    split: Split | None = None  # of its tokens, by their passages; None if they have different ones


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A record kept as evidence for a unit."""

    unit: UnitId
    kind: Kind
    rank: int  # 0 is strongest; random and sampled: see design.md
    segment: int
    start: int  # the record's first token in the segment
    document: int | None  # number of the peak's document; None if the source does not tell
    token_offset: int | None  # of the record's first token in that document; may be negative
    activation: float  # at the peak
    token_ids: NDArray[np.uint32]  # [64]
    activations: NDArray[np.float32]  # [64], raw; bfloat16 is widened without loss
    stride: int = SEGMENT_LENGTH  # tokens from one segment number to the next; below 128 segments overlap
    split: Split | None = None  # of its segment; None also in runs that split by rank
    side: Side | None = None  # whose sample it is in; None unless it is sampled
    size: float | None = None  # the sum of squares by which it was drawn; None unless it is sampled

    @property
    def peak_index(self) -> int:
        """The place of its strongest activation in the record."""
        if self.kind in STRONGEST.values():
            return PEAK_INDEX
        values = -self.activations if self.side == "negative" else self.activations
        return int(values.argmax())

    @property
    def key(self) -> RecordKey:
        return self.kind, self.rank

    def shares_segment(self, other: Exemplar) -> bool:
        """Whether the two segments have a token of the stream in common."""
        return abs(self.segment - other.segment) * self.stride < SEGMENT_LENGTH


@dataclass(frozen=True, slots=True)
class Stats:
    """A unit's activations over tokens 64..127 of every segment."""

    mean: float
    std: float
    min: float
    max: float
    share_positive: float  # of tokens above 0


@dataclass(frozen=True, slots=True)
class VocabularyEntry:
    """One token of the subject's vocabulary."""

    token_id: int
    text: str  # with its leading space; U+FFFD in place of a part of a character
    special: bool
    data: bytes | None = (
        None  # the bytes that it stands for; None if an earlier version stored its text alone
    )
    is_byte: bool = False  # whether it is one byte of a byte fallback, as `<0xE2>`

    @property
    def label(self) -> str:
        """How the token is shown alone: its text, or bytes that are not whole characters: `<F0 9F>`."""
        is_part = "\ufffd" in self.text and self.data not in (None, "\ufffd".encode())
        return f"<{self.data.hex(' ').upper()}>" if is_part and self.data is not None else self.text


Tokens = Mapping[int, VocabularyEntry]  # by id


def texts_in_context(entries: Sequence[VocabularyEntry]) -> list[str]:
    """The text of each token where it stands: joined they are the text that the tokens spell.

    A character that several tokens spell stands with the first of them, and the others are empty. Bytes that
    are no character, as at the edges of a record, are U+FFFD.
    """
    if not any("\ufffd" in entry.text and entry.data is not None for entry in entries):
        return [entry.text for entry in entries]
    texts = [""] * len(entries)
    owners: list[int] = []  # of the bytes of `waiting`: places in `entries`
    waiting = b""
    for place, entry in enumerate(entries):
        if entry.data is None:
            _spell(waiting, owners, entries, texts)
            waiting, owners, texts[place] = b"", [], entry.text
        else:
            waiting += entry.data
            owners += [place] * len(entry.data)
    _spell(waiting, owners, entries, texts)
    return texts


def _spell(data: bytes, owners: Sequence[int], entries: Sequence[VocabularyEntry], texts: list[str]) -> None:
    """Add each character of `data` to the text of the entry that owns its first byte."""
    place = 0
    while place < len(data):
        try:
            characters, bad = data[place:].decode(), range(len(data), len(data))
        except UnicodeDecodeError as error:
            characters = data[place : place + error.start].decode()
            bad = range(place + error.start, place + error.end)
        for character in characters:
            texts[owners[place]] += character
            place += len(character.encode())
        if bad:  # tokenizers replace each byte of a byte fallback, else the whole sequence
            for byte in bad if all(entries[owners[byte]].is_byte for byte in bad) else bad[:1]:
                texts[owners[byte]] += "\ufffd"
            place = bad.stop


@dataclass(frozen=True, slots=True)
class Unit:
    """What collecting stored about one unit, exemplars included."""

    id: UnitId
    status: Status  # ok or dead
    stats: Stats | None  # None if the data was imported without
    exemplars: tuple[Exemplar, ...]  # top, bottom, random, sampled; each in rank order
    promoted: tuple[tuple[int, float], ...]  # (token id, logit), strongest first
    suppressed: tuple[tuple[int, float], ...]
    # The largest size / uniform outside of each sample, 0 if every segment with a size is inside.
    thresholds: Mapping[tuple[Side, Split], float] = field(default_factory=dict)
    histogram: tuple[int, ...] | None = None  # of activations above 0, of sparse units: see histogram.EDGES
    # (unit, cosine) of the latents whose directions are most like this one's, the nearest first.
    nearest: tuple[tuple[int, float], ...] = ()
    # Random records of `report` that a scorer reads beside the others; none unless they were asked for.
    background: tuple[Exemplar, ...] = ()
    # Records of `report` of each side's look-alikes, with what this unit does there; none unless they were
    # asked for, and a side is missing where a pass of the subject has not measured it.
    hard: Mapping[Side, tuple[Exemplar, ...]] = field(default_factory=dict)


def is_side_dead(side: Side, peak: float | None) -> bool:
    """Whether a side never fires: its strongest record's activation is not beyond 0, or it has no record."""
    return peak is None or (peak if side == "positive" else -peak) <= 0


def why_dead(side: Side) -> str:
    """The reason of an explanation with the status `dead`."""
    return f"its strongest record is not {'above' if side == 'positive' else 'below'} 0"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an LLM's answer came from."""

    engine: str  # local, server, embedding, or none for explainers that ask no LLM
    engine_version: str | None
    model: str
    model_revision: str | None
    prompt_sha256: str | None  # of the prompt file; None without a prompt
    sampling: Mapping[str, Any] = field(default_factory=dict)  # temperature, max_tokens, seed, ...
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    created_at: str | None = None  # ISO 8601, UTC; None until it is stored


@dataclass(frozen=True, slots=True)
class Explanation:
    """A hypothesis about a unit in words, or the failed attempt to get one."""

    unit: UnitId
    explainer: str  # a name of explaining.explainers.EXPLAINERS, or `human` for a person's own
    status: Status
    text: str | None  # None unless status is ok
    provenance: Provenance
    candidate: int = 0
    chosen: bool = True
    reason: str | None = None  # of the status, unless it is ok
    reply: str | None = None  # the raw answer that could not be used, kept for people to read
    covers: tuple[int, ...] | None = None  # `meanings`: ranks of the top records that the LLM says it covers
    parts: tuple[str, ...] | None = None  # hypotheses of a union, whose level is the greatest of theirs
    id: int | None = None  # set by the store
    side: Side = "positive"
    # The text without its examples, and these; None where the text is not made of a rule and examples.
    rule: str | None = None
    examples: tuple[str, ...] | None = None

    @property
    def unit_side(self) -> UnitSide:
        """What it explains."""
        return self.unit, self.side

    @property
    def text_parts(self) -> tuple[TextPart, ...]:
        """What of it is scored: the whole text, and its rule alone if it has one."""
        return TEXT_PARTS if self.rule is not None else ("whole",)

    @property
    def ranking_part(self) -> TextPart:
        """What candidates are compared by: the rule, where examples stand behind it."""
        return self.text_parts[-1]

    def text_of(self, part: TextPart) -> str:
        """The whole text or the rule; empty if there is none."""
        return (self.rule if part == "rule" else self.text) or ""

    def hypotheses_of(self, part: TextPart) -> tuple[str, ...]:
        """What is simulated: the text, or each part of a union."""
        return self.parts if self.parts and part == "whole" else (self.text_of(part),)

    @property
    def is_by_person(self) -> bool:
        """Whether a person wrote it. It is scored like the others, but never chosen or compared."""
        return self.explainer == HUMAN

    @property
    def request_key(self) -> str:
        """A hash of the request: a unit has one explanation for each, however often it is repeated.

        A person's explanation is its own request, so its text is part of the key.
        """
        import hashlib  # `query` starts sooner without these two
        import json

        by = self.provenance
        request: list[Any] = [self.explainer, by.model, by.model_revision, by.prompt_sha256]
        request += [dict(by.sampling), self.candidate]
        if self.is_by_person:
            request.append(self.text)
        if self.side != "positive":  # keys of the version without sides stay valid
            request.append(self.side)
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def choose_unscored(explanations: Sequence[Explanation]) -> Explanation:
    """The chosen one of a side's explanations without scores: the first union, else the first usable one.

    If none is usable, it is the first. There must be at least one.
    """
    usable = [e for e in explanations if e.status == Status.OK] or list(explanations)
    return next((e for e in usable if e.parts), usable[0])


@dataclass(frozen=True, slots=True)
class PredictedRecord:
    """What a scorer predicted of one record, from token `first` on. Its codec says what the numbers mean."""

    kind: Kind
    rank: int
    first: int  # the first token in the record that was scored
    values: NDArray[np.float32]  # levels [32]; NaN is no prediction, and such a token is not scored
    detail: NDArray[np.float32] | None = None  # [32]; with levels: the probability of all level tokens
    control: NDArray[np.float32] | None = None  # like values, predicted from the control's text

    @property
    def key(self) -> RecordKey:
        return self.kind, self.rank


@dataclass(frozen=True, slots=True)
class Prediction:
    """All that one scorer and model predicted from an explanation or its rule, or the failed attempt."""

    explanation_id: int
    unit: UnitId
    scorer: str  # digits, lexical, ...: a name of scorers.base.SCORERS
    status: Status
    records: tuple[PredictedRecord, ...]
    provenance: Provenance
    reason: str | None = None
    reply: str | None = None
    control_explanation_id: int | None = None  # whose text gave `control`
    id: int | None = None  # set by the store
    codec: str = "levels"  # how the store keeps the records' numbers: a name of scoring.codecs.CODECS
    # The hypotheses that were read, as the store joins them from the explanations.
    text: str = ""
    control_text: str | None = None
    # What was read in runs that have samples: how many sampled and how many random records of a split,
    # whether also the strongest ones, and whether the records of `report`.
    n_read: int | None = None
    with_bills: bool | None = None
    has_report: bool | None = None
    part: TextPart = "whole"  # what of the explanation was read
    n_background: int | None = None  # how many records of the background are drawn; None: there is none
    # How strongly each record may fire, by which those of the background were drawn; None: all were read.
    guesses: tuple[float, ...] | None = None
    n_hard: int | None = None  # how many hard negatives are read; None: they were not measured then

    @property
    def source(self) -> tuple[int, TextPart]:
        """What it was predicted from: an explanation's id, and the part of its text."""
        return self.explanation_id, self.part


@dataclass(frozen=True, slots=True)
class Score:
    """How well one explanation's predictions agree with the truth, by one metric.

    It is computed over the records of one split and one subset.
    """

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
    ci_reason: str | None = None  # why there is no interval; also None if the metric never has one
    control: float | None = None
    control_explanation_id: int | None = None
    control_reason: str | None = None  # why there is no control; also None if the metric never has one
    effective_records: float | None = None  # equally likely ones that would tell as much; None: no weights


@dataclass(frozen=True, slots=True)
class Headline:
    """The score that stands for a unit: a metric on the `report` records of a subset.

    Each side has its own subset, and a score is of one side, so a score has at most one of the subsets.
    """

    metric: str
    subsets: tuple[str, ...]

    def is_of(self, score: Score) -> bool:
        """Whether a score is the one that stands for its unit."""
        return score.split == "report" and score.metric == self.metric and score.subset in self.subsets

    def __str__(self) -> str:
        return f"{self.metric}, {' or '.join(self.subsets)}"


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score with its unit, explanation, scorer and scoring model."""

    unit: UnitId
    explanation_id: int
    scorer: str
    scorer_model: str
    score: Score


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """A new prediction with its scores: what is stored together."""

    prediction: Prediction
    scores: tuple[Score, ...] = ()
    replaces: Prediction | None = None  # the stored prediction that it continues


@dataclass(frozen=True, slots=True)
class ExplanationResult:
    """An explanation with what is newly predicted from it: what is stored together."""

    explanation: Explanation
    predictions: tuple[PredictionResult, ...] = ()  # none if nothing new was predicted


@dataclass(frozen=True, slots=True)
class Failure:
    """An explanation or a prediction that failed."""

    unit: UnitId
    what: str  # the explainer, or the scorer
    status: Status
    reason: str | None
    reply: str | None
