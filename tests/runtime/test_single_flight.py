"""Results that several threads need at the same time are computed once."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from neuroexplain.runtime.single_flight import SingleFlight


def test_a_result_is_computed_once_for_several_threads_and_again_after_a_failure():
    flight, computed = SingleFlight(2), []

    def compute():
        computed.append(1)
        time.sleep(0.05)
        if len(computed) == 1:
            raise OSError("no")
        return 7

    with pytest.raises(OSError, match="no"):
        flight.get("a", compute)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: flight.get("a", compute), range(4)))
    assert sorted(answers) == [(7, False)] * 3 + [(7, True)]
    assert len(computed) == 2
    for key in "bc":
        flight.get(key, compute)
    assert flight.get("a", compute) == (7, True)  # only the last two are kept


def test_calls_that_share_some_of_their_keys_wait_for_each_other():
    flight, computed = SingleFlight(1000), []

    def ask(first):
        def compute(keys):
            computed.append(keys)
            time.sleep(0.02)
            return [key * key for key in keys]

        keys = [first, first + 1, first, first + 2]
        assert flight.get_many(keys, compute)[0] == [key * key for key in keys]

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(ask, range(12)))
    assert sorted(key for keys in computed for key in keys) == list(range(14))


def test_a_failed_call_forgets_its_own_keys_only():
    flight = SingleFlight(10)
    flight.get_many(["a"], lambda keys: [1])
    with pytest.raises(ValueError, match="2 keys have 1 results"):
        flight.get_many(["a", "b", "c"], lambda keys: [2])
    assert flight.get_many(["a", "b"], lambda keys: [3 for _ in keys]) == ([1, 3], ["b"])
