"""The words of the system as frozen types: numpy at most, no torch, no SQL, no terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # numpy is not imported to look at rows of text: `query` starts quickly
    import numpy as np
    from numpy.typing import NDArray

SEGMENT_LENGTH = 128  # tokens that the subject reads at once
RECORD_LENGTH = 64  # tokens of a record
PEAK_INDEX = 32  # the peak's place in a top or bottom record: 32 tokens before it, 31 after
RANDOM_START = 64  # a random record is tokens 64..127 of its segment
CROP_LENGTH = 32  # tokens of a record that a simulator sees and is scored on

Kind = Literal["top", "bottom", "random"]
Split = Literal["explain", "select", "report"]
Sign = Literal["positive", "negative", "both"]
Side = Literal["positive", "negative"]
Subset = Literal["top_and_random", "top", "random", "bottom_and_random", "bottom"]
KINDS: tuple[Kind, ...] = ("top", "bottom", "random")
STRONGEST: Mapping[Side, Kind] = {"positive": "top", "negative": "bottom"}  # the records where a side is strongest
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


@dataclass(frozen=True, order=True, slots=True)
class UnitId:
    """One unit of a layer's source within a run, both counted from 0; written `15:16`."""

    layer: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> UnitId:
        """Read `15:16`. Raises ValueError for anything else."""
        match = re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\s*", text, re.ASCII)
        if match is None:
            raise ValueError(f"a unit is written LAYER:UNIT, like 15:16; found {text!r}")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run reads the units of one layer."""

    layer: int
    kind: str  # mlp, heads, residual: a name of sources.base.SOURCES
    module: str | None  # path from the subject's base model; None where arrays were imported that do not say it
    side: Literal["input", "output"]  # of the module
    width: int  # units
    dtype: str  # of activations
    group_size: int | None = None  # units that belong together, as the dimensions of a head; None: they do not
    encoder: str | None = None  # the dictionary that makes units of what is read; None: what is read are the units

    def is_like(self, other: Source) -> bool:
        """Whether both read the same units, whatever the dtype; a module that is not known may be any."""
        is_module_alike = None in (self.module, other.module) or self.module == other.module
        return is_module_alike and replace(self, module=None, dtype="") == replace(other, module=None, dtype="")

    def label(self, index: int) -> str:
        """How a unit is called within its layer: `16`; of groups, group and place: `3.40`."""
        return str(index) if self.group_size is None else f"{index // self.group_size}.{index % self.group_size}"


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
class ExemplarArrays:
    """The exemplars of one kind for neurons `0..width` of one layer, in rank order.

    Unused places (fewer candidates than `top_k`) come last and are not counted in `counts`.
    """

    counts: NDArray[np.int64]  # [width], exemplars of each neuron
    segments: NDArray[np.uint32]  # [width, k]
    starts: NDArray[np.uint8]  # [width, k]
    documents: NDArray[np.int32]  # [width, k]; -1 where the source does not tell
    token_offsets: NDArray[np.int32]  # [width, k]
    peaks: NDArray[np.float32]  # [width, k]
    activations: NDArray[np.float32]  # [width, k, 64]
    peak_token_ids: NDArray[np.uint32] | None = None  # [width, k]; None: read from the stored segments when needed

    def counts_mask(self) -> NDArray[np.bool_]:
        """Which places are used, [width, k]."""
        import numpy as np

        found: NDArray[np.bool_] = np.arange(self.segments.shape[1]) < self.counts[:, None]
        return found


@dataclass(frozen=True, slots=True)
class VocabularyArrays:
    """For every neuron of a layer, the tokens that its output vector promotes and suppresses most, strongest first."""

    promoted_ids: NDArray[np.uint32]  # [width, 10]
    promoted_logits: NDArray[np.float32]  # [width, 10]
    suppressed_ids: NDArray[np.uint32]  # [width, 10]
    suppressed_logits: NDArray[np.float32]  # [width, 10]


@dataclass(frozen=True, slots=True)
class StatsArrays:
    """`Stats` of every neuron of a layer, each [width] float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    share_positive: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CollectedLayer:
    """All that collecting found out about one layer, ready to be stored."""

    layer: int
    exemplars: Mapping[Kind, ExemplarArrays]
    stats: StatsArrays | None  # None where the data was imported without, like the next
    vocabulary: VocabularyArrays | None


@dataclass(frozen=True, slots=True)
class VocabularyEntry:
    """One token of the subject's vocabulary as it is shown."""

    token_id: int
    text: str  # decode([id]); U+FFFD where it is part of a character
    special: bool


Tokens = Mapping[int, VocabularyEntry]  # by id


@dataclass(frozen=True, slots=True)
class Run:
    """One collection: a subject, a corpus, and how it was read."""

    id: int
    status: Literal["running", "finished"]
    subject: str
    subject_revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    activation: str  # act or post of MLP neurons; what else is read bears the name of its kind
    layers: tuple[int, ...]
    n_layers: int  # of the whole subject
    top_k: int
    n_random: int
    seed: int
    tokenizer_sha256: str  # of the vocabulary: which simulators share its token ids
    config: Mapping[str, Any]  # the command's CollectConfig, as JSON
    n_segments: int
    n_documents: int
    n_tokens: int
    started_at: str  # ISO 8601, UTC
    finished_at: str | None
    versions: Mapping[str, str] = field(default_factory=dict)  # neuroexplain, torch, transformers, device
    sources: tuple[Source, ...] = ()  # of the layers, in their order
    rectified: bool = False  # truth is relu(a) and relu(-a) for the two sides; else a, or -a for the negative side

    def source(self, layer: int) -> Source | None:
        """A layer's source; None where the run does not hold the layer."""
        return next((source for source in self.sources if source.layer == layer), None)

    def width(self, layer: int) -> int:
        """How many units a layer has; 0 where the run does not hold it."""
        source = self.source(layer)
        return 0 if source is None else source.width

    def label(self, unit: UnitId) -> str:
        """How a unit is shown: `15:16`, or `15:3.40` where its source has groups."""
        source = self.source(unit.layer)
        return str(unit) if source is None else f"{unit.layer}:{source.label(unit.index)}"

    def find_unit(self, text: str) -> UnitId:
        """The unit that a person names: `15:16`, or `15:3.40` where its source has groups. Else raises ValueError."""
        match = re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\.(\d{1,9})\s*", text, re.ASCII)
        if match is None:
            return UnitId.parse(text)
        layer, group, place = map(int, match.groups())
        source = self.source(layer)
        size = None if source is None else source.group_size
        if size is None:
            raise ValueError(f"run {self.id} holds {self.kind} units, which have no groups: write LAYER:UNIT, like 15:16")
        if place >= size:
            raise ValueError(f"{text.strip()} is not there: a group has {size} units, counted from 0")
        return UnitId(layer, group * size + place)

    @property
    def kind(self) -> str:
        """What its units are."""
        return self.sources[0].kind if self.sources else "mlp"

    @property
    def noun(self) -> str:
        """What its units are called in a sentence."""
        return "neurons" if self.kind == "mlp" else f"{self.kind} units"

    @property
    def size(self) -> str:
        """How many layers and units it holds, for messages: `layers 0-31 of 32 with 14,336 units each`."""
        widths = sorted({source.width for source in self.sources})
        each = " to ".join(f"{width:,}" for width in dict.fromkeys((widths[0], widths[-1]))) if widths else "no"
        return f"layers {ranges_text(self.layers)} of {self.n_layers} with {each} units each"

    @property
    def sides(self) -> tuple[Side, ...]:
        """Which of its units' activations are explained: those above 0, those below, or each."""
        by_sign: Mapping[str, tuple[Side, ...]] = {"both": ("positive", "negative"), "negative": ("negative",)}
        return by_sign.get(str(self.config.get("sign")), ("positive",))

    @property
    def headline(self) -> Headline:
        """Bills' score over top and random records; over top records alone where a run has no others (imported arrays).

        Of the negative side the bottom records are meant.
        """
        strongest = (STRONGEST[side] for side in self.sides)
        return Headline("correlation", tuple(f"{kind}_and_random" if self.n_random else kind for kind in strongest))

    @property
    def segment_stride(self) -> int:
        """Tokens from one segment number to the next: 128 on the grid that collect reads, 1 where segments lie anywhere."""
        return int(self.config.get("segment_stride", SEGMENT_LENGTH))


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
    covers: tuple[int, ...] | None = None  # `meanings`: ranks of the top records that this hypothesis is said to cover
    parts: tuple[str, ...] | None = None  # of a union: its hypotheses; the greatest of their simulated levels is its own
    id: int | None = None  # set by the store
    side: Side = "positive"

    @property
    def hypotheses(self) -> tuple[str, ...]:
        """What is simulated: the text, or each part of a union."""
        return self.parts or (self.text or "",)


@dataclass(frozen=True, slots=True)
class PredictedRecord:
    """What a scorer predicted of one record, from its token `first` on. The scorer's codec says what numbers mean."""

    kind: Kind
    rank: int
    first: int  # the first token in the record that was scored
    values: NDArray[np.float32]  # levels [32]; NaN where there is no prediction: such a token is not scored
    detail: NDArray[np.float32] | None = None  # beside each value; of levels the probability that fell on level tokens
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
class Session:
    """What one `explain` or `score` command did and cost."""

    started_at: str  # ISO 8601, UTC
    seconds: float
    explainer: str | None  # None for `score`
    model: str | None
    scorer: str | None  # None where nothing was simulated
    scorer_model: str | None
    n_neurons: int
    n_failed: int
    prompt_tokens: int  # sent to explainer and simulator
    cached_tokens: int | None  # of these, what a server's prefix cache held; None where nobody says
    completion_tokens: int
    scorer_prompt_tokens: int  # the simulator's share of prompt_tokens
    scored_tokens: int  # simulated, whether their score could be had or not


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score together with whose it is."""

    unit: UnitId
    explanation_id: int
    scorer: str
    scorer_model: str
    score: Score


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One line of `neuroexplain query`: an explanation with its headline score by one scorer and model."""

    unit: UnitId
    label: str  # how the unit is shown
    explanation: str
    explanation_id: int
    explainer: str
    model: str
    side: Side
    source: str  # what the unit is: mlp, heads, ...
    scorer: str | None  # None where the explanation has not been scored
    scorer_model: str | None
    metric: str  # of the score, like the subset
    subset: str | None
    score: float | None
    correlation: float | None  # Bills': over top and random records, whatever the score is
    ci_low: float | None
    ci_high: float | None
    max_activation: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An explanation or a prediction that could not be had."""

    unit: UnitId
    what: str  # the explainer, or the scorer
    status: Status
    reason: str | None
    reply: str | None


@dataclass(frozen=True, slots=True)
class UnitPage:
    """Everything that is known about one neuron: what `show`, the viewer and the API present."""

    run: Run
    unit: Unit
    splits: Mapping[tuple[Kind, int], Split | None]  # by kind and rank
    tokens: Tokens  # every token id that the page shows
    explanations: tuple[Explanation, ...]  # best first
    predictions: tuple[Prediction, ...]
    scores: tuple[StoredScore, ...]


def ranges_text(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> 0-2,5"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(str(n) for n in part) for part in parts)
