"""Write a synthetic database as large as Llama-3-8B's:  make_full_size_db.py full.db [--json]

Instead of a file it may be the URL of an empty PostgreSQL database:  postgresql+psycopg://user@host/name

The real writer writes it. It has 458,752 neurons with 32 top, 32 random and 40 sampled records in bfloat16,
4 million segments, and for each neuron an explanation, predicted on 8 sampled and 8 random records, with its
scores. Then the times of 200 neuron pages and of queries are measured. --layers 2 makes a small database.
With --lexical the prediction is that of a scorer that costs nothing: 16 + 16 records, those of Bills' score,
and a control. --shard 3/64 writes the records of one part of a collection, for `neuroexplain merge`: with the
segments of the part, and nothing is explained or measured.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from neuroexplain.arrays import (
    CollectedLayer,
    ExemplarArrays,
    SampleArrays,
    StatsArrays,
    VocabularyArrays,
)
from neuroexplain.evidence import (
    SPLITS,
    Explanation,
    PredictedRecord,
    Prediction,
    Provenance,
    Score,
    Segment,
    VocabularyEntry,
)
from neuroexplain.lookup import load_page
from neuroexplain.sampling import RANDOM_SHARES, SAMPLED_SHARES, share_out, sum_squares, uniform_of
from neuroexplain.store.engine import Store, open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.save_collected import (
    create_run,
    finish_run,
    save_collected_layer,
    save_segments,
    save_vocabulary,
)
from neuroexplain.store.save_explained import save_explanations, save_predictions
from neuroexplain.store.search import query_explanations
from neuroexplain.units import Source, UnitId

K = 32  # top records, and random ones
N_SAMPLED = 40
AT_ONCE = 2_000  # explanations written at a time
VOCABULARY = 128_256  # tokens, as Llama-3
WORDS = (
    "relief river money travel anger verbs commas numbers names cities "
    "law music colour before after start end of"
).split()

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("db")
parser.add_argument("--layers", type=int, default=32)
parser.add_argument("--d-mlp", type=int, default=14_336)
parser.add_argument("--segments", type=int, default=4_000_000)
parser.add_argument("--lexical", action="store_true", help="predictions of a scorer that costs nothing")
parser.add_argument("--shard", metavar="i/n", default="1/1")
parser.add_argument("--json", action="store_true")
options = parser.parse_args()
PART, N_PARTS = map(int, options.shard.split("/"))
FIRST = (PART - 1) * options.segments  # the number of the first segment
random = np.random.default_rng(PART - 1)


def random_activations(shape: tuple[int, ...], peaked: bool) -> np.ndarray:
    """bfloat16 values as float32; peaked ones are strongest at token 32 and fall with the rank."""
    values = random.standard_normal(shape, dtype=np.float32)
    if peaked:
        values[..., 32] = np.sort(np.abs(values[..., 32]), axis=-1)[..., ::-1] + 4
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def random_records(kind: str, segments: np.ndarray) -> ExemplarArrays:
    d, k = segments.shape
    activations = random_activations((d, k, 64), kind == "top")
    return ExemplarArrays(
        counts=np.full(d, k),
        segments=segments,
        starts=random.integers(32, 65, (d, k), dtype=np.uint8)
        if kind == "top"
        else np.full((d, k), 64, np.uint8),
        documents=random.integers(0, 1_000_000, (d, k), dtype=np.int32),
        token_offsets=random.integers(0, 2_000, (d, k), dtype=np.int32),
        peaks=activations[..., 32] if kind == "top" else activations.max(axis=-1),
        activations=activations,
        peak_token_ids=random.integers(0, VOCABULARY, (d, k), dtype=np.uint32),
    )


def split_code(segments: np.ndarray) -> np.ndarray:
    """The place in SPLITS of segments that are split by turns: three of eight, two, three."""
    return np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int8)[segments % 8]


def random_segments(split: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random segments of one split."""
    code = SPLITS.index(split)
    places = np.flatnonzero(split_code(np.arange(8)) == code)
    segments = 8 * random.integers(0, options.segments // 8, shape) + random.choice(places, shape)
    return (FIRST + segments).astype(np.uint32)


def any_segments(shape: tuple[int, ...]) -> np.ndarray:
    return FIRST + random.integers(0, options.segments, shape, dtype=np.uint32)


def random_layer() -> CollectedLayer:
    d = options.d_mlp
    drawn = np.concatenate(
        [random_segments(split, (1, n)) for split, n in share_out(K, RANDOM_SHARES).items()], axis=1
    )
    exemplars = {
        "top": random_records("top", any_segments((d, K))),
        "random": random_records("random", np.broadcast_to(drawn, (d, K)).copy()),
    }
    samples = {
        ("positive", split): random_sample(random_segments(split, (d, n)))
        for split, n in share_out(N_SAMPLED, SAMPLED_SHARES).items()
    }
    stats = StatsArrays(*(np.abs(random.standard_normal((5, d)))))
    ids = random.integers(0, VOCABULARY, (d, 10)).astype(np.uint32)
    logits = random.standard_normal((d, 10)).astype(np.float32)
    return CollectedLayer(0, exemplars, stats, VocabularyArrays(ids, logits, ids, -logits), samples)


def random_sample(segments: np.ndarray) -> SampleArrays:
    """Sampled records whose order and threshold are as if they had been drawn."""
    records = random_records("sampled", segments)
    sizes = sum_squares(records.activations[..., :32])
    last = (sizes / np.vectorize(lambda s: uniform_of(0, int(s)))(segments[:1])).min(axis=1)
    return SampleArrays(records, sizes, np.full(len(segments), last[0] / 2))


def as_layer(collected: CollectedLayer, layer: int) -> CollectedLayer:
    """The same records as another layer, of other segments."""
    top = collected.exemplars["top"]
    top = replace(top, segments=any_segments(top.segments.shape))
    samples = {
        (side, split): replace(
            x, records=replace(x.records, segments=random_segments(split, x.records.segments.shape))
        )
        for (side, split), x in collected.samples.items()
    }
    return replace(collected, layer=layer, exemplars={**collected.exemplars, "top": top}, samples=samples)


def random_explanations(layer: int, first: int, last: int) -> list[Explanation]:
    sampling = {"temperature": 0.0, "max_tokens": 40, "seed": 0}
    by = Provenance("server", "vllm 0", "an-explainer", None, None, sampling, 900, 12, 1.0)
    texts = random.choice(WORDS, (last - first, 8))
    return [
        Explanation(UnitId(layer, n), "pairs", "ok", " ".join(words), by, reply=" ".join(words))
        for n, words in zip(range(first, last), texts, strict=True)
    ]


def random_predictions(explanations: list[Explanation]) -> list[tuple[Prediction, list[Score]]]:
    by = Provenance("server", "vllm 0", "a-simulator", None, None, {}, 4_000, 16, 2.0)
    # The ranks of `report`: random ones from 16 on, sampled ones from 24 on, and every third top record.
    n = 16 if options.lexical else 8
    places = [("random", 16 + i) for i in range(n)] + [("sampled", 24 + i) for i in range(n)]
    subsets = {"population": ("correlation", "correlation_beyond_words", "auprc")}
    if options.lexical:  # also `select`, and Bills' score
        places += [("random", 8 + i) for i in range(8)] + [("sampled", 16 + i) for i in range(8)]
        places = [("top", i) for i in range(20)] + places
        bills = ("correlation", "r_squared", "absolute_deviation_explained")
        subsets |= dict.fromkeys(("top_and_random", "top", "random"), bills)
    levels = random.random((len(explanations), len(places), 32), dtype=np.float32) * 10
    predictions = []
    for explanation, own_levels in zip(explanations, levels, strict=True):
        records = tuple(
            PredictedRecord(kind, rank, 0, values, values / 10, values if options.lexical else None)
            for (kind, rank), values in zip(places, own_levels, strict=True)
        )
        value = float(np.clip(random.normal(0.2, 0.2), -0.99, 0.99))
        interval = {"ci_low": value - 0.1, "ci_high": value + 0.1}
        scores = [
            Score("report", subset, metric, "ok", value, 512, 16, **interval, effective_records=12.5)
            for subset, metrics in subsets.items()
            for metric in metrics
        ]
        scores += [Score("select", "population", "correlation", "ok", value, 512, 16)] * options.lexical
        reading = {"n_read": n, "with_bills": options.lexical, "has_report": True}
        scorer = "lexical" if options.lexical else "digits"
        prediction = Prediction(explanation.id, explanation.unit, scorer, "ok", records, by, **reading)
        predictions.append((prediction, scores))
    return predictions


def peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def size_of(store: Store) -> int:
    """Bytes of the database, with its indices."""
    if store.file is not None:
        return store.file.stat().st_size
    with store.read() as reader:
        return int(reader.value("SELECT pg_database_size(current_database())"))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def quantiles(work, n: int) -> dict[str, float]:
    """The times of n calls of work(i), in milliseconds."""
    times = []
    for i in range(n):
        start = time.perf_counter()
        work(i)
        times.append(1000 * (time.perf_counter() - start))
    return {"median": round(statistics.median(times), 1), "p95": round(sorted(times)[int(0.95 * n)], 1)}


if "://" not in options.db:
    Path(options.db).unlink(missing_ok=True)
began = time.perf_counter()
with open_store(options.db, create=True) as store:
    fields = {
        "subject": "synthetic",
        "dtype": "bfloat16",
        "activation": "act",
        "layers": list(range(options.layers)),
    }
    sources = [
        Source(layer, "mlp", None, "output", options.d_mlp, "bfloat16") for layer in range(options.layers)
    ]
    fields |= {"sources": sources, "n_layers": options.layers, "top_k": K, "n_random": K, "seed": 0}
    fields |= {"n_sampled": N_SAMPLED, "split_rule": "passages"}
    shard = {"parts": [PART], "of": N_PARTS} if N_PARTS > 1 else None
    fields |= {"tokenizer_sha256": "0" * 64, "config": {"shard": shard}, "versions": {}}
    run_id = create_run(store, fields)
    with store.bulk_writing():
        save_vocabulary(store, run_id, (VocabularyEntry(i, f" token{i}", False) for i in range(VOCABULARY)))
        for first in range(0, options.segments, 50_000):
            ids = random.integers(
                0, VOCABULARY, (min(50_000, options.segments - first), 128), dtype=np.uint32
            )
            splits = [SPLITS[code] for code in split_code(np.arange(first, first + len(ids)))]
            save_segments(
                store, run_id, (Segment(FIRST + first + i, ids[i], s) for i, s in enumerate(splits))
            )
        segments_s = time.perf_counter() - began
        say(f"segments: {segments_s:.0f} s")
        collected = random_layer()  # once, so that only writing is timed
        started = time.perf_counter()
        for layer in range(options.layers):
            save_collected_layer(store, run_id, as_layer(collected, layer))
        exemplars_s = time.perf_counter() - started
        say(f"exemplars: {time.perf_counter() - began:.0f} s, {peak_memory() >> 20} MiB")
        started = time.perf_counter()
        for layer in range(options.layers) if N_PARTS == 1 else ():
            for first in range(0, options.d_mlp, AT_ONCE):
                explanations = random_explanations(layer, first, min(first + AT_ONCE, options.d_mlp))
                explanations = save_explanations(store, run_id, explanations)
                save_predictions(store, run_id, random_predictions(explanations))
            say(f"layer {layer}: {time.perf_counter() - began:.0f} s, {peak_memory() >> 20} MiB")
        explanations_s = time.perf_counter() - started
        started = time.perf_counter()
    indices_s = time.perf_counter() - started  # on SQLite: the rest of its log
    eighth = options.segments // 8
    finish_run(
        store,
        run_id,
        n_segments=options.segments,
        n_documents=1_000_000,
        n_tokens=options.segments * 128,
        split_segments={"explain": 3 * eighth, "select": 2 * eighth, "report": 3 * eighth},
    )
    loading = time.perf_counter() - began
if N_PARTS > 1:
    sys.exit()
with open_store(options.db, read_only=True) as store:
    n_bytes, run = size_of(store), load_run(store)
    places = random.integers(0, [options.layers, options.d_mlp], (200, 2)).tolist()
    shows = quantiles(lambda i: load_page(store, run, UnitId(*places[i])), 200)
    conditions = {
        "text": {"text": "relief"},
        "text and score": {"text": "relief river", "min_score": 0.5},
        "layer and score": {"layers": [options.layers // 2], "min_score": 0.5},
        "score": {"min_score": 0.6},
        "sorted by activation": {"sort": "activation"},
        "text sorted by neuron": {"text": "money", "sort": "unit"},
        "peak token": {"peak_token_ids": [77, 78]},
    }
    queries = {
        name: quantiles(lambda _, more=more: query_explanations(store, run, **more), 20)
        for name, more in conditions.items()
    }
n_units = options.layers * options.d_mlp
report = {
    "neurons": n_units,
    "bytes": n_bytes,
    "seconds": round(loading),
    "segments_per_s": round(options.segments / segments_s),
    "exemplars_per_s": round(n_units * (2 * K + N_SAMPLED) / exemplars_s),
    "explanations_per_s": round(n_units / explanations_s),
    "indices_s": round(indices_s, 1),
    "peak_memory_bytes": peak_memory(),
    "show_ms": shows,
    "query_ms": queries,
}
print(
    json.dumps(report) if options.json else "\n".join(f"{name:20} {value}" for name, value in report.items())
)
