"""The benchmark where torch and Transformers are all that is installed."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_collect.py"
MISSING = ("sqlalchemy", "alembic", "datasets", "pyarrow", "pandas", "typer", "rich", "fastapi", "httpx")


def test_a_shape_needs_tensor_code_alone():
    lines = (
        "import runpy, sys",
        f"sys.modules.update(dict.fromkeys({MISSING!r}))",  # None: importing it is an ImportError
        "sys.argv[1:] = '--shape tiny --pairs 3 --warm-up 8 --batch-size 2 --sign both --json'.split()",
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    numbers = (
        "forward_tokens_per_s",
        "collect_tokens_per_s",
        "collect_over_forward",
        "collect_without_samples_tokens_per_s",
        "published_tokens_per_s",
    )
    numbers += ("published_over_forward", "matrix_peak_share", "peak_memory_bytes")
    assert all(result[name] > 0 for name in numbers)
    # What folding adds to the forward pass, with samples (1 / the ratio - 1, both medians) and without.
    added = 1 / result["collect_over_forward"] - 1
    assert abs(result["fold_over_forward"] - added) < 0.01 * (1 + added)
    assert "fold_over_forward_without_samples" in result
    assert result["n_sampled"] == 40
    assert (result["neurons"], result["batch"], result["pairs"]) == (128, [2, 128], 3)
