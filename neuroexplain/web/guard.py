"""Who may read, and the headers of every answer."""

from __future__ import annotations

import secrets

from fastapi import Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuroexplain.web.templates import CONTENT_POLICY

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
COOKIE = "neuroexplain"  # holds the token of a browser that opened /?token=...
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names of this machine


class Guard:
    """Adds HEADERS to every answer. With a token, refuses every request that does not bring it.

    Not an `@app.middleware`: those run each request in a task of its own, which hung when a reader left
    early.
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

        answer = self.app if self.token is None else token_answer(Request(scope), self.token) or self.app
        await answer(scope, receive, send_with_headers)


def token_answer(request: Request, token: str) -> Response | None:
    """The answer to a request without the token, or to the start page's address with it; None: go on."""
    if not _has_token(request, token):
        reason = "Give the token: /?token=... or a Bearer header."
        return JSONResponse({"error": "unauthorized", "reason": reason}, 401)
    if "token" in request.query_params and request.url.path == "/":
        answer = RedirectResponse("/", 303)  # the token goes into a cookie and out of the address
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return answer
    return None


def _has_token(request: Request, token: str) -> bool:
    """Whether the Bearer header, the address or the cookie has the token."""
    candidates = (
        request.headers.get("authorization", "").removeprefix("Bearer "),
        request.query_params.get("token", ""),
        request.cookies.get(COOKIE, ""),
    )
    return any(secrets.compare_digest(candidate.encode(), token.encode()) for candidate in candidates)
