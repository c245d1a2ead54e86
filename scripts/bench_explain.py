"""Measure what `explain` itself costs:  python scripts/bench_explain.py DB [--units 14336] [--profile]

A server in another process answers at once (bench_client.py), so that the client's own work is left. DB is
one of make_full_size_db.py; it is copied, and the copy is explained.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import pstats
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench_client import serving

from neuroexplain.config import EngineConfig, ExplainConfig, ScoreConfig
from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.explaining.engines import open_engines
from neuroexplain.explaining.run import run_explain
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.subject.load import load_causal_lm
from neuroexplain.units import UnitId

LINES = 25  # of each profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("db", type=Path)
    parser.add_argument("--units", type=int, default=14_336)
    parser.add_argument("--explainer", default="category")
    parser.add_argument("--scorer", default="combined")
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print where the threads spend their time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        load_causal_lm(embedded_model(), "float32", "cpu")[1].save_pretrained(folder)
        db = Path(folder) / "x.db"
        shutil.copy(options.db, db)
        urls = stack.enter_context(serving(options.servers, folder, "logprob_token_ids", 0, 0.0))
        explain(db, urls, options)


def explain(db: Path, urls: str, options: Any) -> None:
    """Explain and score the first units, and print what it took."""
    units = tuple(UnitId(0, index) for index in range(options.units))
    config = ExplainConfig(units, options.explainer)
    engine_config = EngineConfig(server=urls, in_flight=options.in_flight)
    with open_store(str(db)) as store:
        run = load_run(store)
        opened = open_engines(
            run, engine_config, ScoreConfig((options.scorer,)), explains=True, tell=lambda line: None
        )
        with opened as (engine, scorers):
            profilers = start_profilers() if options.profile else []
            began, began_process = time.monotonic(), time.process_time()
            for progress in run_explain(store, run, config, engine, scorers[0]):
                last = progress
            seconds, process = time.monotonic() - began, time.process_time() - began_process
            assert engine is not None
            n_requests = engine.usage.requests
    print(
        f"{last.done:,} units, {last.n_failed} failed, {n_requests:,} requests: {seconds:.1f} s, "
        f"{last.done / seconds:.1f} units/s, {1000 * process / last.done:.2f} ms of processor a unit, "
        f"{process / seconds:.2f} cores"
    )
    report(profilers)


def start_profilers() -> list[cProfile.Profile]:
    """Profile this thread and each that begins from now on; the times are processor time of a thread."""
    profilers = [cProfile.Profile(time.thread_time)]
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profiler = cProfile.Profile(time.thread_time)
        profilers.append(profiler)
        profiler.runcall(run, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign]
    profilers[0].enable()
    return profilers


def report(profilers: list[cProfile.Profile]) -> None:
    if not profilers:
        return
    profilers[0].disable()
    stats = pstats.Stats(profilers[0])
    for profiler in profilers[1:]:
        stats.add(profiler)
    for order in ("cumulative", "tottime"):
        stats.sort_stats(order).print_stats(LINES)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
