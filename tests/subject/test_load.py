"""Loading models: what it changes in the process."""

import resource
import subprocess
import sys

import pytest

from neuroexplain.subject.load import load_subject
from tests.fakes import tiny_subject

FAULTS = """
import resource, torch
from neuroexplain.runtime.tuning import keep_freed_memory
keep_freed_memory() if {keep} else None
def work():
    [torch.zeros(n * 786_432) for n in range(1, 9)]  # 3 to 24 MiB each: freed, and asked for again
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no mallopt")
def test_freed_memory_is_not_given_back_and_cleared_again():
    def run(keep):
        code = FAULTS.format(keep=keep)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    pages = 10 * sum(range(1, 9)) * 786_432 * 4 // resource.getpagesize()
    kept, given_back = int(run(True).stdout), int(run(False).stdout)
    assert kept < pages / 20 < given_back


def test_the_hash_of_weights_tells_models_apart_and_not_dtypes(tmp_path):
    model = str(tiny_subject(tmp_path / "a"))
    subject, rounded = load_subject(model, "float32"), load_subject(model, "bfloat16")
    assert subject.weights_sha256 == rounded.weights_sha256
    other = load_subject(model, "float32")
    other.model.get_parameter("layers.1.mlp.up_proj.weight").data[0] *= 1.1
    assert other.weights_sha256 != subject.weights_sha256
