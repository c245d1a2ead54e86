"""Routes of the JSON API, described at /docs. Its values are those that commands print with --json."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import JSONResponse, Response

from neuroexplain.as_json import comparison_json, query_json, run_json, unit_id_json, unit_json
from neuroexplain.errors import NeuroexplainError
from neuroexplain.probe import StrongUnit
from neuroexplain.store.runs import list_runs, load_run
from neuroexplain.units import UnitId
from neuroexplain.web.answers import (
    ActivationRequest,
    Activations,
    ComparisonAnswer,
    NeuronAnswer,
    Problem,
    QueryResults,
    RunAnswer,
)
from neuroexplain.web.parameters import (
    Layers,
    Like,
    Name,
    Number,
    OldName,
    PageNumber,
    Reader,
    RunId,
    Token,
    Words,
)

CompareKey = Annotated[str, Query(max_length=600, description="A run, explainer and model: 1/category/MODEL")]
Bound = Annotated[float | None, Query(ge=-1, le=1, allow_inf_nan=False)]
Sort = Annotated[str, Query(pattern="^(score|weakest|lower|activation|unit|neuron)$")]

router = APIRouter(prefix="/api")


def described(answer: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: the answer's type, and a Problem for 400, 404, 422 and the further statuses."""
    responses: dict[int | str, dict[str, Any]] = {200: {"model": answer}}
    responses.update({status: {"model": Problem} for status in (400, 404, 422, *statuses)})
    return responses


@router.get("/runs", responses=described(list[RunAnswer]))
def api_runs(reader: Reader) -> Response:
    """All runs, oldest first."""
    return JSONResponse([run_json(run) for run in list_runs(reader.store)])


@router.get("/neurons/{layer}/{neuron}", responses=described(NeuronAnswer))
def api_neuron(reader: Reader, layer: Number, neuron: Number, run_id: RunId = None) -> Response:
    """One neuron: exemplars, explanations, predictions and scores, as `show --json` prints it."""
    return JSONResponse(unit_json(reader.load_page(run_id, UnitId(layer, neuron))))


@router.get("/query", responses=described(QueryResults))
def api_query(
    reader: Reader,
    q: Words = None,
    like: Like = None,
    token: Token = None,
    layer: Layers = None,
    min_score: Bound = None,
    max_score: Bound = None,
    scorer: Name = None,
    simulator: OldName = None,
    metric: Name = None,
    sort: Sort = "score",
    page: PageNumber = 0,
    run_id: RunId = None,
) -> Response:
    """Explanations by text, meaning, peak token, layer, score and scorer, best first, 50 a page."""
    rows, has_more = reader.search(
        load_run(reader.store, run_id),
        page,
        text=q,
        like=like,
        layers=layer,
        peak_token=token,
        min_score=min_score,
        max_score=max_score,
        scorer=scorer or simulator or None,
        metric=metric or None,
        sort=sort,
    )
    next_page = page + 1 if has_more else None
    return JSONResponse({"results": query_json(rows), "page": page, "next_page": next_page})


@router.get("/compare", responses=described(ComparisonAnswer))
def api_compare(
    reader: Reader,
    first: CompareKey,
    second: CompareKey,
    q: Words = None,
    token: Token = None,
    layer: Layers = None,
    scorer: Name = None,
    metric: Name = None,
    sort: Annotated[str, Query(pattern="^(second|first|unit)$")] = "second",
    page: PageNumber = 0,
) -> Response:
    """Two explainers, models or runs over the units that both explain, 50 units a page."""
    comparison, rows, has_more = reader.compare(
        first,
        second,
        page,
        layers=layer,
        text=q or None,
        peak_token=token or None,
        metric=metric or None,
        scorer=scorer or None,
        sort=sort,
    )
    next_page = page + 1 if has_more else None
    return JSONResponse(comparison_json(comparison, rows) | {"page": page, "next_page": next_page})


@router.post("/activations", responses=described(Activations, 409))
def api_activations(reader: Reader, request: ActivationRequest, run_id: RunId = None) -> Response:
    """A neuron's activation on each token of a text, or the neurons that fire most on one token.

    Needs `serve --model`.
    """
    probe = reader.probe
    if probe is None:
        raise HTTPException(
            409, "No model is loaded: start the viewer with  neuroexplain serve --model MODEL"
        )
    run = load_run(reader.store, run_id)
    if request.position is not None:
        strongest = probe.strongest_units(reader.store, request.text, run, request.position)
        answer = {
            "tokens": probe.tokens(request.text),
            "position": request.position,
            "neurons": [_strongest_json(neuron) for neuron in strongest],
        }
        return JSONResponse(answer)
    if request.layer is None or request.neuron is None:
        raise NeuroexplainError("Name a neuron (layer and neuron) or a token's position.")
    unit = UnitId(request.layer, request.neuron)
    tokens, activations = probe.activations(request.text, run, unit)
    return JSONResponse({"tokens": tokens, **unit_id_json(unit), "activations": activations})


def _strongest_json(neuron: StrongUnit) -> dict[str, Any]:
    row = neuron.row
    return {
        **unit_id_json(neuron.unit),
        "activation": neuron.activation,
        "share_of_max": neuron.share,
        "explanation": None if row is None else row.explanation,
        "correlation": None if row is None else row.correlation,
    }
