"""Measure merging at scale:  python scripts/bench_merge.py FOLDER [--parts 64] [--at-once 8]

Parts of two layers of Llama-3-8B's shape (make_full_size_db.py --shard) are made in FOLDER, merged with what
was merged before, and deleted, so that the disk holds few of them at a time. Prints for each merge its
seconds, its peak memory and the size of the whole.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=8, help="parts merged at a time")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--segments", type=int, default=62_496, help="of a part")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    whole: Path | None = None
    for first in range(1, options.parts + 1, options.at_once):
        numbers = range(first, min(first + options.at_once, options.parts + 1))
        parts = [make_part(options, number) for number in numbers]
        merged = options.folder / f"whole-{numbers[-1]}.db"
        given = [*([whole] if whole else []), *parts]
        if len(given) == 1:
            whole = given[0]
            continue
        n_bytes = sum(path.stat().st_size for path in given)
        seconds, memory = run(
            sys.executable, "-m", "neuroexplain.cli.main", "merge", *map(str, given), "--into", str(merged)
        )
        for path in given:
            path.unlink()
        whole = merged
        print(
            f"{len(given)} databases of {n_bytes / 1e9:.2f} GB, {numbers[-1]} of {options.parts} parts: "
            f"{seconds:.0f} s, {n_bytes / 1e6 / seconds:.0f} MB/s, {memory >> 20} MiB at most; "
            f"the whole has {merged.stat().st_size / 1e9:.2f} GB",
            flush=True,
        )


def make_part(options: argparse.Namespace, number: int) -> Path:
    path: Path = options.folder / f"part-{number}.db"
    script = Path(__file__).with_name("make_full_size_db.py")
    shape = ("--layers", str(options.layers), "--segments", str(options.segments))
    run(sys.executable, str(script), str(path), *shape, "--shard", f"{number}/{options.parts}")
    return path


def run(*command: str) -> tuple[float, int]:
    """Run a command. Returns its seconds and its peak memory in bytes."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"This failed: {' '.join(command)}")
    return time.monotonic() - began, 1024 * usage.ru_maxrss


if __name__ == "__main__":
    main()
