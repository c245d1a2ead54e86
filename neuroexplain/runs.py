"""One collection and what was done with it: runs, sessions, rows of a query, and all about one unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neuroexplain.evidence import (
    Exemplar,
    Explanation,
    Headline,
    Prediction,
    RecordKey,
    Split,
    StoredScore,
    Tokens,
    Unit,
    headline_subset,
    texts_in_context,
)
from neuroexplain.units import MAX_INTEGER, SEGMENT_LENGTH, SIDES, Side, Source, UnitId, ranges_text


@dataclass(frozen=True, slots=True)
class Run:
    """One collection: a subject, a corpus, and how it was read."""

    id: int
    status: Literal["running", "finished"]
    subject: str
    subject_revision: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    activation: str  # act or post for MLP neurons; for other kinds of units the name of the kind
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
    split_rule: Literal["ranks", "passages"] = "ranks"  # how records are split; ranks: the first version's
    n_sampled: int = 0  # sampled records of each side
    barred_ids: tuple[int, ...] = ()  # special tokens, which are no peaks and are not scored
    split_segments: Mapping[Split, int] = field(default_factory=dict)  # visited segments of each split
    rectified: bool = False  # whether the truth is relu(a) and relu(-a) for the two sides, not a and -a
    n_background: int = 0  # random records of `report` beside those of every unit; 0 of dense units
    health: Mapping[str, Mapping[str, float | None]] = field(
        default_factory=dict
    )  # by layer: sources/_health

    def source(self, layer: int) -> Source | None:
        """A layer's source; None if the run does not hold the layer."""
        return next((source for source in self.sources if source.layer == layer), None)

    def width(self, layer: int) -> int:
        """A layer's number of units; 0 if the run does not hold it."""
        source = self.source(layer)
        return 0 if source is None else source.width

    def label(self, unit: UnitId) -> str:
        """A unit's name: `15:16`, or `15:3.40` if its source has groups."""
        source = self.source(unit.layer)
        return str(unit) if source is None else f"{unit.layer}:{source.label(unit.index)}"

    def find_unit(self, text: str) -> UnitId:
        """The unit of a name: `15:16`, or `15:3.40` if its source has groups.

        Raises ValueError if the text is no such name, or if its group or place is impossible. Whether the run
        holds the unit is not checked.
        """
        match = re.fullmatch(r"\s*(\d{1,9}):(\d{1,9})\.(\d{1,9})\s*", text, re.ASCII)
        if match is None:
            return UnitId.parse(text)
        layer, group, place = map(int, match.groups())
        source = self.source(layer)
        size = None if source is None else source.group_size
        if size is None:
            raise ValueError(
                f"run {self.id} holds {self.kind} units, which have no groups: write LAYER:UNIT, like 15:16"
            )
        if place >= size:
            raise ValueError(f"{text.strip()} does not exist: a group has {size} units, counted from 0")
        return UnitId(layer, group * size + place)

    @property
    def kind(self) -> str:
        """The kind of its units: a name of sources.base.SOURCES."""
        return self.sources[0].kind if self.sources else "mlp"

    @property
    def noun(self) -> str:
        """The word for its units in a sentence."""
        if self.kind == "mlp":
            return "neurons"
        return f"{self.kind} latents" if self.sources[0].encoder is not None else f"{self.kind} units"

    @property
    def size(self) -> str:
        """Its layers and units, for messages: `layers 0-31 of 32 with 14,336 units each`."""
        widths = sorted({source.width for source in self.sources})
        ends = dict.fromkeys((widths[0], widths[-1])) if widths else {}
        units = " to ".join(f"{width:,}" for width in ends) or "no"
        return f"layers {ranges_text(self.layers)} of {self.n_layers} with {units} units each"

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides of its units that are explained: activations above 0, below 0, or each by itself."""
        return SIDES.get(self.config.get("sign", "positive"), SIDES["positive"])

    @property
    def headline(self) -> Headline:
        """The score that stands for a unit: the correlation over the records of headline_subset."""
        subsets = (headline_subset(side, self.n_sampled, self.n_random) for side in self.sides)
        return Headline("correlation", tuple(dict.fromkeys(subsets)))

    @property
    def segment_stride(self) -> int:
        """Tokens from one segment number to the next: 128 after `collect`; 1 if segments begin anywhere."""
        return int(self.config.get("segment_stride", SEGMENT_LENGTH))


@dataclass(frozen=True, slots=True)
class Session:
    """What one `explain` or `score` command did and cost."""

    started_at: str  # ISO 8601, UTC
    seconds: float
    explainer: str | None  # None for `score`
    model: str | None
    scorer: str | None  # None if nothing was scored
    scorer_model: str | None
    n_neurons: int  # units of any kind
    n_failed: int
    prompt_tokens: int  # sent to explainer and scorer
    cached_tokens: int | None  # of these, held by a server's prefix cache; None if no server tells
    completion_tokens: int
    scorer_prompt_tokens: int  # the scorer's share of prompt_tokens
    scored_tokens: int  # predicted, whether or not they led to a score


@dataclass(frozen=True, slots=True)
class SimulatorCheck:
    """How well a simulator and its model predicted neurons whose true explanation is known.

    A correlation that is undefined or failed is in no mean of correlations. Its neuron is not won, and has
    the margin 0 if it is that of the true explanation.
    """

    scorer: str
    scorer_model: str
    engine_version: str
    created_at: str  # ISO 8601, UTC
    n_neurons: int
    n_explanations: int  # of each neuron: the true one, and false ones
    n_records: int  # of each neuron: top ones, and as many random ones
    n_won: int  # neurons whose true explanation has the highest correlation
    n_undefined: int  # correlations
    mean_true: float | None  # correlation of the true explanations
    mean_false: float | None
    mean_margin: float  # of the true explanation over the best false one
    computed_per_token: float | None  # prompt tokens for each scored one; None if a server does not tell
    seconds: float
    kinds: Mapping[str, Mapping[str, float | None]]  # n, n_won, mean_true and mean_margin by kind of neuron

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that cannot be."""
        in_order = (0, self.n_won, self.n_neurons, MAX_INTEGER)
        counts = (self.n_records, self.n_undefined)
        if (
            sorted(in_order) != list(in_order)
            or not 0 < self.n_explanations <= MAX_INTEGER
            or not all(0 <= n <= MAX_INTEGER for n in counts)
        ):
            raise ValueError("impossible counts of neurons")

    @property
    def n_by_chance(self) -> float:
        """How many neurons guessing wins."""
        return self.n_neurons / self.n_explanations


@dataclass(frozen=True, slots=True)
class QueryRow:
    """One line of `neuroexplain query`: an explanation with its headline score by one scorer and model."""

    unit: UnitId
    label: str  # the unit's name
    explanation: str
    explanation_id: int
    explainer: str
    model: str
    side: Side
    source: str  # the kind of unit: mlp, heads, ...
    scorer: str | None  # None if the explanation has not been scored
    scorer_model: str | None
    metric: str  # of `score`, like the subset
    subset: str | None
    score: float | None
    correlation: float | None  # over top and random records, whatever `score` is
    ci_low: float | None
    ci_high: float | None
    max_activation: float | None
    beyond_words: float | None = None  # the population score without the words that the explanation names
    rule: str | None = None  # the explanation without its examples; None if it has none
    examples: tuple[str, ...] | None = None
    rule_score: float | None = None  # of the rule alone, by the metric and subset of `score`
    # How often a judge finds the odd one of five windows of the unit, without the explanation, with the
    # interval; the best judge's, None if none was asked.
    intruder: float | None = None
    intruder_low: float | None = None
    intruder_high: float | None = None
    # AUROC of the row's scorer among look-alikes, with the interval; None if these were not measured.
    hard: float | None = None
    hard_low: float | None = None
    hard_high: float | None = None


@dataclass(frozen=True, slots=True)
class UnitPage:
    """Everything that is known about one unit: what `show`, the viewer and the API present."""

    run: Run
    unit: Unit
    splits: Mapping[RecordKey, Split | None]
    tokens: Tokens  # every token id of the page
    explanations: tuple[Explanation, ...]  # best first
    predictions: tuple[Prediction, ...]
    scores: tuple[StoredScore, ...]
    rule_predictions: tuple[Prediction, ...] = ()  # those of explanations' rules alone
    rule_scores: tuple[StoredScore, ...] = ()
    # With which probability a random or sampled record was drawn, if the run tells. A random record has one
    # for each side of the run.
    probabilities: Mapping[tuple[RecordKey, Side], float] = field(default_factory=dict)
    checks: tuple[SimulatorCheck, ...] = ()  # of the simulators of the run, by scorer and model

    def check_of(self, scorer: str, model: str) -> SimulatorCheck | None:
        """How well a simulator and its model did on known neurons; None if that was not measured."""
        return next((c for c in self.checks if (c.scorer, c.scorer_model) == (scorer, model)), None)

    def probability(self, record: Exemplar, side: Side | None = None) -> float | None:
        """With which probability a record was drawn for a side: by default its own, or the run's first."""
        return self.probabilities.get((record.key, side or record.side or self.run.sides[0]))

    def texts(self, record: Exemplar) -> list[str]:
        """The text of each of a record's tokens, [64]: see texts_in_context."""
        return texts_in_context([self.tokens[token_id] for token_id in record.token_ids.tolist()])
