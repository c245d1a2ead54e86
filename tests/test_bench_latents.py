"""The benchmark of latents, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_latents.py"


def run(*options):
    command = [sys.executable, SCRIPT, "--shape", "tiny", "--width", "512", "--batch-size", "2", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_prints_the_ratio_and_how_many_latents_are_active():
    result = run("--warm-up", "8", "--rounds", "3")
    assert (result["width"], result["layer"], result["batch"], result["segments_before"]) == (
        512,
        1,
        [2, 128],
        8,
    )
    for clock in ("wall", "processor"):
        low, high = result[f"quartiles_{clock}"]
        assert 0 < low <= result[f"floor_over_collect_{clock}"] <= high < 5
    assert 20 < result["active_at_a_token"] < 200
    assert result["peak_memory_bytes"] > 1e8


def test_memory_is_that_of_processes_of_their_own():
    peaks = run("--memory", "4,16")
    assert set(peaks) == {"4", "16"}
    assert all(peak > 1e8 for peak in peaks.values())
