"""The progress of several parts as one."""

from functools import partial

from neuroexplain.collecting import devices
from neuroexplain.runtime.part_progress import combine
from neuroexplain.runtime.progress import Progress


def test_the_stage_shown_is_that_of_the_slowest():
    combined = partial(combine, order=devices.STAGES, counting=devices.READING)
    loading, reading = (
        {"loading the model": Progress("loading the model")},
        {"collecting": Progress("collecting", 3, 8, "segments")},
    )
    saving = {
        "collecting": Progress("collecting", 8, 8, "segments"),
        "saving": Progress("saving", 1, 2, "layers"),
    }
    assert combined([{}, {}]) == Progress("loading the model")
    assert combined([loading, {}]) == Progress("loading the model")
    assert combined([reading, loading]) == Progress("collecting", 3, None, "segments")
    assert combined([reading, saving]) == Progress("collecting", 11, 16, "segments")
    assert combined([saving, {}]) == Progress("collecting", 8, None, "segments")
    assert combined([saving, saving]) == Progress("saving", 2, 4, "layers")
    text = Progress("tokenizing", 7, None, "tokens")
    assert combined([loading, {}], before=text) == text
    assert combined([reading, {}], before=text) == Progress("collecting", 3, None, "segments")
