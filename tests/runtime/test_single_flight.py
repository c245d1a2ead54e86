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
