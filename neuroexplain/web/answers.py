"""What the API answers, as types for its description at /docs; as_json.py makes the values.

Types of what the store holds are derived from the domain's dataclasses, so a new field is described at once.
Objects that only the API has are written out. No answer is validated when it is sent: a test compares these
types with the answers of the API and of `show --json`.
"""

# A derived type is a value to mypy, which allows no value in an annotation.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, create_model

from neuroexplain.comparison import ComparisonSummary, Mean
from neuroexplain.evidence import Exemplar, Explanation, Score, Split, Stats, Status
from neuroexplain.runs import QueryRow, Run, SimulatorCheck
from neuroexplain.units import MAX_INTEGER, Kind, Side, Source


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


def derived(
    name: str, source: type[Any], *, omitted: tuple[str, ...] = (), own: Mapping[str, Any] | None = None
) -> Any:
    """An answer with a dataclass's docstring and fields; all fields are required.

    `own` has the types of further fields, and of fields whose JSON differs from the dataclass. An optional
    field is given as (type, default). Further required fields come first.
    """
    hints = get_type_hints(source, localns={"np": np, "NDArray": NDArray})
    inherited = {field.name: hints[field.name] for field in fields(source) if field.name not in omitted}
    own = own or {}
    new = {
        field: kind for field, kind in own.items() if field not in inherited and not isinstance(kind, tuple)
    }
    definitions: dict[str, Any] = {
        field: kind if isinstance(kind, tuple) else (kind, ...)
        for field, kind in {**new, **inherited, **own}.items()
    }
    return create_model(name, __base__=Answer, __doc__=source.__doc__, **definitions)


SourceAnswer = derived("SourceAnswer", Source, own={"dictionary": str | None})
RunAnswer = derived(
    "RunAnswer",
    Run,
    own={
        "sources": list[SourceAnswer],
        "d_mlp": (int | None, Field(None, description="The width of MLP neurons")),
    },
)
CheckAnswer = derived("CheckAnswer", SimulatorCheck)
StatsAnswer = derived("StatsAnswer", Stats, own={field.name: float | None for field in fields(Stats)})
ScoreAnswer = derived("ScoreAnswer", Score, own={"scorer": str, "scorer_model": str})
QueryResult = derived(
    "QueryResult", QueryRow, omitted=("unit", "label"), own={"layer": int, "unit": int, "neuron": int}
)
ExemplarAnswer = derived(
    "ExemplarAnswer",
    Exemplar,
    omitted=("unit", "stride"),
    own={
        "probability": float | None,
        "probability_negative": float | None,
        "tokens": list[str],
        "token_ids": list[int],
        "activations": list[float],
    },
)


class SampleAnswer(Answer):
    """What the probabilities of the sampled records of a side and a split follow from."""

    side: Side
    split: Split
    threshold: float = Field(description="The largest size / uniform outside of the sample")
    n_segments: int | None = Field(description="Visited segments of the split")


class PredictionAnswer(BaseModel):
    """What a scorer predicted of a record's scored tokens. Simulators have expected_levels."""

    model_config = ConfigDict(extra="allow")

    scorer: str
    scorer_model: str
    kind: Kind
    rank: int
    split: Split | None
    n_background: int | None = Field(description="Records of the run's background that it read")
    scored: tuple[int, int] = Field(description="The first token that was scored, and the one after the last")
    expected_levels: list[float | None] | None = None
    digit_mass: list[float] | None = None
    control_levels: list[float | None] | None = None


ExplanationAnswer = derived(
    "ExplanationAnswer",
    Explanation,
    omitted=("unit", "provenance", "reply"),
    own={
        "id": int,
        "model": str,
        "prompt_sha256": str | None,
        "scores": list[ScoreAnswer],
        "predictions": list[PredictionAnswer],
        "rule_scores": list[ScoreAnswer] | None,
        "rule_predictions": list[PredictionAnswer] | None,
    },
)


class HistogramAnswer(Answer):
    """How many of a latent's activations above 0 are in each bin."""

    edges: list[float] = Field(description="Between the bins: the first is below all, the last above")
    counts: list[int]


class NearestAnswer(Answer):
    """A latent whose decoder direction is like that of another one."""

    unit: int
    cosine: float


class NeuronAnswer(Answer):
    """One neuron, as `neuroexplain show --json` prints it."""

    run: RunAnswer
    source: SourceAnswer | None
    layer: int
    unit: int
    neuron: int = Field(description="The old name of unit")
    status: Status
    stats: StatsAnswer
    histogram: HistogramAnswer | None = Field(description="None of units that are not latents")
    nearest: list[NearestAnswer] = Field(
        description="Latents of the layer with the most similar decoder directions, nearest first"
    )
    promoted_tokens: list[tuple[str, float]]
    suppressed_tokens: list[tuple[str, float]]
    exemplars: list[ExemplarAnswer]
    samples: list[SampleAnswer]
    explanations: list[ExplanationAnswer]
    checks: list[CheckAnswer]


class QueryResults(Answer):
    """One page of results, best first."""

    results: list[QueryResult]
    page: int
    next_page: int | None


class ComparedAnswer(Answer):
    """One of two that are compared."""

    run: int
    explainer: str
    model: str


MeanAnswer = derived("MeanAnswer", Mean)
ComparisonSummaryAnswer = derived(
    "ComparisonSummaryAnswer",
    ComparisonSummary,
    own={
        **dict.fromkeys(("first", "second", "difference"), MeanAnswer),
        "share_second_higher": float | None,
    },
)


class ComparedUnit(Answer):
    """A unit's two explanations; the difference is the second score less the first."""

    layer: int
    unit: int
    neuron: int = Field(description="The old name of unit")
    side: Side
    difference: float
    first: QueryResult
    second: QueryResult


class ComparisonAnswer(Answer):
    """Two explainers, models or runs over the units that both explain and score."""

    first: ComparedAnswer
    second: ComparedAnswer
    metric: str
    subsets: list[str]
    scorer: str
    scorer_model: str
    notes: list[str]
    summary: ComparisonSummaryAnswer
    rows: list[ComparedUnit]
    page: int
    next_page: int | None


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
    """Why a request failed."""

    error: str
    reason: str


class ActivationRequest(BaseModel):
    """A text, and a neuron (layer and neuron) or a token's position."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "the river ran past", "layer": 0, "neuron": 1}]}
    )

    text: str = Field(min_length=1, max_length=2000)
    layer: int | None = Field(None, ge=0, le=MAX_INTEGER)
    neuron: int | None = Field(None, ge=0, le=MAX_INTEGER)
    position: int | None = Field(
        None, ge=0, le=MAX_INTEGER, description="A token's place: which neurons fire most there?"
    )
