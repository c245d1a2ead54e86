"""The viewer and its API over an open store; both only read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from neuroexplain.embedding.base import Embedder, open_embedder
from neuroexplain.probe import Probe
from neuroexplain.store.engine import Store
from neuroexplain.web import api, pages
from neuroexplain.web.guard import LOOPBACK, Guard
from neuroexplain.web.problems import add_problem_answers
from neuroexplain.web.reader import StoreReader
from neuroexplain.web.templates import STATIC

THREADS = 2  # pages drawn at once; with 40, the default, 50 readers waited 1.6 s in the median on two cores


def make_app(
    store: Store,
    *,
    probe: Probe | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] = LOOPBACK,
    open_embedder: Callable[[], Embedder] = open_embedder,
) -> FastAPI:
    """The viewer over an open store.

    `probe` reads texts with the subject. With a `token` every request must bring it. Without a token only
    requests that name one of `hosts` are answered, so that a foreign page cannot reach the viewer by a name
    of its own (DNS rebinding). `open_embedder` is called at the first search by meaning.
    """
    app = FastAPI(
        lifespan=_limit_threads,
        title="neuroexplain",
        docs_url=None,
        redoc_url=None,
        description="Neurons, explanations and scores.",
    )
    app.state.reader = StoreReader(store, probe, open_embedder)
    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts, "[::1]", "testserver"])
    app.add_middleware(Guard, token=token)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    add_problem_answers(app)
    app.include_router(pages.router)
    app.include_router(api.router)
    return app


@asynccontextmanager
async def _limit_threads(_: FastAPI) -> AsyncIterator[None]:
    current_default_thread_limiter().total_tokens = THREADS
    yield
