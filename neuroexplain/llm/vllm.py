"""Start a vLLM server for one run and stop it at the end. vLLM may be installed in another environment."""

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
from pathlib import Path
from typing import IO

import httpx

from neuroexplain.errors import EngineError

START_WITHIN = 1800.0  # seconds: a large model takes long to load
STOP_WITHIN = 20.0  # seconds from SIGTERM to SIGKILL
TELL_EVERY = 30.0  # seconds between two lines that say that the server is still starting
LOG_LINES = 40  # of the end of the log in an error message: enough for a traceback
LOG_TAIL = 20_000  # bytes of the end of the log, to look for these lines in
# A program that reads from a pipe of ours. The pipe closes when this process ends, also by kill -9; then the
# program stops the server's process group, whose number is its argument.
WATCH = f"""
import os, signal, sys, time
sys.stdin.read()
os.killpg(int(sys.argv[1]), signal.SIGTERM)
time.sleep({STOP_WITHIN})
os.killpg(int(sys.argv[1]), signal.SIGKILL)
"""
SCALE_OUT = "--enable-scale-out"  # vLLM 0.32 serves prompt_logprob_token_ids only with this option


@dataclass(frozen=True)
class VllmServer:
    """A vLLM server that we started and that answers."""

    url: str
    # How its process ended, with the end of its log; None while it runs.
    exit_report: Callable[[], str | None]


@contextmanager
def serve_vllm(
    model: str, arguments: Sequence[str], command: str | None, tell: Callable[[str], None]
) -> Iterator[VllmServer]:
    """Serve `model` on a free port of this machine. Yields the server when it is healthy.

    `command` is the command line that starts vLLM (NEUROEXPLAIN_VLLM). Raises EngineError, with the end of
    the server's log, if it does not become healthy. Whatever ends the run stops the server and its children.
    """
    chosen_by_us = [
        option for option in arguments if option.partition("=")[0] in ("--host", "--port", "--uds")
    ]
    if chosen_by_us:
        raise EngineError(
            f"--vllm-args holds {chosen_by_us[0]}, and --vllm chooses that itself. Leave it out, or "
            "start vLLM yourself and name it:  --server URL"
        )
    port = _free_port()
    argv = [*find_command(command, model), "--host", "127.0.0.1", "--port", str(port), *arguments]
    with tempfile.TemporaryFile() as log, ExitStack() as processes:
        process = processes.enter_context(_start([*argv, SCALE_OUT], log, tell))
        try:
            _wait_until_healthy(process, port, log, tell)
        except EngineError as error:
            if f"unrecognized arguments: {SCALE_OUT}" not in str(error):
                raise
            process = processes.enter_context(_start(argv, log, tell))  # an older vLLM
            _wait_until_healthy(process, port, log, tell)
        yield VllmServer(f"http://127.0.0.1:{port}/v1", lambda: _exit_report(process, log))


@contextmanager
def _start(
    argv: Sequence[str], log: IO[bytes], tell: Callable[[str], None]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the server's process; stop it at the end. A watcher stops it if this process is killed."""
    tell(f"Starting {shlex.join(argv)} ...")
    processes: list[subprocess.Popen[bytes]] = []
    watchers: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        processes.append(process)
        watch = [sys.executable, "-S", "-c", WATCH, str(process.pid)]
        watchers.append(
            subprocess.Popen(
                watch,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    # Signals reach the main thread alone. In that thread, a Ctrl-C inside Popen would lose the process.
    starter = ThreadPoolExecutor(1)
    try:
        try:
            starter.submit(start).result()
        except OSError as error:
            raise EngineError(
                f"Cannot start {argv[0]}: {error.strerror}. Set NEUROEXPLAIN_VLLM to what starts vLLM."
            ) from error
        yield processes[0]
    finally:
        starter.shutdown()
        for watcher in watchers:  # first, while the number of the server's process group is still its own
            watcher.kill()
            watcher.communicate()
        for process in processes:
            _stop(process, tell)


def find_command(command: str | None, model: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command line that serves a model: by the given command, else `vllm` on the PATH, else this Python.

    Raises EngineError if there is none of them.
    """
    if command is not None:
        words = split_words(command, "NEUROEXPLAIN_VLLM")
        if not words:
            raise EngineError("NEUROEXPLAIN_VLLM is empty. Set it to what starts vLLM, like  vllm serve")
        if words[-1] == "serve":
            return [*words, model]
        if Path(words[-1]).name == "vllm":
            return [*words, "serve", model]
        return [*words, "--model", model]
    executable = shutil.which("vllm", path=environment.get("PATH"))
    if executable is not None:
        return [executable, "serve", model]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    raise EngineError(
        "There is no vLLM to start: NEUROEXPLAIN_VLLM is not set, and it is neither on the PATH nor here.\n"
        "Install it:  pip install 'neuroexplain[vllm]'\n"
        "Or install it in an environment of its own and name its command:\n"
        "  export NEUROEXPLAIN_VLLM='ENVIRONMENT/bin/vllm serve'"
    )


def split_words(line: str, name: str) -> list[str]:
    """The words of a command line, split as by a shell. Raises EngineError if a quote is open."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise EngineError(f"Cannot read {name}, {line!r}: {error}. Write it as for a shell.") from error


def _wait_until_healthy(
    process: subprocess.Popen[bytes], port: int, log: IO[bytes], tell: Callable[[str], None]
) -> None:
    began = told_at = time.monotonic()
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while True:
            report = _exit_report(process, log)
            if report is not None:
                raise EngineError(report)
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
            if now - told_at > TELL_EVERY:
                told_at = now
                tell(f"vLLM is starting ({now - began:.0f} s) ...")
            time.sleep(0.5)


def _exit_report(process: subprocess.Popen[bytes], log: IO[bytes]) -> str | None:
    if process.poll() is None:
        return None
    return f"vLLM ended with status {process.returncode}. The end of its log:\n{_tail(log)}"


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL))
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:])


def _stop(process: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
    """End the server's process group, which holds its children too. A second interrupt kills it at once."""
    try:
        if process.poll() is None:
            tell("Stopping vLLM ...")
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP_WITHIN)
        time.sleep(0.5)  # for its children, which got the signal too; those that are left are killed
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
