"""Several servers that answer alike, used as one: a request goes to one of them, and to another if it fails.

Servers join and leave while requests run. Each is checked when it joins, against the first one and by a
request whose answer is known, because an answer must not depend on which server gave it. A server that fails
is left out and checked again after a pause, longer each time. Where none is left, requests wait as they do
for one dead server, and by the same rule the run ends (transport.py).

A server that leaves has its gate closed, so that requests which wait there go elsewhere, and those which are
under way may still be answered. One that comes back is connected anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from neuroexplain.errors import EngineError, EngineLost, LlmReplyError
from neuroexplain.llm.gate import FIRST_PAUSE, LONGEST_PAUSE
from neuroexplain.llm.routing import choose_server
from neuroexplain.llm.served import Server, ServerAway
from neuroexplain.llm.server_list import ServerList
from neuroexplain.llm.transport import STOPPED, Attempts, Fault, Unanswered
from neuroexplain.runtime.in_flight import map_in_flight

WATCH_EVERY = 0.5  # seconds between two looks at the file and at the servers that are left out
MOST_IN_FLIGHT = (
    512  # requests to all servers: a thread each, and the client's own cores are full long before
)

Answer = TypeVar("Answer")
Connect = Callable[[str, str | None], Server]  # (URL, model) -> the server; raises EngineError
Check = Callable[[Server], str | None]  # how the server's answers differ; raises ServerAway
Tell = Callable[[str], None]  # shows a person a line


@dataclass(eq=False)
class Replica:
    """A listed server: connected, or left out until a check succeeds."""

    url: str
    server: Server | None = None
    outstanding: int = 0  # requests that were given to the server
    is_joining: bool = False
    pause: float = 0.0  # seconds between the last two checks
    next_check: float = 0.0  # by the clock
    reason: str | None = None  # why it is left out, as it was told
    served: list[Server] = field(default_factory=list)  # servers that left and have requests under way


class Replicas:
    """The servers of a list, with the methods of a Transport. Safe to use from many threads."""

    def __init__(
        self,
        servers: ServerList,
        model: str | None,
        connect: Connect,
        *,
        max_wait: float,
        in_flight: int,
        tell: Tell,
    ) -> None:
        """Connect to all servers. Raises EngineError if none answers or if they do not serve the same."""
        self._list, self._connect, self._tell = servers, connect, tell
        self._max_wait, self._in_flight_each = max_wait, in_flight
        self._changed = threading.Condition()
        self._closed = False
        self._checks: list[Check] = []
        self._answered_at = time.monotonic()
        self._failing_since: float | None = None  # the first failure after the last answer
        self._replicas = {url: Replica(url) for url in servers.urls}
        self.first = self._connect_all(model)
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def n_servers(self) -> tuple[int, int]:
        """(servers that answer, servers that are listed)."""
        with self._changed:
            return len(self._members()), len(self._replicas)

    @property
    def servers(self) -> list[Server]:
        """The servers that answer, in the order of the list."""
        with self._changed:
            return [r.server for r in self._members() if r.server is not None]

    @property
    def in_flight(self) -> int:
        """Most requests at a time to all listed servers."""
        return min(self._in_flight_each * max(1, len(self._replicas)), MOST_IN_FLIGHT)

    def describe(self) -> str:
        """Which servers answer, and which do not."""
        with self._changed:
            answering = [r.url for r in self._members()]
            away = [r.url for r in self._replicas.values() if r.server is None]
        n = (
            f"{len(answering)} of {len(answering) + len(away)} servers"
            if away
            else f"{len(answering)} servers"
        )
        rest = f"; no answer from {', '.join(away)}" if away else ""
        return f"{n}, {', '.join(answering)}{rest}"

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        decoder: msgspec.json.Decoder[Answer],
        prefix: bytes = b"",
    ) -> tuple[Answer, bytes]:
        """POST `body` as JSON to a server: see Transport.post, and routing.py for what `prefix` decides."""
        content, attempts = msgspec.json.encode(body), Attempts()
        while True:
            replica, server = self._take(prefix)
            try:
                outcome = server.transport.attempt(path, content, decoder, attempts)
            except LlmReplyError:
                self._note_answer()
                raise
            finally:
                self._release(replica, server)
            if isinstance(outcome, Unanswered):
                self._note_failure(replica, server, outcome)
            elif outcome is not None:
                self._note_answer()
                return outcome

    def hold_to(self, check: Check) -> None:
        """Require of all servers, now and when they join, that the check finds no difference.

        Raises EngineError if a server that is connected differs.
        """
        with self._changed:
            members = [(r, r.server) for r in self._members() if r.server is not None]
            self._checks.append(check)
        for replica, server in members:
            try:
                difference = check(server)
            except ServerAway as error:
                self._leave_out(replica, server, str(error))
                continue
            if difference is not None:
                raise _refusal(server, difference)

    def close(self) -> None:
        """Close all connections. Waiting requests fail at once."""
        with self._changed:
            self._closed = True
            servers = [s for r in self._replicas.values() for s in (r.server, *r.served) if s is not None]
            self._changed.notify_all()
        for server in servers:
            server.transport.close()

    def _members(self) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.server is not None]

    def _connect_all(self, model: str | None) -> Server:
        """Connect to all servers at once. Returns the first of the list that answers."""

        def connect(replica: Replica) -> ServerAway | None:
            try:
                replica.server = self._connect(replica.url, model)
            except ServerAway as error:
                return error
            return None

        replicas = list(self._replicas.values())
        try:
            errors = dict(map_in_flight(connect, replicas, len(replicas)))
            servers = [r.server for r in replicas if r.server is not None]
            for server in servers[1:]:
                difference = server.difference(servers[0])
                if difference is not None:
                    raise _refusal(server, difference)
            if not servers:
                raise EngineError("\n".join(str(errors[replica]) for replica in replicas))
        except BaseException:
            self.close()
            raise
        for replica in replicas:
            if replica.server is None:
                self._pause(replica, "it does not answer")
        return servers[0]

    def _take(self, prefix: bytes) -> tuple[Replica, Server]:
        """The server for a request, counted as given to it; waits while there is none."""
        with self._changed:
            while True:
                if self._closed:
                    raise EngineLost(STOPPED)
                now, members = time.monotonic(), self._members()
                ready = [r for r in members if r.server and r.server.transport.gate.not_before <= now]
                if members:
                    url = choose_server(prefix, {r.url: r.outstanding for r in ready or members})
                    replica = self._replicas[url]
                    assert replica.server is not None
                    replica.outstanding += 1
                    return replica, replica.server
                if self._failing_since is None:
                    self._failing_since = now
                self._check_silence(now)
                self._changed.wait(self._failing_since + self._max_wait - now + 0.01)

    def _release(self, replica: Replica, server: Server) -> None:
        """Take back the count of `_take`. A server that left is closed after its last request."""
        with self._changed:
            replica.outstanding -= 1
            is_last = server in replica.served and not replica.outstanding
            if is_last:
                replica.served.remove(server)
        if is_last:
            server.transport.close()

    def _note_answer(self) -> None:
        self._answered_at, self._failing_since = time.monotonic(), None

    def _note_failure(self, replica: Replica, server: Server, failure: Unanswered) -> None:
        """Leave out a server that works for nobody. Raises EngineLost if none has answered for too long."""
        works_for_nobody = failure.fault is not Fault.BUSY and not failure.server_works
        with self._changed:
            if self._failing_since is None:
                self._failing_since = max(failure.began, self._answered_at)
        if failure.fault is Fault.AWAY or works_for_nobody:
            self._leave_out(replica, server, failure.reason)
        with self._changed:
            if not failure.server_works:
                self._check_silence(time.monotonic())

    def _check_silence(self, now: float) -> None:
        """Raise EngineLost if no server has answered for max_wait seconds and none is left untried."""
        untried = [r for r in self._members() if r.server and not r.server.transport.gate.is_failing]
        if untried or self._failing_since is None or now - self._failing_since <= self._max_wait:
            return
        reasons = "; ".join(f"{r.url}: {r.reason or 'busy'}" for r in self._replicas.values())
        raise EngineLost(
            f"None of {len(self._replicas)} servers answered for {self._max_wait:g} seconds ({reasons}). "
            "Finished results are kept; run the same command again when they are back."
        )

    def _leave_out(self, replica: Replica, server: Server, reason: str) -> None:
        """Leave out the server, if nobody has yet, until a check succeeds."""
        with self._changed:
            if replica.server is not server or self._closed:
                return
            if server.transport.gate.n_answers:
                replica.pause = 0.0
            self._disconnect(replica)
            self._pause(replica, reason)
            n = f"{len(self._members())} of {len(self._replicas)} servers answer"
        self._tell(f"The server at {replica.url} is left out and tried again ({reason}). {n}.")

    def _disconnect(self, replica: Replica) -> None:
        """Send the server no further requests."""
        server, replica.server = replica.server, None
        assert server is not None
        server.transport.gate.close()
        if replica.outstanding:
            replica.served.append(server)
        else:
            server.transport.close()
        self._changed.notify_all()

    def _pause(self, replica: Replica, reason: str) -> None:
        replica.pause = min(max(2 * replica.pause, FIRST_PAUSE), LONGEST_PAUSE)
        replica.next_check = time.monotonic() + replica.pause
        replica.reason = reason

    def _watch(self) -> None:
        """Read the list again when it changes, and check the servers that are left out."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, WATCH_EVERY)
                if self._closed:
                    return
            self._read_list()
            now = time.monotonic()
            with self._changed:
                due = [
                    r
                    for r in self._replicas.values()
                    if r.server is None and not r.is_joining and r.next_check <= now
                ]
                for replica in due:
                    replica.is_joining = True
            for replica in due:  # a thread each: a server that hangs holds up no other
                threading.Thread(target=self._join, args=(replica,), daemon=True).start()

    def _read_list(self) -> None:
        if not self._list.changed():
            return
        try:
            self._list.read_again()
        except EngineError as error:
            self._tell(f"{error} The servers stay as they were.")
            return
        with self._changed:
            before, listed = self._replicas, self._list.urls
            self._replicas = {url: before.get(url) or Replica(url) for url in listed}
            gone = [replica for url, replica in before.items() if url not in self._replicas]
            for replica in gone:
                if replica.server is not None:
                    self._disconnect(replica)
            self._changed.notify_all()
            n = f"{len(self._members())} of {len(listed)} servers answer"
        if gone:
            self._tell(f"No longer listed: {', '.join(r.url for r in gone)}. {n}.")

    def _join(self, replica: Replica) -> None:
        """Connect the server and check it; it joins if its answers are those of the others."""
        server, reason, is_refused = None, "", False
        try:
            server = self._connect(replica.url, self.first.model)
            difference = server.difference(self.first)
            for check in self._checks:
                difference = difference or check(server)
            if difference is not None:
                raise _refusal(server, difference)
            if not server.transport.answers_one_token_request():
                raise ServerAway(f"The server at {replica.url} answers no request of one token.")
        except EngineError as error:
            reason, is_refused = str(error), not isinstance(error, ServerAway)
        with self._changed:
            replica.is_joining = False
            is_listed = self._replicas.get(replica.url) is replica and not self._closed
            joins = is_listed and not reason
            is_news = is_refused and replica.reason != reason
            if joins:
                replica.server, replica.reason = server, None
                self._changed.notify_all()
            elif is_listed:
                self._pause(replica, reason if is_refused else replica.reason or reason.splitlines()[0])
            n = f"{len(self._members())} of {len(self._replicas)} servers answer"
        if joins:
            self._tell(f"The server at {replica.url} answers. {n}.")
            return
        if server is not None:
            server.transport.close()
        if is_listed and is_news:
            self._tell(f"{reason} {n}.")


def _refusal(server: Server, difference: str) -> EngineError:
    return EngineError(
        f"The server at {server.url} {difference}. Servers that answer together must serve the same. "
        "Leave it out, or start it as the others."
    )
