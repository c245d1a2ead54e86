"""How many requests one server has at a time, and when the next may go: the one place that is careful with a server in need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_LIMIT = 8  # requests at a time to begin with
WORTH = 1.1  # the limit is doubled again only if the last doubling brought a tenth more answers a second
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds until a server that failed is asked again


class Gate:
    """Lets at most `limit` requests in, between 1 and `most`.

    The limit is doubled as long as that brings more answers a second, and halved, once for all requests that were under way,
    where the server refuses or is too slow. While the server is away a single request tries, less and less often; the others
    wait here, so a dead server is not hammered and a server that comes back is not overrun.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.limit = min(FIRST_LIMIT, most)
        self.n_answers = 0
        self.closed = False
        self._clock = clock
        self._changed = threading.Condition()
        self._inside = 0
        self._failing_since: float | None = (
            None  # when the first request began that failed since the last answer
        )
        self._pause = 0.0  # seconds; 0: no failure since the last answer
        self._not_before = 0.0
        self._cut = 0.0  # when the limit was last lowered: requests that began earlier do not lower it again
        self._best_rate = 0.0  # answers/s
        self._window = self._answered_at = clock()
        self._window_answers = 0  # when this window began
        self._crowded = False  # whether somebody had to wait in this window

    def enter(self) -> float | None:
        """Wait for a place; the time by the clock, or None where the gate was closed meanwhile."""
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
        """A request that was let in was answered, be it by a refusal of what it asked."""
        with self._changed:
            self._inside -= 1
            self._answered_at = self._clock()
            self._pause, self._failing_since = 0.0, None
            self.n_answers += 1
            if self.n_answers - self._window_answers >= max(self.limit, FIRST_LIMIT):
                self._consider()
            self._changed.notify(max(0, self.limit - self._inside))

    def failed(self, began: float, *, away: bool, wait: float = 0.0) -> float:
        """A request that was let in at `began` got no answer; how long nobody will have got one when the next may go.

        away: the server is not there, so a single request tries until it is. wait: seconds that the server asked for.
        """
        with self._changed:
            self._inside -= 1
            now = self._clock()
            if self._failing_since is None:
                self._failing_since = max(began, self._answered_at)
            if began >= self._cut:
                self.limit = 1 if away else max(1, self.limit // 2)
                self._cut = now
                self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
                self._restart_window(best_rate=0.0)
            self._not_before = max(self._not_before, now + max(self._pause, wait))
            self._changed.notify(max(0, self.limit - self._inside))
            return self._not_before - self._failing_since

    def close(self) -> None:
        """Let nobody in any more; who waits is told at once."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _consider(self) -> None:
        rate = (self.n_answers - self._window_answers) / max(self._answered_at - self._window, 1e-9)
        grows = self._crowded and self.limit < self.most and rate > WORTH * self._best_rate
        if grows:
            self.limit = min(2 * self.limit, self.most)
        self._restart_window(best_rate=rate if grows else self._best_rate)

    def _restart_window(self, best_rate: float) -> None:
        self._best_rate = best_rate
        self._window_answers, self._crowded, self._window = self.n_answers, False, self._clock()
