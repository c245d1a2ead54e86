"""Send a request to one server until it is answered, refused, or given up.

A failure may be the server's fault or the request's, and only what happens to other requests tells which.
Faults that say nothing of the request (`AWAY`, `BUSY`, `GATEWAY`) are waited for, until no request was
answered for `max_wait` seconds. Faults that the request may have caused (`FAILED`) count against it if others
were answered meanwhile; if there were no others, a request of one token is sent to see whether the server
works. A `BROKEN` answer always counts. A request with `TRIES` faults is a failed attempt. docs/decisions.md
has the cases that led to this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any, TypeVar

import httpx
import msgspec

from neuroexplain.errors import EngineError, EngineLost, LlmReplyError
from neuroexplain.evidence import Status
from neuroexplain.llm.gate import Gate
from neuroexplain.llm.proxy import find_proxy, is_this_machine

TRIES = 5  # faults that count against a request until it is given up
REPLY_LENGTH = 20_000  # characters of a reply that are stored with a failed attempt
SHORTEST_TIMEOUT = 30.0  # seconds for an answer, however small max_wait is: a long text takes as long
LONGEST_WAIT = 120.0  # seconds that a server may ask for with one Retry-After; it can ask again
LARGEST_ANSWER = 256 * 2**20  # bytes; the 100 most likely tokens at 8,000 prompt tokens take 70 MB
STOPPED = "The run was stopped."

Answer = TypeVar("Answer")


class Refused(LlmReplyError):
    """The server refused the request, and would refuse it again."""


class Fault(Enum):
    """Why a request got no answer."""

    AWAY = auto()  # no connection: no fault of the request
    BUSY = auto()  # too many requests: no fault of the request, unless it alone is always turned away
    FAILED = auto()  # an error or no answer in time: the request may have caused it
    GATEWAY = auto()  # a proxy says that the server is away or too slow: like BUSY
    BROKEN = auto()  # the answer breaks off or is no JSON: counts always, or it would be repeated for ever


FAULT_OF_STATUS = {
    408: Fault.FAILED,
    425: Fault.BUSY,
    429: Fault.BUSY,
    500: Fault.FAILED,
    502: Fault.GATEWAY,
    503: Fault.GATEWAY,
    504: Fault.GATEWAY,
}  # any other error status is a refusal


class Transport:
    """Sends requests to one server, from many threads. Its gate bounds the number of requests at a time."""

    def __init__(
        self,
        root: str,
        *,
        api_key: str | None,
        max_wait: float,
        in_flight: int,
        exit_report: Callable[[], str | None] | None = None,
    ) -> None:
        """root: the URL before /v1. max_wait: seconds without any answer until the server counts as lost.

        exit_report: says how the server's process ended; None while it runs. Raises EngineError if the
        environment names a proxy or a certificate file that cannot be used.
        """
        self.root = root
        self._exit_report = exit_report or (lambda: None)
        # Path and body of a request that any working server answers.
        self.one_token_request: tuple[str, bytes] | None = None
        self.gate = Gate(in_flight)
        self._max_wait = max_wait
        self._timeout = max(max_wait, SHORTEST_TIMEOUT)
        headers = {"Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=in_flight)
        timeout = httpx.Timeout(self._timeout, connect=10.0)
        try:
            # Proxies of the environment stand beyond this machine only.
            self.client = httpx.Client(
                headers=headers, timeout=timeout, limits=limits, trust_env=not is_this_machine(root)
            )
        except (ImportError, ValueError, OSError) as error:
            raise EngineError(
                f"The connection cannot be set up: {error}. See ALL_PROXY, HTTP_PROXY and SSL_CERT_FILE."
            ) from error

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        decoder: msgspec.json.Decoder[Answer],
        prefix: bytes = b"",
    ) -> tuple[Answer, bytes]:
        """POST `body` as JSON; the answer, decoded and raw.

        Repeats the request while the server is away, restarting or busy. Raises EngineLost if no request was
        answered for `max_wait` seconds, if the server's process ended, and if the transport was closed.
        Raises LlmReplyError if the server refuses the request, if the answer is JSON of another shape, and if
        this request has failed TRIES times.
        """
        content, attempts = msgspec.json.encode(body), Attempts()
        while True:
            outcome = self.attempt(path, content, decoder, attempts)
            if outcome is None:
                raise EngineLost(STOPPED)
            if not isinstance(outcome, Unanswered):
                return outcome
            if outcome.silent_for > self._max_wait and not outcome.server_works:
                raise EngineLost(
                    f"The server at {self.root}{self.route} did not answer for {self._max_wait:g} seconds "
                    f"({outcome.reason}). Finished results are kept; "
                    "run the same command again when the server is back."
                )

    def attempt(
        self, path: str, content: bytes, decoder: msgspec.json.Decoder[Answer], attempts: Attempts
    ) -> tuple[Answer, bytes] | Unanswered | None:
        """Send a request once, when the gate lets it in; None if the transport was closed.

        Raises LlmReplyError and EngineLost as `post` does, but never for silence.
        """
        attempts.begin(self.gate)
        began = self.gate.enter()
        if began is None:
            return None
        outcome = self.send(path, content, decoder)
        if not isinstance(outcome, Failure):
            self.gate.answered()
            if isinstance(outcome, LlmReplyError):
                raise outcome
            return outcome
        is_away = outcome.fault in (Fault.AWAY, Fault.GATEWAY)
        silent_for = self.gate.failed(began, away=is_away, wait=outcome.wait)
        if self.gate.closed:
            return None
        report = self._exit_report()
        if report is not None:
            raise EngineLost(f"{report}\nFinished results are kept; run the same command again to continue.")
        server_works = attempts.count(outcome, self.gate, self.answers_one_token_request)
        return Unanswered(outcome.fault, outcome.reason, began, silent_for, server_works)

    @property
    def route(self) -> str:
        """How requests reach the server, for messages: empty unless there is a proxy."""
        proxy = find_proxy(self.root)
        return "" if proxy is None else f" (through the proxy {proxy} of the environment)"

    def get(self, path: str) -> httpx.Response:
        """GET a page of the server. Raises httpx.HTTPError or httpx.InvalidURL."""
        with self.client.stream("GET", self.root + path) as response:
            return httpx.Response(response.status_code, content=self._read_body(response))

    def close(self) -> None:
        """Close all connections. Waiting requests fail at once."""
        self.gate.close()
        self.client.close()

    def answers_one_token_request(self) -> bool:
        """Whether the server works, so that a request that failed alone is itself at fault."""
        if self.one_token_request is None:
            return False
        path, content = self.one_token_request
        url = self.root + path
        try:
            with self.client.stream("POST", url, content=content, timeout=SHORTEST_TIMEOUT) as response:
                return response.is_success
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: the client was closed meanwhile
            return False

    def send(
        self, path: str, content: bytes, decoder: msgspec.json.Decoder[Answer]
    ) -> tuple[Answer, bytes] | LlmReplyError | Failure:
        """Send a request once, whatever the gate says."""
        try:
            with self.client.stream("POST", self.root + path, content=content) as response:
                try:
                    raw = self._read_body(response)
                except _EndlessError as error:
                    return Failure(error.fault, f"the answer does not end: {error}")
                except httpx.HTTPError as error:
                    return Failure(Fault.BROKEN, f"the answer broke off: {error}")
        except httpx.TimeoutException as error:
            is_away = isinstance(error, httpx.ConnectTimeout)
            return Failure(Fault.AWAY if is_away else Fault.FAILED, "it took too long")
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
            is_away = isinstance(error, httpx.ConnectError | RuntimeError)
            return Failure(Fault.AWAY if is_away else Fault.FAILED, str(error) or type(error).__name__)
        status = response.status_code
        if status in FAULT_OF_STATUS:
            wait = _retry_after(response)
            return Failure(FAULT_OF_STATUS[status], f"status {status}", wait, reply_text(raw))
        if not response.is_success:
            return _refusal(status, raw)
        try:
            return decoder.decode(raw), raw
        except msgspec.ValidationError as error:
            return unusable(f"the answer has another shape: {error}", raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Failure(Fault.BROKEN, f"the answer is no JSON: {error}", reply=reply_text(raw))

    def _read_body(self, response: httpx.Response) -> bytes:
        """The body. Raises _EndlessError if it is larger or slower than an answer can be."""
        began, body = time.monotonic(), bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > LARGEST_ANSWER:
                raise _EndlessError(Fault.BROKEN, f"more than {LARGEST_ANSWER:,} bytes")
            if time.monotonic() - began > self._timeout:
                raise _EndlessError(Fault.FAILED, f"more than {self._timeout:g} seconds")
        return bytes(body)


class Attempts:
    """What is known of one request that was not answered yet, from all servers that it was sent to."""

    def __init__(self) -> None:
        self._n_faults = self._n_turned_away = 0
        self._n_answers: dict[Gate, int] = {}  # of each server, when this request was last sent to it

    def begin(self, gate: Gate) -> None:
        """Note that the request is going to be sent."""
        self._n_answers.setdefault(gate, gate.n_answers)

    def count(self, failure: Failure, gate: Gate, answers_one_token: Callable[[], bool]) -> bool:
        """Count a failure. Returns whether the server is known to work.

        Raises LlmReplyError if the request has failed TRIES times.
        """
        others_answered = gate.n_answers > self._n_answers[gate]
        self._n_answers[gate] = gate.n_answers
        # A request turned away while others are answered gets its turn later. Turned away again and again
        # with no others beside it, it may be the only one that the server turns away.
        is_turned_away = failure.fault in (Fault.BUSY, Fault.GATEWAY)
        self._n_turned_away = 0 if others_answered else self._n_turned_away + is_turned_away
        is_suspect = failure.fault is Fault.FAILED or self._n_turned_away >= TRIES
        server_works = others_answered or (is_suspect and answers_one_token())
        self._n_faults += failure.fault is Fault.BROKEN or (server_works and is_suspect)
        if self._n_faults == TRIES:
            raise LlmReplyError(Status.LLM_ERROR, f"{failure.reason}, {TRIES} times", failure.reply)
        return server_works


class Unanswered(msgspec.Struct, frozen=True):
    """A request was sent once and is to be sent again."""

    fault: Fault
    reason: str
    began: float  # by the gate's clock
    silent_for: float  # seconds that the server will have answered no request when the next one may go in
    server_works: bool  # whether the server is known to answer others


class _EndlessError(httpx.ReadError):
    """An answer is too large or too slow."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault


class Failure(msgspec.Struct, frozen=True):
    """A request was sent and got no answer that can be used."""

    fault: Fault
    reason: str
    wait: float = 0.0  # seconds that the server asked for
    reply: str | None = None


def reply_text(raw: bytes) -> str:
    """The part of an answer that is stored with a failed attempt."""
    return raw.decode("utf-8", "replace")[:REPLY_LENGTH]


def unusable(reason: str, raw: bytes) -> LlmReplyError:
    """The failed attempt for an answer that cannot be used. It holds the answer."""
    return LlmReplyError(Status.LLM_ERROR, reason, reply_text(raw))


def _refusal(status: int, raw: bytes) -> Refused:
    """The failed attempt for a request that the server refuses, with the server's message."""
    try:
        message = msgspec.json.decode(raw)
        message = message.get("error", message) if isinstance(message, dict) else message
        message = message.get("message", message) if isinstance(message, dict) else message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = raw.decode("utf-8", "replace")
    too_long = "maximum context length" in str(message) or "max_model_len" in str(message)
    kind = Status.CONTEXT_TOO_LONG if too_long else Status.LLM_ERROR
    return Refused(kind, f"{status}: {str(message)[:500]}", reply_text(raw))


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait by the Retry-After header, a number or a date, at most LONGEST_WAIT; 0 without it."""
    header = response.headers.get("Retry-After", "")
    try:
        if header.strip().isdecimal():
            return min(float(header), LONGEST_WAIT)
        seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without its zone
        return 0.0
    return min(max(0.0, seconds), LONGEST_WAIT)
