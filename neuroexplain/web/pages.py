"""Routes of the viewer's pages, and of the sections that a page fetches."""

from __future__ import annotations

import random
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from neuroexplain.comparing import describe, list_compared
from neuroexplain.comparison import ORDERS
from neuroexplain.errors import NeuroexplainError, NotInStore
from neuroexplain.formatting import corpus_name, dictionary_lines, headline_name
from neuroexplain.runs import QueryRow, Run
from neuroexplain.scorers.base import SCORERS, main_metrics
from neuroexplain.store.failures import list_failures
from neuroexplain.store.runs import list_runs, load_prompt, load_run
from neuroexplain.store.search import list_best, query_explanations
from neuroexplain.units import MAX_INTEGER, Kind, UnitId
from neuroexplain.web.compare_view import compare_view, compared_key
from neuroexplain.web.docs_view import route_views, type_views
from neuroexplain.web.parameters import (
    Compared,
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
from neuroexplain.web.reader import PAGE_SIZE, StoreReader
from neuroexplain.web.record_view import find_simulation, record_views, simulated_views
from neuroexplain.web.row_view import SORT_LABELS, failure_view, row_view
from neuroexplain.web.templates import render
from neuroexplain.web.try_view import EMPTY_TRY, token_links, try_view
from neuroexplain.web.unit_view import unit_view
from neuroexplain.web.urls import UrlBuilder

N_BEST = 12  # rows of the start page
N_DRAWS = 20  # units drawn for /random, so that one of them is likely to be explained

ScoreText = Annotated[str | None, Query(max_length=20)]
UnitText = Annotated[str | None, Query(max_length=50)]

router = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


def html_page(reader: StoreReader, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(render(template, can_try=reader.probe is not None, **values), status)


@router.get("/")
def start_page(reader: Reader, run_id: RunId = None) -> Response:
    run = load_run(reader.store, run_id)
    best = query_explanations(reader.store, run, limit=N_BEST)
    return html_page(
        reader,
        "start.html",
        run=run,
        urls=UrlBuilder(run_id),
        summary=reader.summary(run),
        best=[row_view(row) for row in best],
        runs=[listed for listed in list_runs(reader.store) if listed.status == "finished"],
        corpus=corpus_name(run),
        headline=headline_name(run.headline),
        dictionaries=dictionary_lines(run),
    )


@router.get("/random")
def random_unit(reader: Reader, run_id: RunId = None) -> Response:
    """Leads to an explained unit; to any unit of a run without explanations."""
    run = load_run(reader.store, run_id)
    sources = random.choices(run.sources, k=N_DRAWS)
    draws = [UnitId(source.layer, random.randrange(source.width)) for source in sources]
    explained = list(list_best(reader.store, run, draws))
    if not explained:
        explained = [row.unit for row in query_explanations(reader.store, run, limit=500)]
    return RedirectResponse(UrlBuilder(run_id).unit(random.choice(explained or draws)), 303)


@router.get("/jump")
def jump(reader: Reader, at: Annotated[str, Query(max_length=50)], run_id: RunId = None) -> Response:
    return RedirectResponse(UrlBuilder(run_id).unit(parse_unit(load_run(reader.store, run_id), at)), 303)


@router.get("/search")
def search_page(
    reader: Reader,
    q: Words = None,
    like: Like = None,
    token: Token = None,
    layer: Layers = None,
    min_score: ScoreText = None,
    max_score: ScoreText = None,
    scorer: Name = None,
    simulator: OldName = None,
    metric: Name = None,
    sort: Annotated[str, Query(max_length=20)] = "score",
    page: PageNumber = 0,
    run_id: RunId = None,
) -> Response:
    """A filter that cannot be read is a message above the form, with status 400."""
    urls, problem, has_more = UrlBuilder(run_id), "", False
    rows: list[QueryRow] = []
    scorer = scorer or simulator
    form = {"q": q, "like": like, "token": token, "layer": layer, "scorer": scorer}
    form |= {"min_score": min_score, "max_score": max_score, "metric": metric, "sort": sort}
    form = {name: value or "" for name, value in form.items()}
    run = load_run(reader.store, run_id)
    try:
        rows, has_more = reader.search(
            run,
            page,
            text=q,
            like=like,
            layers=layer,
            peak_token=token,
            min_score=parse_score(min_score),
            max_score=parse_score(max_score),
            scorer=scorer or None,
            metric=metric or None,
            sort=sort,
        )
    except NeuroexplainError as error:
        problem = str(error)
    return html_page(
        reader,
        "search.html",
        400 if problem else 200,
        urls=urls,
        q=form["q"],
        form=form,
        problem=problem,
        rows=[row_view(row) for row in rows],
        scorers=SCORERS.names(),
        headline="" if problem else headline_name(run.headline),
        sorts=SORT_LABELS,
        previous=urls.search(**form, page=page - 1 or None) if page else None,
        next=urls.search(**form, page=page + 1) if has_more else None,
    )


@router.get("/failed")
def failed_page(reader: Reader, page: PageNumber = 0, run_id: RunId = None) -> Response:
    """What could not be explained or scored, and why."""
    run, urls = load_run(reader.store, run_id), UrlBuilder(run_id)
    failures = list_failures(reader.store, run, main_metrics(), None, PAGE_SIZE + 1, page * PAGE_SIZE)
    return html_page(
        reader,
        "failed.html",
        urls=urls,
        counts=reader.summary(run).failures,
        failures=[failure_view(run, f, urls.unit(f.unit)) for f in failures[:PAGE_SIZE]],
        n_more=0,
        previous=urls.failed(page=page - 1 or None) if page else None,
        next=urls.failed(page=page + 1) if len(failures) > PAGE_SIZE else None,
    )


@router.get("/compare")
def compare_page(
    reader: Reader,
    first: Compared = None,
    second: Compared = None,
    q: Words = None,
    token: Token = None,
    layer: Layers = None,
    scorer: Name = None,
    metric: Name = None,
    sort: Annotated[str, Query(max_length=20)] = "second",
    page: PageNumber = 0,
) -> Response:
    """Two explainers, models or runs side by side: those named, else the first two that there are."""
    urls, problem, view, has_more = UrlBuilder(), "", None, False
    choices = [(compared_key(compared), describe(compared)) for compared in list_compared(reader.store)]
    keys = [key for key, _ in choices[:2]] + ["", ""]
    form = {"first": first or keys[0], "second": second or keys[1], "q": q or "", "token": token or ""}
    form |= {"layer": layer or "", "scorer": scorer or "", "metric": metric or "", "sort": sort}
    if len(choices) < 2:
        problem = "There are no two to compare. Explain by another:  neuroexplain explain --explainer pairs"
    else:
        try:
            comparison, rows, has_more = reader.compare(
                form["first"],
                form["second"],
                page,
                layers=layer,
                text=q or None,
                peak_token=token or None,
                metric=metric or None,
                scorer=scorer or None,
                sort=sort,
            )
            view = compare_view(comparison, rows)
        except NeuroexplainError as error:
            problem = str(error)
    return html_page(
        reader,
        "compare.html",
        400 if problem and len(choices) > 1 else 200,
        urls=urls,
        form=form,
        choices=choices,
        problem=problem,
        view=view,
        scorers=SCORERS.names(),
        sorts=ORDERS,
        previous=urls.compare(**form, page=page - 1 or None) if page else None,
        next=urls.compare(**form, page=page + 1) if has_more else None,
    )


@router.get("/prompts/{sha256}")
def prompt_page(reader: Reader, sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]) -> Response:
    name, text = load_prompt(reader.store, sha256)
    return html_page(reader, "message.html", title=f"Prompt {name}", text=text, urls=UrlBuilder())


@router.get("/try")
def try_page(
    reader: Reader,
    text: Annotated[str | None, Query(max_length=2000)] = None,
    at: UnitText = None,
    position: Annotated[int | None, Query(ge=0, le=MAX_INTEGER)] = None,
    run_id: RunId = None,
) -> Response:
    """A text's tokens with the activations of the unit `at`, and the units that fire most at `position`."""
    urls, problem, view = UrlBuilder(run_id), "", EMPTY_TRY
    if reader.probe is None:
        problem = "No model is loaded. Start the viewer with one:  neuroexplain serve --model MODEL"
    elif text:
        run = load_run(reader.store, run_id)
        unit = parse_unit(run, at) if at and at.strip() else None
        view = try_view(reader.store, reader.probe, run, text, unit, position)
    return html_page(
        reader,
        "try.html",
        urls=urls,
        text=text or "",
        at=at or "",
        position=position,
        problem=problem,
        view=view,
        tokens=token_links(view.tokens, urls, text=text, at=at),
    )


@router.get("/docs")
def docs_page(reader: Reader, request: Request) -> Response:
    """The API's description, drawn from the schema at /openapi.json."""
    schema = request.app.openapi()
    return html_page(
        reader, "docs.html", urls=UrlBuilder(), routes=route_views(schema), types=type_views(schema)
    )


@router.get("/api")
def api_page() -> Response:
    return RedirectResponse("/docs")


@router.get("/{layer:int}/{neuron:int}")
def unit_page(
    reader: Reader,
    layer: Number,
    neuron: Number,
    run_id: RunId = None,
    show: Annotated[list[str] | None, Query(max_length=10)] = None,
    simulation: Annotated[list[Number] | None, Query(max_length=20)] = None,
) -> Response:
    """`show` and `simulation` name the lazy sections that come with the page."""
    urls = UrlBuilder(run_id)
    page = reader.load_page(run_id, UnitId(layer, neuron))
    view = unit_view(page, urls, open_kinds=show or (), open_simulations=simulation or ())
    return html_page(reader, "unit.html", unit=view, urls=urls)


@router.get("/{layer:int}/{neuron:int}/records/{kind}")
def records_section(
    reader: Reader, layer: Number, neuron: Number, kind: Kind, run_id: RunId = None
) -> Response:
    page = reader.load_page(run_id, UnitId(layer, neuron))
    return html_page(reader, "records.html", records=record_views(page, kind))


@router.get("/{layer:int}/{neuron:int}/simulations/{simulation}")
def simulation_section(
    reader: Reader, layer: Number, neuron: Number, simulation: Number, run_id: RunId = None
) -> Response:
    page = reader.load_page(run_id, UnitId(layer, neuron))
    prediction = find_simulation(page, simulation)
    if prediction is None:
        raise NotInStore(f"Neuron {page.unit.id} has no simulation {simulation}.")
    return html_page(reader, "records.html", records=simulated_views(page, prediction))


def parse_unit(run: Run, text: str) -> UnitId:
    """A unit written `15:16` or `15/16`. Raises NeuroexplainError; NotInStore if a number is too large."""
    try:
        unit = run.find_unit(text.replace("/", ":"))
    except ValueError as error:
        raise NeuroexplainError(str(error)) from error
    if max(unit.layer, unit.index) > MAX_INTEGER:
        raise NotInStore(f"There is no unit {unit}.")
    return unit


def parse_score(text: str | None) -> float | None:
    """A score with a point or a comma; None for an empty field. Raises NeuroexplainError."""
    if text is None or not text.strip():
        return None
    try:
        score = float(text.replace(",", "."))
    except ValueError:
        score = float("nan")
    if not -1 <= score <= 1:  # NaN is in no range
        raise NeuroexplainError(f"A score is a number from -1 to 1; found {text!r}.")
    return score
