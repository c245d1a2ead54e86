"""How long readers wait while explanations are written into the same file:  bench_serve.py full.db [--json]

Starts `neuroexplain serve`, and 50 readers, each of whom opens a neuron or searches and then reads for
--think seconds; a writer saves explanations all the while (removed at the end). Prints medians and 95th
percentiles in milliseconds, and errors.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time

import httpx
from sqlalchemy import delete

from neuroexplain.evidence import Explanation, Provenance
from neuroexplain.store import tables
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_explained import save_explanations
from neuroexplain.units import UnitId

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("db")
parser.add_argument("--readers", type=int, default=50)
parser.add_argument("--think", type=float, default=5.0)
parser.add_argument("--seconds", type=float, default=30.0)
parser.add_argument("--words", default="relief,river,money,travel,music,law")
parser.add_argument("--json", action="store_true")
options = parser.parse_args()
words = options.words.split(",")
took: dict[str, list[float]] = {"neuron": [], "search": []}
wrong: list[str] = []
done = threading.Event()


def read(address: str, run: object, seed: int) -> None:
    draw = random.Random(seed)
    with httpx.Client(base_url=address, timeout=30) as client:
        done.wait(draw.random() * options.think)
        while not done.is_set():
            kind = draw.choice(["neuron", "search"])
            path = f"/{draw.choice(run.layers)}/{draw.randrange(run.width(run.layers[0]))}"
            if kind == "search":
                path = f"/search?q={draw.choice(words)}&min_score={draw.random() / 2:.2f}"
            began = time.perf_counter()
            answer = client.get(path)
            took[kind].append(1000 * (time.perf_counter() - began))
            if answer.status_code != 200:
                wrong.append(f"{path}: {answer.status_code}")
            done.wait(draw.expovariate(1 / options.think))


def write(store: object, run: object) -> int:
    saved, by = 0, Provenance("none", None, "bench_serve", None, None)
    while not done.is_set():
        some = [
            Explanation(
                UnitId(run.layers[0], n), "human", "ok", f"written {saved}", by, candidate=saved, chosen=False
            )
            for n in range(16)
        ]
        save_explanations(store, run.id, some)
        saved += len(some)
        done.wait(0.2)
    return saved


command = [sys.executable, "-m", "neuroexplain.cli.main", "serve", "--db", options.db, "--port", "0"]
with open_store(options.db) as store, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    run = load_run(store)
    address = re.search(r"http://\S+", server.stderr.readline())[0]
    for path in ("/", f"/{run.layers[0]}/0"):  # the start page's charts and the vocabulary are read once
        httpx.get(address.rstrip("/") + path, timeout=60)
    counted: list[int] = []
    threads = [threading.Thread(target=read, args=(address, run, seed)) for seed in range(options.readers)]
    threads.append(threading.Thread(target=lambda: counted.append(write(store, run))))
    for thread in threads:
        thread.start()
    time.sleep(options.seconds)
    done.set()
    for thread in threads:
        thread.join()
    server.terminate()
    with store.write() as connection:
        connection.execute(delete(tables.explanations).where(tables.explanations.c.model == "bench_serve"))
found = {
    "readers": options.readers,
    "think_seconds": options.think,
    "written": counted[0],
    "errors": wrong[:5],
}
for kind, values in took.items():
    cuts = statistics.quantiles(values, n=20)
    found[kind] = {"requests": len(values), "median_ms": round(cuts[9], 1), "p95_ms": round(cuts[18], 1)}
print(json.dumps(found) if options.json else json.dumps(found, indent=1))
