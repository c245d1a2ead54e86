"""Start a vLLM server for one run, and stop it at the end. vLLM itself may live in another environment."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import httpx

from neuroexplain.errors import EngineError

START_WITHIN = 1800.0  # seconds: large models load for a long time
STOP_WITHIN = 20.0
LOG_LINES = 40  # shown when it fails
OFFERS = "--enable-scale-out"  # vLLM 0.32 gives distributions at chosen rows only with it


@dataclass(frozen=True)
class Serving:
    """A vLLM server of ours that answers."""

    url: str
    fate: Callable[[], str | None]  # how it ended, with the end of its log; None while it runs


@contextmanager
def serve_vllm(
    model: str, arguments: Sequence[str], command: str | None, tell: Callable[[str], None]
) -> Iterator[Serving]:
    """Serve `model` on a free port of this machine, once it is healthy.

    `command` is what starts vLLM (NEUROEXPLAIN_VLLM). Raises EngineError, with the end of the server's log, where it does not
    come up. Whatever ends the run stops the server and its children.
    """
    if ours := [one for one in arguments if one.partition("=")[0] in ("--host", "--port", "--uds")]:
        raise EngineError(
            f"--vllm-args holds {ours[0]}, and --vllm chooses that itself. Leave it out, or start vLLM yourself and name it: "
            " --server URL"
        )
    port = _free_port()
    typed = [*find_command(command, model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with tempfile.TemporaryFile() as log, ExitStack() as started:
        running = started.enter_context(_running([*typed, OFFERS], log, tell))
        try:
            _wait_until_healthy(running, port, log, tell)
        except EngineError as error:
            if f"unrecognized arguments: {OFFERS}" not in str(error):
                raise
            running = started.enter_context(_running(typed, log, tell))  # an older vLLM
            _wait_until_healthy(running, port, log, tell)
        yield Serving(f"http://127.0.0.1:{port}/v1", lambda: _fate(running, log))


@contextmanager
def _running(
    typed: Sequence[str], log: IO[bytes], tell: Callable[[str], None]
) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, stopped at the end."""
    tell(f"Starting {shlex.join(typed)} ...")
    made: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        made.append(subprocess.Popen(typed, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))

    starter = ThreadPoolExecutor(1)  # which signals never reach: a Ctrl-C inside Popen would lose the process
    try:
        try:
            starter.submit(start).result()
        except OSError as error:
            raise EngineError(
                f"Cannot start {typed[0]}: {error.strerror}. Set NEUROEXPLAIN_VLLM to what starts vLLM."
            ) from error
        yield made[0]
    finally:
        starter.shutdown()
        for running in made:
            _stop(running, tell)


def find_command(command: str | None, model: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What starts vLLM on a model: the given command, else `vllm` on the PATH, else this Python's module."""
    if command is not None:
        words = split_words(command, "NEUROEXPLAIN_VLLM")
        if not words:
            raise EngineError("NEUROEXPLAIN_VLLM is empty. Set it to what starts vLLM, like  vllm serve")
        if words[-1] == "serve":
            return [*words, model]
        return (
            [*words, "serve", model] if words[-1].rsplit("/", 1)[-1] == "vllm" else [*words, "--model", model]
        )
    found = shutil.which("vllm", path=environment.get("PATH"))
    if found is not None:
        return [found, "serve", model]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    raise EngineError(
        "There is no vLLM to start: no NEUROEXPLAIN_VLLM, no vllm on the PATH, none in this Python.\n"
        "Install it:  pip install 'neuroexplain[vllm]'\n"
        "Or in an environment of its own, and name what starts it:  export NEUROEXPLAIN_VLLM='ENVIRONMENT/bin/vllm serve'"
    )


def split_words(typed: str, name: str) -> list[str]:
    """The words of a command line, as a shell would have them. Raises EngineError where a quote is not closed."""
    try:
        return shlex.split(typed)
    except ValueError as error:
        raise EngineError(f"Cannot read {name}, {typed!r}: {error}. Write it as for a shell.") from error


def _wait_until_healthy(
    running: subprocess.Popen[bytes], port: int, log: IO[bytes], tell: Callable[[str], None]
) -> None:
    began = told = time.monotonic()
    with httpx.Client(timeout=5.0) as client:
        while True:
            if (ended := _fate(running, log)) is not None:
                raise EngineError(ended)
            try:
                if client.get(f"http://127.0.0.1:{port}/health").is_success:
                    return
            except httpx.HTTPError:
                pass
            now = time.monotonic()
            if now - began > START_WITHIN:
                raise EngineError(
                    f"vLLM was not ready after {START_WITHIN:.0f} seconds. The end of its log:\n{_tail(log)}"
                )
            if now - told > 30:
                told = now
                tell(f"vLLM is starting ({now - began:.0f} s) ...")
            time.sleep(0.5)


def _fate(running: subprocess.Popen[bytes], log: IO[bytes]) -> str | None:
    if running.poll() is None:
        return None
    return f"vLLM ended with status {running.returncode}. The end of its log:\n{_tail(log)}"


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 20_000))
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:])


def _stop(running: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
    """End the server and all that it started: they are one process group. Interrupted meanwhile, it kills them at once."""
    try:
        if running.poll() is None:
            tell("Stopping vLLM ...")
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(STOP_WITHIN)
        time.sleep(0.5)  # its children have the same signal; what is left of them is killed
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port
