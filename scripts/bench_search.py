"""Time searches by meaning at full size:  bench_search.py full.db [--explanations 917504] [--json]

A database that is missing is written first: two explanations a unit of 32 layers, of random words, each with
a headline score. Measured are the embedding of all (time, bytes), a search in a process that holds the
vectors, under several conditions, and one command from its start to its end.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from sqlalchemy import func, insert, literal, select

from neuroexplain.embedding.index import MeaningIndex
from neuroexplain.embedding.token_table import TokenTable
from neuroexplain.evidence import Explanation, Provenance
from neuroexplain.store import tables as t
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_collected import create_run, finish_run
from neuroexplain.store.save_explained import save_explanations
from neuroexplain.store.search import query_explanations
from neuroexplain.units import Source, UnitId

N_QUERIES = 25  # of each condition: every fourth of the 100 of tests
N_LAYERS, EXPLAINERS = 32, ("pairs", "excerpts")
AT_ONCE = 5_000  # explanations written at a time
COMMANDS = 5  # of which the median is told
PAIRS = Path(__file__).parent.parent / "tests" / "embedding"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("db")
parser.add_argument("--explanations", type=int, default=917_504)
parser.add_argument("--json", action="store_true")
options = parser.parse_args()
random = np.random.default_rng(0)
pairs = [json.loads((PAIRS / f"{name}.json").read_text()) for name in ("search_oracle", "search_pairs")]
queries = [pair["query"] for file in pairs for pair in file["queries"]][:: 100 // N_QUERIES]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_run(db: str) -> None:
    """A run whose explanations are of the words of the pairs of tests."""
    width = options.explanations // N_LAYERS // len(EXPLAINERS)
    words = sorted(
        {word for file in pairs for text in file["explanations"] for word in re.findall(r"\w+", text)}
    )
    by = Provenance("server", "vllm 0", "an-explainer", None, None)
    with open_store(db, create=True) as store:
        fields = {"subject": "synthetic", "dtype": "bfloat16", "layers": list(range(N_LAYERS))}
        fields |= {"sources": [Source(x, "mlp", None, "output", width, "bfloat16") for x in range(N_LAYERS)]}
        fields |= {"n_layers": N_LAYERS, "top_k": 32, "n_random": 32, "seed": 0, "n_sampled": 40}
        fields |= {"activation": "act", "split_rule": "passages", "tokenizer_sha256": "0" * 64}
        run_id = create_run(store, {**fields, "config": {}, "versions": {}})
        for layer in range(N_LAYERS):
            units = [
                {"run_id": run_id, "layer": layer, "unit": n, "status": "ok", "max_activation": float(value)}
                for n, value in enumerate(random.random(width))
            ]
            with store.write() as connection:
                connection.execute(insert(t.units), units)
            for explainer in EXPLAINERS:
                texts = [" ".join(random.choice(words, n)) for n in random.integers(3, 9, width)]
                new = [Explanation(UnitId(layer, n), explainer, "ok", x, by) for n, x in enumerate(texts)]
                for first in range(0, width, AT_ONCE):
                    save_explanations(store, run_id, new[first : first + AT_ONCE])
            say(f"layer {layer} written")
        add_scores(store, run_id)
        finish_run(store, run_id, n_segments=1, n_documents=1, n_tokens=128)


def add_scores(store: object, run_id: int) -> None:
    """A score from 0 to 1 for each explanation, by its id."""
    e = t.explanations.c
    values = {
        **{"run_id": e.run_id, "layer": e.layer, "unit": e.unit, "explanation_id": e.id},
        **{"scorer": literal("digits"), "scorer_model": literal("m"), "metric": literal("correlation")},
        **{"split": literal("report"), "subset": literal("population"), "status": literal("ok")},
        **{"value": func.mod(e.id * 7919, 1000) / 1000.0, "n_tokens": literal(512), "n_records": literal(16)},
    }
    chosen = select(*(value.label(name) for name, value in values.items())).where(e.run_id == run_id)
    with store.write() as connection:
        connection.execute(insert(t.scores).from_select(list(values), chosen))


def milliseconds(work: object, texts: list[str]) -> dict[str, float]:
    times, computing = [], []
    for text in texts:
        began, computed = time.perf_counter(), time.process_time()
        work(text)
        times.append(1000 * (time.perf_counter() - began))
        computing.append(1000 * (time.process_time() - computed))
    medians = {"median": statistics.median(times), "processor": statistics.median(computing)}
    return {name: round(value, 1) for name, value in {**medians, "longest": max(times)}.items()}


def time_command(*more: str) -> dict[str, float]:
    command = [sys.executable, "-m", "neuroexplain.cli.main", "query", "--db", options.db, *more]
    times, computing = [], []
    for text in queries[:COMMANDS]:
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--like", text], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        computing.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    medians = {"median_s": statistics.median(times), "processor_s": statistics.median(computing)}
    return {name: round(value, 2) for name, value in medians.items()}


def resident() -> int:
    """MiB that this process holds now."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10


if not Path(options.db).exists():
    write_run(options.db)
report = {}
with open_store(options.db) as store:
    run = load_run(store)
    index = MeaningIndex(store, run, TokenTable.load())
    size, began = Path(options.db).stat().st_size, time.perf_counter()
    index.refresh()
    if time.perf_counter() - began > 2:  # they were embedded, and not read
        report["embedding_s"] = round(time.perf_counter() - began, 1)
        report["stored_MB"] = round((Path(options.db).stat().st_size - size) / 1e6)
before, began = resident(), time.perf_counter()
with open_store(options.db, read_only=True) as store:
    run, index = load_run(store), MeaningIndex(store, load_run(store), TokenTable.load())
    index.refresh()
    report["explanations"] = len(index.similarities("sea").values)
    report["reading_s"] = round(time.perf_counter() - began, 2)
    report["vectors_MiB"], report["process_MiB"] = index.n_bytes >> 20, resident()
    conditions = {
        "none": {},
        "layer": {"layers": [15]},
        "score from 0.5": {"min_score": 0.5},
        "score from 0.98": {"min_score": 0.98},
        "score from 0.999": {"min_score": 0.999},
        "word": {"text": "ships"},
        "layer and score": {"layers": [15], "min_score": 0.5},
        "all candidates": {"chosen_only": False},
    }

    def search(text: str, more: dict) -> None:
        index.refresh()
        query_explanations(store, run, like=index.similarities(text), limit=20, **more)

    report["similarities_ms"] = milliseconds(index.similarities, queries)
    report["search_ms"] = {
        name: milliseconds(lambda text, more=more: search(text, more), queries)
        for name, more in conditions.items()
    }
report["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
report["command"] = time_command()
report["command, layer and score"] = time_command("--layer", "15", "--min-score", "0.5")
print(
    json.dumps(report) if options.json else "\n".join(f"{name:25} {value}" for name, value in report.items())
)
