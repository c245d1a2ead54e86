"""Many requests at once: all answered, bounded, faults raised, nothing waited for."""

import threading
import time

import pytest

from neuroexplain.runtime.in_flight import map_in_flight


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_item_is_answered_once_and_never_more_than_n_at_a_time(n):
    running, most, lock = 0, 0, threading.Lock()

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return item * item

    assert sorted(map_in_flight(work, range(40), n)) == [(i, i * i) for i in range(40)]
    assert most <= n


def test_items_are_read_only_a_little_ahead():
    taken = []
    answers = map_in_flight(lambda item: item, (taken.append(i) or i for i in range(1000)), 3)
    next(answers)
    assert len(taken) <= 6
    answers.close()


@pytest.mark.parametrize("n", [1, 4])
def test_an_exception_of_the_work_is_raised_to_the_caller(n):
    with pytest.raises(ZeroDivisionError):
        list(map_in_flight(lambda item: 1 // item, [3, 2, 0, 1], n))


def test_leaving_early_waits_for_nothing():
    began = time.monotonic()
    answers = map_in_flight(time.sleep, [0, 5, 5], 3)
    next(answers)
    answers.close()
    assert time.monotonic() - began < 2
