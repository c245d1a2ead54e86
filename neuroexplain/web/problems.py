"""Answers to requests that fail: JSON under /api, a page elsewhere."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from neuroexplain.errors import NeuroexplainError, NotInStore, StoreUnreadable
from neuroexplain.web.templates import render
from neuroexplain.web.urls import UrlBuilder

# Status and title of our errors; any other NeuroexplainError is the caller's fault.
TITLES: dict[type[NeuroexplainError], tuple[int, str]] = {
    NotInStore: (404, "not found"),
    StoreUnreadable: (503, "the database cannot be read"),
}


def add_problem_answers(app: FastAPI) -> None:
    app.add_exception_handler(NeuroexplainError, _answer_our_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_parameters)
    app.add_exception_handler(HTTPException, _answer_http_error)


async def _answer_our_error(request: Request, error: Exception) -> Response:
    status, title = TITLES.get(type(error), (400, "bad request"))  # type: ignore[arg-type]
    return _problem(request, status, title, str(error))


async def _answer_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return _problem(request, 422, "bad request", "; ".join(faults))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = "not found" if error.status_code == 404 else "refused"
    return _problem(request, error.status_code, title, str(error.detail))


def _problem(request: Request, status: int, title: str, reason: str) -> Response:
    if request.url.path.startswith("/api"):
        return JSONResponse({"error": title, "reason": reason}, status)
    return HTMLResponse(render("message.html", title=title, text=reason, urls=UrlBuilder()), status)
