"""The gate by a clock of the test's own: how many go in, when, and what failures do to that."""

import threading

import pytest

from neuroexplain.llm.gate import FIRST_PAUSE, LONGEST_PAUSE, Gate


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run_window(gate, clock, seconds, *, crowded=True):
    """As many answers as fill a window, after `seconds`."""
    gate._crowded = crowded
    n = max(gate.limit, 8)
    clock.now += seconds
    for _ in range(n):
        gate._inside += 1
        gate.answered()


def test_the_limit_doubles_while_that_brings_more_answers_a_second(clock):
    gate = Gate(64, clock=clock)
    assert gate.limit == 8
    run_window(gate, clock, 1.0)
    assert gate.limit == 16
    run_window(gate, clock, 1.0)  # 16 answers/s, after 8
    assert gate.limit == 32
    run_window(gate, clock, 1.9)  # 17 answers/s: not worth it
    assert gate.limit == 32
    run_window(gate, clock, 1.0)
    assert gate.limit == 64
    run_window(gate, clock, 0.1)
    assert gate.limit == 64


def test_the_limit_stays_if_no_thread_has_to_wait(clock):
    gate = Gate(64, clock=clock)
    run_window(gate, clock, 1.0, crowded=False)
    assert gate.limit == 8


def test_failures_of_requests_that_were_under_way_together_count_once(clock):
    gate = Gate(64, clock=clock)
    began = [gate.enter() for _ in range(8)]
    clock.now += 1
    for time in began:
        gate.failed(time, away=False)
    assert gate.limit == 4


def test_while_the_server_is_away_one_request_tries_less_and_less_often(clock):
    gate = Gate(64, clock=clock)
    pauses = []
    for _ in range(9):
        began = gate.enter()
        clock.now += 0.01
        gate.failed(began, away=True)
        assert gate.limit == 1
        pauses.append(gate._not_before - clock.now)
        clock.now = gate._not_before
    assert pauses[0] == pytest.approx(FIRST_PAUSE)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)
    assert gate.failed(gate.enter(), away=True) == pytest.approx(clock.now + LONGEST_PAUSE - 100.0)
    clock.now = gate._not_before
    gate.enter()
    gate.answered()
    assert gate.failed(gate.enter(), away=True) == pytest.approx(FIRST_PAUSE)


def test_what_the_server_asks_to_wait_is_waited_by_all_though_others_are_answered(clock):
    gate = Gate(64, clock=clock)
    first, _ = gate.enter(), gate.enter()
    gate.failed(first, away=False, wait=30)
    gate.answered()
    assert gate._not_before == clock.now + 30


def test_closing_releases_waiting_threads():
    gate = Gate(1)
    assert gate.enter() is not None
    results = []
    waiting = threading.Thread(target=lambda: results.append(gate.enter()))
    waiting.start()
    gate.close()
    waiting.join(5)
    assert results == [None]


def test_never_more_than_the_limit_are_inside_and_no_thread_is_forgotten():
    gate, lock, inside, most = Gate(64), threading.Lock(), 0, []

    def work():
        nonlocal inside
        for _ in range(20):
            gate.enter()
            with lock:
                inside += 1
                most.append((inside, gate.limit))
            with lock:
                inside -= 1
            gate.answered()

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 800
    assert all(n <= 64 for n, _ in most)
