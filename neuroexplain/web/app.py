"""Routes: addresses -> objects from the store -> pages or JSON. Reads only; what a page shows is decided in views.py."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache, wraps
from typing import Annotated, Any

import numpy as np
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroexplain.errors import NeuroexplainError, NotInStore, StoreUnreadable
from neuroexplain.formatting import corpus_name, number, query_json, run_json, show_json
from neuroexplain.lookup import Vocabulary, find_explanations, load_page
from neuroexplain.probe import Probe
from neuroexplain.runs import QueryRow, Run, UnitPage
from neuroexplain.scorers.base import SCORERS
from neuroexplain.selection import parse_layers
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import count_explanations, count_units, list_runs, load_prompt, load_run
from neuroexplain.store.search import list_best, list_headline_scores, query_explanations
from neuroexplain.units import Kind, UnitId
from neuroexplain.web import views
from neuroexplain.web.answers import (
    BIG,
    ActivationRequest,
    Activations,
    NeuronAnswer,
    Problem,
    QueryResult,
    QueryResults,
    RunAnswer,
    StrongNeuron,
)
from neuroexplain.web.views import Links

HEADERS = {
    "Content-Security-Policy": views.CSP + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE_SIZE = 50
THREADS = 2  # pages drawn at once: more would only wait for the interpreter, and each other
SUMMARY_SECONDS = 60.0  # the start page's charts are drawn anew this often at most

Number = Annotated[int, Path(ge=0, le=BIG)]
RunId = Annotated[
    int | None, Query(ge=1, le=BIG, description="Which run; the latest finished one unless told.")
]
Words = Annotated[str | None, Query(max_length=500)]
Bound = Annotated[float | None, Query(ge=-1, le=1, allow_inf_nan=False)]


def make_app(
    store: Store, *, probe: Probe | None = None, token: str | None = None, hosts: tuple[str, ...] = LOOPBACK
) -> FastAPI:
    """The viewer over an open store. `probe` reads texts with the subject; with a `token` every request must bring it.

    Without a token only requests that name one of `hosts` are answered, so that a foreign page cannot reach it by a name of
    its own (DNS rebinding).
    """

    @asynccontextmanager
    async def few_threads(_: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        yield

    app = FastAPI(
        lifespan=few_threads,
        title="neuroexplain",
        docs_url=None,
        redoc_url=None,
        description="Neurons, explanations and scores.",
    )
    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts, "[::1]", "testserver"])
    app.mount("/static", StaticFiles(directory=views.HERE / "static"), name="static")
    problems: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 404, 422)}

    app.add_middleware(Guard, token=token)

    def told(request: Request, status: int, title: str, reason: str) -> Response:
        if request.url.path.startswith("/api"):
            return JSONResponse({"error": title, "reason": reason}, status)
        html = views.render("message.html", title=title, text=views.printable_lines(reason), links=Links())
        return HTMLResponse(html, status)

    @app.exception_handler(NeuroexplainError)
    async def wrong(request: Request, error: NeuroexplainError) -> Response:
        titles = {NotInStore: (404, "not found"), StoreUnreadable: (503, "the database cannot be read")}
        return told(request, *titles.get(type(error), (400, "bad request")), str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        reason = "; ".join(f"{'.'.join(str(p) for p in one['loc'])}: {one['msg']}" for one in error.errors())
        return told(request, 422, "bad request", reason)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return told(
            request,
            error.status_code,
            "not found" if error.status_code == 404 else "refused",
            str(error.detail),
        )

    @one_at_a_time
    @lru_cache(maxsize=2)
    def vocabulary(run_id: int) -> Vocabulary:
        return Vocabulary.load(store, run_id)

    def neuron_page_of(run: RunId, layer: int, neuron: int) -> UnitPage:
        found = load_run(store, run)
        return load_page(store, found, UnitId(layer, neuron), vocabulary(found.id))

    def page(name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(views.render(name, can_try=probe is not None, **values))

    @one_at_a_time
    @lru_cache(maxsize=8)
    def charts(run_id: int, at: int) -> Any:
        return (
            views.score_charts(list_headline_scores(store, load_run(store, run_id))),
            count_explanations(store, run_id),
            count_units(store, run_id),
        )

    def search(
        run: Run, q: str | None, layer: str | None, page: int, **more: Any
    ) -> tuple[list[QueryRow], bool]:
        layers = parse_layers(layer) if layer and layer.strip() else None
        limit, offset = PAGE_SIZE + 1, page * PAGE_SIZE
        found = find_explanations(
            store, run, text=q or None, layers=layers, limit=limit, offset=offset, **more
        )
        return found[:PAGE_SIZE], len(found) > PAGE_SIZE

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def start(run: RunId = None) -> Response:
        found = load_run(store, run)
        drawn, counts, neurons = charts(found.id, int(time.monotonic() / SUMMARY_SECONDS))
        best = [views.row_view(row) for row in query_explanations(store, found, limit=12)]
        finished = [one for one in list_runs(store) if one.status == "finished"]
        return page(
            "start.html",
            run=found,
            links=Links(run),
            charts=drawn,
            counts=counts,
            n_units=sum(neurons.values()),
            best=best,
            runs=finished,
            corpus=corpus_name(found),
        )

    @app.get("/random", include_in_schema=False)
    def random_neuron(run: RunId = None) -> Response:
        found = load_run(store, run)
        sources = random.choices(found.sources, k=20)
        drawn = [UnitId(source.layer, random.randrange(source.width)) for source in sources]
        explained = list(list_best(store, found, drawn)) or [
            row.unit for row in query_explanations(store, found, limit=500)
        ]
        return RedirectResponse(Links(run).neuron(random.choice(explained or drawn)), 303)

    @app.get("/jump", include_in_schema=False)
    def jump(at: Annotated[str, Query(max_length=50)], run: RunId = None) -> Response:
        return RedirectResponse(Links(run).neuron(_unit(load_run(store, run), at)), 303)

    @app.get("/search", response_class=HTMLResponse, include_in_schema=False)
    def search_page(
        q: Words = None,
        token: Annotated[str | None, Query(max_length=100)] = None,
        layer: Annotated[str | None, Query(max_length=100)] = None,
        min_score: Annotated[str | None, Query(max_length=20)] = None,
        max_score: Annotated[str | None, Query(max_length=20)] = None,
        scorer: Annotated[str | None, Query(max_length=64)] = None,
        simulator: Annotated[
            str | None, Query(max_length=64, description="The old name of scorer", include_in_schema=False)
        ] = None,
        metric: Annotated[str | None, Query(max_length=64)] = None,
        sort: Annotated[str, Query(max_length=20)] = "score",
        page_number: Annotated[int, Query(alias="page", ge=0, le=1000)] = 0,
        run: RunId = None,
    ) -> Response:
        state = {
            "q": q or "",
            "token": token or "",
            "layer": layer or "",
            "min_score": min_score or "",
            "max_score": max_score or "",
        }
        state |= {"scorer": scorer or simulator or "", "metric": metric or "", "sort": sort}
        links, problem, more = Links(run), "", False
        rows: list[QueryRow] = []
        found = load_run(store, run)
        try:
            bounds: dict[str, Any] = {"min_score": _score(min_score), "max_score": _score(max_score)}
            by = {"scorer": scorer or simulator or None, "metric": metric or None}
            asked = {"peak_token": token, "sort": sort, **by, **bounds}
            rows, more = search(found, q, layer, page_number, **asked)
        except NeuroexplainError as error:
            problem = str(error)
        html = views.render(
            "search.html",
            can_try=probe is not None,
            links=links,
            q=q or "",
            state=state,
            problem=views.printable_lines(problem),
            rows=[views.row_view(row) for row in rows],
            scorers=SCORERS.names(),
            headline=str(found.headline) if not problem else "",
            previous=links.search(**state, page=page_number - 1 or None) if page_number else None,
            next=links.search(**state, page=page_number + 1) if more else None,
        )
        return HTMLResponse(html, 400 if problem else 200)

    @app.get("/prompts/{sha256}", response_class=HTMLResponse, include_in_schema=False)
    def prompt(sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]) -> Response:
        name, text = load_prompt(store, sha256)
        return page("message.html", title=f"Prompt {name}", text=views.printable_lines(text), links=Links())

    @app.get("/try", response_class=HTMLResponse, include_in_schema=False)
    def try_text(
        text: Annotated[str | None, Query(max_length=2000)] = None,
        at: Annotated[str | None, Query(max_length=50)] = None,
        position: Annotated[int | None, Query(ge=0, le=BIG)] = None,
        run: RunId = None,
    ) -> Response:
        values: dict[str, Any] = {
            "text": text or "",
            "at": at or "",
            "links": Links(run),
            "problem": "",
            "drawn": None,
            "tokens": (),
        }
        values |= {"strongest": (), "position": position, "neuron": None}
        if probe is None:
            values["problem"] = (
                "No model is loaded. Start the viewer with one:  neuroexplain serve --model MODEL"
            )
        elif text:
            found = load_run(store, run)
            if at and at.strip():
                neuron = _unit(found, at)
                shown = load_page(store, found, neuron).unit
                tokens, acts = probe.activations(text, found, neuron)
                strongest = max((abs(x.activation) for x in shown.exemplars), default=0.0)
                values |= {
                    "neuron": neuron,
                    "drawn": views.draw_tokens(tokens, np.array(acts), max(strongest, *map(abs, acts))),
                }
            tokens = probe.tokens(text)
            values["tokens"] = [
                {
                    "text": views.visible(one),
                    "link": Links(run)._with("/try", {"text": text, "at": at, "position": i}),
                }
                for i, one in enumerate(tokens)
            ]
            if position is not None:
                values["strongest"] = [
                    {
                        "unit": s.unit,
                        "activation": f"{s.activation:.3g}",
                        "share": f"{s.share:.0%}",
                        "explanation": views.printable_lines(s.row.explanation) if s.row else "not explained",
                        "score": number(s.row.score) if s.row else "",
                    }
                    for s in probe.strongest(store, text, found, position)
                ]
        return page("try.html", **values)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(views.render("docs.html"))

    @app.get("/api", include_in_schema=False)
    def api() -> Response:
        return RedirectResponse("/docs")

    @app.get("/api/runs", responses=problems)
    def api_runs() -> list[RunAnswer]:
        """All runs, oldest first."""
        return [RunAnswer(**run_json(run)) for run in list_runs(store)]

    @app.get("/api/neurons/{layer}/{neuron}", responses={**problems, 200: {"model": NeuronAnswer}})
    def api_neuron(layer: Number, neuron: Number, run: RunId = None) -> Response:
        """One neuron: exemplars, explanations, predictions and scores, as `neuroexplain show --json` prints it."""
        return JSONResponse(show_json(neuron_page_of(run, layer, neuron)))

    @app.get("/api/query", responses=problems)
    def api_query(
        q: Words = None,
        token: Annotated[str | None, Query(max_length=100)] = None,
        layer: Annotated[str | None, Query(max_length=100, description="15 or 3-5")] = None,
        min_score: Bound = None,
        max_score: Bound = None,
        scorer: Annotated[str | None, Query(max_length=64)] = None,
        simulator: Annotated[
            str | None, Query(max_length=64, description="The old name of scorer", include_in_schema=False)
        ] = None,
        metric: Annotated[str | None, Query(max_length=64)] = None,
        sort: Annotated[str, Query(pattern="^(score|activation|unit|neuron)$")] = "score",
        page_number: Annotated[int, Query(alias="page", ge=0, le=1000)] = 0,
        run: RunId = None,
    ) -> QueryResults:
        """Explanations by text, peak token, layer, score and scorer, best first, 50 a page."""
        found = load_run(store, run)
        bounds = {"min_score": min_score, "max_score": max_score}
        by = {"scorer": scorer or simulator or None, "metric": metric or None}
        asked = {"peak_token": token, "sort": sort, **by, **bounds}
        rows, more = search(found, q, layer, page_number, **asked)
        results = [QueryResult(**one) for one in query_json(rows)]
        return QueryResults(results=results, page=page_number, next_page=page_number + 1 if more else None)

    @app.post("/api/activations", responses=problems, response_model_exclude_unset=True)
    def api_activations(asked: ActivationRequest, run: RunId = None) -> Activations:
        """A neuron's activation on each token of a text, or the neurons that fire most on one token. Needs `serve --model`."""
        if probe is None:
            raise HTTPException(
                409, "No model is loaded: start the viewer with  neuroexplain serve --model MODEL"
            )
        found = load_run(store, run)
        if asked.position is not None:
            strongest = [
                StrongNeuron(
                    layer=s.unit.layer,
                    unit=s.unit.index,
                    neuron=s.unit.index,
                    activation=s.activation,
                    share_of_max=s.share,
                    explanation=s.row.explanation if s.row else None,
                    correlation=s.row.correlation if s.row else None,
                )
                for s in probe.strongest(store, asked.text, found, asked.position)
            ]
            return Activations(tokens=probe.tokens(asked.text), position=asked.position, neurons=strongest)
        if asked.layer is None or asked.neuron is None:
            raise NeuroexplainError("Name a neuron (layer and neuron) or a token's position.")
        tokens, acts = probe.activations(asked.text, found, UnitId(asked.layer, asked.neuron))
        return Activations(
            tokens=tokens, layer=asked.layer, unit=asked.neuron, neuron=asked.neuron, activations=acts
        )

    @app.get("/{layer:int}/{neuron:int}", response_class=HTMLResponse, include_in_schema=False)
    def neuron_page(
        layer: Number,
        neuron: Number,
        run: RunId = None,
        show: Annotated[list[str] | None, Query(max_length=10)] = None,
        simulation: Annotated[list[Number] | None, Query(max_length=20)] = None,
    ) -> Response:
        links = Links(run)
        found = neuron_page_of(run, layer, neuron)
        n = views.neuron_view(found, links, shown=show or (), predictions=simulation or ())
        return page("neuron.html", n=n, links=links)

    @app.get("/{layer:int}/{neuron:int}/records/{kind}", response_class=HTMLResponse, include_in_schema=False)
    def records(layer: Number, neuron: Number, kind: Kind, run: RunId = None) -> Response:
        return page("records.html", records=views.record_views(neuron_page_of(run, layer, neuron), kind))

    @app.get(
        "/{layer:int}/{neuron:int}/simulations/{simulation}",
        response_class=HTMLResponse,
        include_in_schema=False,
    )
    def simulated(layer: Number, neuron: Number, simulation: Number, run: RunId = None) -> Response:
        found = neuron_page_of(run, layer, neuron)
        wanted = views.find_prediction(found, simulation)
        if wanted is None:
            raise NotInStore(f"Neuron {found.unit.id} has no simulation {simulation}.")
        return page("records.html", records=views.simulated_views(found, wanted))

    return app


class Guard:
    """The headers of every answer, and who may ask: with a token, nobody without it.

    Not an `@app.middleware`: those run each request in tasks of their own, which a reader who leaves early made hang.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer: Response | None = None
        if self.token is not None:
            request = Request(scope)
            if not _is_known(request, self.token):
                told = {"error": "unauthorized", "reason": "Give the token: /?token=... or a Bearer header."}
                answer = JSONResponse(told, 401)
            elif "token" in request.query_params and request.url.path == "/":
                answer = RedirectResponse("/", 303)  # the token goes into a cookie and out of the address
                answer.set_cookie("neuroexplain", self.token, httponly=True, samesite="strict")
        await (answer or self.app)(scope, receive, send_with_headers)


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a lock: readers who ask for the same thing at once wait for one answer."""
    lock = threading.Lock()

    @wraps(function)
    def locked(*asked: Any) -> Any:
        with lock:
            return function(*asked)

    return locked


def _is_known(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    candidates = (given, request.query_params.get("token", ""), request.cookies.get("neuroexplain", ""))
    return any(secrets.compare_digest(one.encode(), token.encode()) for one in candidates)


def _unit(run: Run, text: str) -> UnitId:
    try:
        found = run.find_unit(text.replace("/", ":"))
    except ValueError as error:
        raise NeuroexplainError(str(error)) from error
    if max(found.layer, found.index) > BIG:
        raise NotInStore(f"There is no unit {found}.")
    return found


def _score(text: str | None) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError as error:
        raise NeuroexplainError(f"A score is a number from -1 to 1; found {text!r}.") from error
    if not -1 <= value <= 1:
        raise NeuroexplainError(f"A score is a number from -1 to 1; found {text!r}.")
    return value
