"""What the API answers, as types for its description at /docs; present.py makes the values."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from neuroexplain.evidence import Split, Status
from neuroexplain.units import Kind, Side

BIG = 2**31 - 1


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QueryResult(Answer):
    """One explanation with one score: the run's headline, or the metric that was asked for."""

    layer: int
    unit: int
    neuron: int
    source: str
    side: Side
    explanation: str
    explanation_id: int
    score: float | None
    metric: str
    subset: str | None
    scorer: str | None
    scorer_model: str | None
    correlation: float | None
    ci_low: float | None
    ci_high: float | None
    explainer: str
    model: str
    max_activation: float | None


class QueryResults(Answer):
    """One page of results, best first."""

    results: list[QueryResult]
    page: int
    next_page: int | None


class SourceAnswer(Answer):
    """Where a run reads the units of one layer."""

    layer: int
    kind: str
    module: str | None
    side: Literal["input", "output"]
    width: int
    dtype: str
    group_size: int | None
    encoder: str | None


class RunAnswer(Answer):
    """One collection: a subject, a corpus, and how it was read."""

    id: int
    status: Literal["running", "finished"]
    subject: str
    subject_revision: str | None
    dtype: str
    activation: str
    layers: list[int]
    sources: list[SourceAnswer]
    d_mlp: int | None = None  # the width of MLP neurons
    n_layers: int
    top_k: int
    n_random: int
    seed: int
    tokenizer_sha256: str
    config: dict[str, Any]
    n_segments: int
    n_documents: int
    n_tokens: int
    started_at: str
    finished_at: str | None
    versions: dict[str, str]
    rectified: bool


class StatsAnswer(Answer):
    """Activations over tokens 64..127 of every segment."""

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    share_positive: float | None


class ExemplarAnswer(Answer):
    """A record: 64 tokens with one activation each."""

    kind: Kind
    rank: int
    split: Split | None
    segment: int
    start: int
    document: int | None
    token_offset: int | None
    activation: float
    token_ids: list[int]
    tokens: list[str]
    activations: list[float]


class ScoreAnswer(Answer):
    """How well what one scorer predicted agrees with the truth: one metric."""

    scorer: str
    scorer_model: str
    split: Split
    subset: str
    metric: str
    status: Status
    value: float | None
    n_tokens: int
    n_records: int
    reason: str | None
    ci_low: float | None
    ci_high: float | None
    ci_reason: str | None
    control: float | None
    control_explanation_id: int | None
    control_reason: str | None


class PredictionAnswer(BaseModel):
    """What a scorer predicted of the tokens of a record that were scored; simulators have expected_levels."""

    model_config = ConfigDict(extra="allow")

    scorer: str
    scorer_model: str
    kind: Kind
    rank: int
    split: Split | None
    scored: tuple[int, int]
    expected_levels: list[float | None] | None = None
    digit_mass: list[float] | None = None
    control_levels: list[float | None] | None = None


class ExplanationAnswer(Answer):
    """A hypothesis in words, or why there is none."""

    id: int
    text: str | None
    explainer: str
    model: str
    prompt_sha256: str | None
    status: str
    reason: str | None
    candidate: int
    chosen: bool
    side: Side
    covers: list[int] | None
    parts: list[str] | None
    scores: list[ScoreAnswer]
    predictions: list[PredictionAnswer]


class NeuronAnswer(Answer):
    """One neuron, as `neuroexplain show --json` prints it."""

    run: RunAnswer
    source: SourceAnswer | None
    layer: int
    unit: int
    neuron: int
    status: Status
    stats: StatsAnswer
    promoted_tokens: list[tuple[str, float]]
    suppressed_tokens: list[tuple[str, float]]
    exemplars: list[ExemplarAnswer]
    explanations: list[ExplanationAnswer]


class StrongNeuron(Answer):
    """A neuron that fires on a token, with its best explanation."""

    layer: int
    unit: int
    neuron: int
    activation: float
    share_of_max: float
    explanation: str | None
    correlation: float | None


class Activations(Answer):
    """A text's tokens, with one neuron's activations or the neurons that fire most on one of them."""

    tokens: list[str]
    layer: int | None = None
    unit: int | None = None
    neuron: int | None = None
    activations: list[float] | None = None
    position: int | None = None
    neurons: list[StrongNeuron] | None = None


class Problem(Answer):
    """What was wrong with a request."""

    error: str
    reason: str


class ActivationRequest(BaseModel):
    """A text, and a neuron or a token's place."""

    text: str = Field(min_length=1, max_length=2000)
    layer: int | None = Field(None, ge=0, le=BIG)
    neuron: int | None = Field(None, ge=0, le=BIG)
    position: int | None = Field(
        None, ge=0, le=BIG, description="A token's place: which neurons fire most there?"
    )
