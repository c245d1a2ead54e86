"""Requests to one server until they are answered, refused or not worth another try."""

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

TRIES = 5  # of a request that is itself at fault, for all that one can tell
KEPT = 20_000  # characters of a reply that are kept with a failed attempt
SHORTEST_TIMEOUT = 30.0  # seconds
LONGEST_WAIT = 120.0  # seconds that a server may ask for at a time; it can ask again
LARGEST_ANSWER = 256 * 2**20  # bytes; the most likely 100 tokens of a prompt of 8,000 take 70 MB
STOPPED = "The run was stopped."

Answer = TypeVar("Answer")


class Refused(LlmReplyError):
    """The server's last word on a request: asking again would bring the same."""


class Fault(Enum):
    """Why a request got no answer, by what that says of the request itself."""

    AWAY = auto()  # nobody there: nothing
    BUSY = auto()  # too many requests: nothing, if others are answered or nobody is
    FAILED = auto()  # taken, and then an error or nothing: something, if another is answered meanwhile
    GATEWAY = auto()  # somebody before the server says that it is not there, or too slow: as BUSY
    BROKEN = (
        auto()
    )  # an answer that breaks off or is no JSON: much, for others might break off too, and for ever


FAULTS = {
    408: Fault.FAILED,
    425: Fault.BUSY,
    429: Fault.BUSY,
    500: Fault.FAILED,
    502: Fault.GATEWAY,
    503: Fault.GATEWAY,
    504: Fault.GATEWAY,
}  # other statuses are the server's last word


class Transport:
    """POSTs to one server. May be used from many threads: its gate bounds how many requests are under way."""

    def __init__(
        self,
        root: str,
        *,
        api_key: str | None,
        max_wait: float,
        in_flight: int,
        fate: Callable[[], str | None] | None = None,
    ) -> None:
        """root: the URL before /v1. max_wait: seconds without an answer to anybody after which the server is lost.

        fate: how the server ended, None while it may come back.
        """
        self.root = root
        self._fate = fate or (lambda: None)
        self.smallest: tuple[str, bytes] | None = (
            None  # path and body of a request that any server at work answers
        )
        self.gate = Gate(in_flight)
        self._max_wait = max_wait
        self._longest = max(max_wait, SHORTEST_TIMEOUT)
        headers = {"Content-Type": "application/json"} | (
            {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        )
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=in_flight)
        timeout = httpx.Timeout(self._longest, connect=10.0)
        try:
            self.client = httpx.Client(headers=headers, timeout=timeout, limits=limits)
        except (
            ImportError,
            ValueError,
            OSError,
        ) as error:  # a proxy or a file of certificates that the environment names
            raise EngineError(
                f"No connection can be set up: {error}. See ALL_PROXY, HTTP_PROXY and SSL_CERT_FILE."
            ) from error

    def post(
        self, path: str, asked: Mapping[str, Any], decoder: msgspec.json.Decoder[Answer]
    ) -> tuple[Answer, bytes]:
        """The answer to the request `asked`, decoded, and as it came.

        Tried again while the server is away, restarting or busy. Raises EngineLost where nobody was answered for `max_wait`
        seconds, where the server ended for good, and where the transport was closed. Raises LlmReplyError where the server
        refuses the request, where the answer is JSON of another shape, and where this request fails again and again.
        """
        body = msgspec.json.encode(asked)
        failures = turned_away = 0
        seen = self.gate.n_answers
        while True:
            began = self.gate.enter()
            if began is None:
                raise EngineLost(STOPPED)
            found = self._send(self.root + path, body, decoder)
            if not isinstance(found, _Failure):
                self.gate.answered()
                if isinstance(found, LlmReplyError):
                    raise found
                return found
            away = self.gate.failed(began, away=found.fault in (Fault.AWAY, Fault.GATEWAY), wait=found.wait)
            if self.gate.closed:
                raise EngineLost(STOPPED)
            if (ended := self._fate()) is not None:
                raise EngineLost(
                    f"{ended}\nWhat was finished is kept; run the same command again to go on from there."
                )
            others = self.gate.n_answers > seen
            seen = self.gate.n_answers
            # Turned away while others are answered, its turn will come; with nobody beside it, is it that nobody is answered?
            turned_away = 0 if others else turned_away + (found.fault in (Fault.BUSY, Fault.GATEWAY))
            doubtful = found.fault is Fault.FAILED or turned_away >= TRIES
            works = others or (doubtful and self._answers_the_smallest())
            failures += found.fault is Fault.BROKEN or (works and doubtful)
            if failures == TRIES:
                raise LlmReplyError(Status.LLM_ERROR, f"{found.why}, {TRIES} times", found.reply)
            if away > self._max_wait and not works:
                raise EngineLost(
                    f"The server at {self.root} did not answer for {self._max_wait:g} seconds ({found.why}). "
                    "What was finished is kept; run the same command again when it is back."
                )

    def get(self, path: str) -> httpx.Response:
        """A page of the server. Raises httpx.HTTPError, httpx.InvalidURL."""
        with self.client.stream("GET", self.root + path) as answer:
            return httpx.Response(answer.status_code, content=self._read(answer))

    def close(self) -> None:
        """Requests that wait fail at once."""
        self.gate.close()
        self.client.close()

    def _answers_the_smallest(self) -> bool:
        """Whether the server works: then a request that failed with nobody beside it is itself at fault."""
        if self.smallest is None:
            return False
        path, body = self.smallest
        try:
            with self.client.stream(
                "POST", self.root + path, content=body, timeout=SHORTEST_TIMEOUT
            ) as answer:
                return answer.is_success
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: the client was closed meanwhile
            return False

    def _send(
        self, url: str, body: bytes, decoder: msgspec.json.Decoder[Answer]
    ) -> tuple[Answer, bytes] | LlmReplyError | _Failure:
        """One try."""
        try:
            with self.client.stream("POST", url, content=body) as answer:
                try:
                    raw = self._read(answer)
                except _EndlessError as error:
                    return _Failure(error.fault, f"the answer does not end: {error}")
                except httpx.HTTPError as error:
                    return _Failure(Fault.BROKEN, f"the answer broke off: {error}")
        except httpx.TimeoutException as error:
            away = isinstance(error, httpx.ConnectTimeout)
            return _Failure(Fault.AWAY if away else Fault.FAILED, "it took too long")
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
            refused = isinstance(error, httpx.ConnectError | RuntimeError)
            return _Failure(Fault.AWAY if refused else Fault.FAILED, str(error) or type(error).__name__)
        if answer.status_code in FAULTS:
            said = raw.decode("utf-8", "replace")
            return _Failure(
                FAULTS[answer.status_code], f"status {answer.status_code}", _retry_after(answer), said[:KEPT]
            )
        if not answer.is_success:
            return refusal(answer.status_code, raw)
        try:
            return decoder.decode(raw), raw
        except msgspec.ValidationError as error:
            return unusable(f"the answer has another shape: {error}", raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _Failure(
                Fault.BROKEN, f"the answer is no JSON: {error}", reply=raw.decode("utf-8", "replace")[:KEPT]
            )

    def _read(self, answer: httpx.Response) -> bytes:
        """The body, as large and as slow as an answer can be."""
        began, found = time.monotonic(), bytearray()
        for some in answer.iter_bytes():
            found += some
            if len(found) > LARGEST_ANSWER:
                raise _EndlessError(Fault.BROKEN, f"more than {LARGEST_ANSWER:,} bytes")
            if time.monotonic() - began > self._longest:
                raise _EndlessError(Fault.FAILED, f"more than {self._longest:g} seconds")
        return bytes(found)


class _EndlessError(httpx.ReadError):
    """An answer larger or slower than any can be."""

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault


class _Failure(msgspec.Struct, frozen=True):
    fault: Fault
    why: str
    wait: float = 0.0  # seconds that the server asked for
    reply: str | None = None


def unusable(reason: str, raw: bytes) -> LlmReplyError:
    """A failed attempt whose answer is kept to be looked at."""
    return LlmReplyError(Status.LLM_ERROR, reason, raw.decode("utf-8", "replace")[:KEPT])


def refusal(status: int, raw: bytes) -> Refused:
    """A request that the server will not answer, with what it said."""
    text = raw.decode("utf-8", "replace")
    try:
        said = msgspec.json.decode(raw)
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = text
    too_long = "maximum context length" in str(said) or "max_model_len" in str(said)
    return Refused(
        Status.CONTEXT_TOO_LONG if too_long else Status.LLM_ERROR, f"{status}: {str(said)[:500]}", text[:KEPT]
    )


def _retry_after(answer: httpx.Response) -> float:
    """Seconds, from a number or a date, at most LONGEST_WAIT; 0 where there is neither."""
    said = answer.headers.get("Retry-After", "")
    try:
        if said.strip().isdecimal():
            return min(float(said), LONGEST_WAIT)
        return min(max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()), LONGEST_WAIT)
    except (ValueError, TypeError, OverflowError):  # no date, or one without its zone
        return 0.0
