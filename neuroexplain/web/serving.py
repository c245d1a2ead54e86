"""Listen at an address, and serve a viewer there until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.interrupt import Interrupted

PATIENCE = 3  # seconds that requests in progress get at the end
WAITING = 2048  # connections that wait to be accepted; as many as uvicorn's own sockets allow


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A listening socket and its URL; port 0 takes a free port. Raises NeuroexplainError.

    It listens before it is served, so a program that reads the URL can connect at once.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(WAITING)
    except OSError as error:
        raise NeuroexplainError(
            f"Cannot listen at {host}:{port}: {error.strerror}. Try another:  --port 0"
        ) from error
    url_host = f"[{host}]" if ":" in host else host
    return listening, f"http://{url_host}:{listening.getsockname()[1]}/"


def serve_until_stopped(app: FastAPI, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; then finish those in progress, for at most PATIENCE."""
    logging.getLogger("uvicorn.error").addFilter(_is_no_cancelled_request)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=PATIENCE)
    with suppress(Interrupted):  # uvicorn raises the signal again when it has stopped
        uvicorn.Server(config).run(sockets=[listening])


def _is_no_cancelled_request(record: logging.LogRecord) -> bool:
    """False for a request that is cancelled at the end, which is no error.

    A trace for each of many would fill a pipe that nobody reads, and the server would hang.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
