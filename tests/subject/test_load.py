"""Loading models: what it changes in the process."""

import os
import resource
import subprocess
import sys

import pytest

from neuroexplain.subject.load import load_subject
from tests.fakes import tiny_subject

# The pages that the kernel clears for a second block of 24 MB. The C library gives back the first block.
# What it does with later ones depends on the gaps between them, and torch's aligned blocks leave gaps.
FAULTS = """
import ctypes, resource
from neuroexplain.runtime.tuning import keep_freed_memory
keep_freed_memory() if {keep} else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(24_000_000)
    libc.memset(block, 1, 24_000_000)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no mallopt")
def test_freed_memory_is_not_given_back_and_cleared_again():
    def run(keep):
        code = FAULTS.format(keep=keep)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    pages = 24_000_000 // resource.getpagesize()
    kept, given_back = int(run(True).stdout), int(run(False).stdout)
    assert kept < pages / 10
    assert given_back > pages / 2


def test_the_hash_of_weights_tells_models_apart_and_not_dtypes(tmp_path):
    model = str(tiny_subject(tmp_path / "a"))
    subject, rounded = load_subject(model, "float32"), load_subject(model, "bfloat16")
    assert subject.weights_sha256 == rounded.weights_sha256
    other = load_subject(model, "float32")
    other.model.get_parameter("layers.1.mlp.up_proj.weight").data[0] *= 1.1
    assert other.weights_sha256 != subject.weights_sha256


def test_a_processor_kept_to_avx2_reads_in_float32():
    code = "import torch; from neuroexplain.subject.device import choose_dtype as choose; "
    code += "print(choose('auto', torch.device('cpu')))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True, env=environment) == "torch.float32\n"
    )
