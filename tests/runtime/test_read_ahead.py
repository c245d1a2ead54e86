"""A thread that makes what comes next: in order, bounded, its errors and its end carried over."""

import threading
import time

import pytest

from neuroexplain.runtime.read_ahead import ReadAhead


def wait_until(holds):
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


def test_items_come_in_order_and_only_so_many_are_made_ahead():
    taken = []
    items = iter(ReadAhead((taken.append(n) or n for n in range(20)), ahead=3))
    assert next(items) == 0
    wait_until(lambda: len(taken) == 4)
    time.sleep(0.02)
    assert taken == [0, 1, 2, 3]
    assert list(items) == list(range(1, 20))


def test_an_error_is_raised_where_the_items_are_used():
    def items():
        yield 1
        raise OSError("gone")

    received = []
    with pytest.raises(OSError, match="gone"):
        received.extend(ReadAhead(items()))
    assert received == [1]


def test_left_early_the_thread_ends():
    before = threading.active_count()
    items = iter(ReadAhead(iter(range(10**9))))
    assert next(items) == 0
    items.close()
    wait_until(lambda: threading.active_count() == before)


def test_it_knows_how_long_the_caller_waited():
    gate = threading.Event()
    ahead = ReadAhead(n for n in range(2) if gate.wait(10))
    threading.Timer(0.2, gate.set).start()
    assert list(ahead) == [0, 1]
    assert ahead.waited > 0.1
