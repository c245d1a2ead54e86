"""How many requests one server gets at a time, and when the next one may be sent.

Threads call `enter` before a request and `answered` or `failed` after it. Everything that spares a server is
here: the limit of requests at a time, the pause after failures, and the single request that tries again while
the server is away.

The limit is found by throughput: it doubles as long as the last doubling brought a tenth more answers a
second. Latency was rejected as the sign, since a batching server is slower for each request and faster for
all. The pause doubles too. Both belong to the server and not to one request, which is why tenacity, whose
waits belong to one call, is not used (docs/decisions.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_LIMIT = 8  # requests at a time at first: enough to see a batching server's gain, too few to overrun it
LEAST_GAIN = 1.1  # answers/s after a doubling of the limit over those before, for it to double again
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds after a failure until the next request


class Gate:
    """Lets at most `limit` requests in at a time, between 1 and `most`.

    A failure halves the limit, once for all requests that were in at that moment. While the server is away, a
    single request tries again, less and less often, and the other threads wait here. So a dead server is not
    hammered, and a server that comes back is not overrun.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = min(FIRST_LIMIT, most)
        self.n_answers = 0
        self.closed = False
        self._clock = clock
        self._changed = threading.Condition()
        self._inside = 0
        self._failing_since: float | None = None  # start of the first failed request after the last answer
        self._pause = 0.0  # seconds; 0 if nothing failed since the last answer
        self._not_before = 0.0  # when the next request may go in
        self._lowered_at = 0.0  # requests that began before it do not lower the limit again
        self._best_rate = 0.0  # answers/s, of the window before the last doubling
        self._window_began = self._answered_at = clock()
        self._answers_before_window = 0
        self._crowded = False  # whether a thread had to wait in this window

    @property
    def is_failing(self) -> bool:
        """Whether a request failed after the last answer."""
        return self._failing_since is not None

    @property
    def not_before(self) -> float:
        """When the next request may go in, by the clock."""
        return self._not_before

    def enter(self) -> float | None:
        """Wait until a request may go in. Returns the time by the clock, or None if the gate was closed."""
        with self._changed:
            while not self.closed:
                now = self._clock()
                if self._inside < self.limit and now >= self._not_before:
                    self._inside += 1
                    return now
                self._crowded = True
                self._changed.wait(self._not_before - now if self._inside < self.limit else None)
            return None

    def answered(self) -> None:
        """Report that a request was answered. A refusal is an answer too: the server works."""
        with self._changed:
            self._inside -= 1
            self._answered_at = self._clock()
            self._pause, self._failing_since = 0.0, None
            self.n_answers += 1
            if self.n_answers - self._answers_before_window >= max(self.limit, FIRST_LIMIT):
                self._end_window()
            self._changed.notify(max(0, self.limit - self._inside))

    def failed(self, began: float, *, away: bool, wait: float = 0.0) -> float:
        """Report that the request let in at `began` got no answer.

        away: the server is not there, so a single request tries again until it is. wait: seconds that the
        server asked for. Returns how many seconds the server will have answered no request when the next one
        may go in.
        """
        with self._changed:
            self._inside -= 1
            now = self._clock()
            if self._failing_since is None:
                self._failing_since = max(began, self._answered_at)
            if began >= self._lowered_at:
                self.limit = 1 if away else max(1, self.limit // 2)
                self._lowered_at = now
                self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
                self._restart_window(best_rate=0.0)
            self._not_before = max(self._not_before, now + max(self._pause, wait))
            self._changed.notify(max(0, self.limit - self._inside))
            return self._not_before - self._failing_since

    def close(self) -> None:
        """Let no more requests in. Waiting threads return from `enter` at once."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _end_window(self) -> None:
        """Double the limit if threads had to wait and the last doubling brought more answers a second."""
        seconds = max(self._answered_at - self._window_began, 1e-9)
        rate = (self.n_answers - self._answers_before_window) / seconds
        grows = self._crowded and self.limit < self.most and rate > LEAST_GAIN * self._best_rate
        if grows:
            self.limit = min(2 * self.limit, self.most)
        self._restart_window(best_rate=rate if grows else self._best_rate)

    def _restart_window(self, best_rate: float) -> None:
        self._best_rate = best_rate
        self._answers_before_window, self._crowded = self.n_answers, False
        self._window_began = self._clock()
