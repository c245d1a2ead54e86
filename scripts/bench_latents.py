"""What reading the latents of one layer costs:  python scripts/bench_latents.py [--width 32768] [--json]

The dictionary has random weights, thresholds by which about 64 latents are active at a token, and SAELens's
format; it is read as any other. Three works take turns in one process on the same batches: the forward pass
up to the layer, the product with the encoder alone, in the slices in which latents are computed, and
`collect`. Printed is the median over rounds of (forward + product) / collect, with its quartiles: 1 would be
free records, statistics, histograms and background. Ratios of one round bear a busy machine better than
speeds do, and processor time better than what a clock on the wall shows.

    python scripts/bench_latents.py --shape tiny --width 131072 --memory 200,2000

The peak of memory after so many segments instead, each in a process of its own.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from bench_collect import (
    N_RANDOM,
    N_SAMPLED,
    SEED,
    SHAPES,
    TOP_K,
    Batch,
    Work,
    build,
    corpus_batches,
    random_batches,
)
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from neuroexplain.collecting.collector import Collector
from neuroexplain.runtime.tuning import CPU_BATCH_SIZE
from neuroexplain.sources._choice import Choice
from neuroexplain.sources._encoding import latents_at_once
from neuroexplain.sources._latents import encoder_of
from neuroexplain.sources.base import SOURCES
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.model import Subject

N_BACKGROUND, ACTIVE = 1_024, 64  # records of the background; latents that are active at a token
WORKS = ("forward", "product", "collect")


def main() -> None:
    options = parse_options()
    if options.memory is not None:
        result = {n: peak_memory(n) for n in map(int, options.memory.split(","))}
        lines = [f"{n:,} segments: {peak / 1e9:.3f} GB" for n, peak in result.items()]
        print(json.dumps(result) if options.json else "\n".join(lines))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result) if options.json else "\n".join(f"{n:24} {v}" for n, v in result.items()))


def peak_memory(n_segments: int) -> int:
    """The peak of a process that reads so many segments, in bytes."""
    kept = [word for word in sys.argv[1:] if word != "--json"]
    place = kept.index("--memory")
    command = [sys.executable, __file__, *kept[:place], *kept[place + 2 :]]
    command += ["--warm-up", str(n_segments), "--rounds", "0", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["peak_memory_bytes"])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Warm up, then take turns."""
    subject, read = load(options)
    layer = len(subject.layers) // 2
    size = options.batch_size
    write_dictionary(subject, layer, options.width, read(0, size)[0], folder)
    kind = SOURCES.load("sae").with_dictionary(Choice(str(folder)), any_model=True)  # type: ignore[attr-defined]
    collector = Collector(
        *(subject, [layer]),
        source=kind,
        activation="sae",
        sign="positive",
        top_k=TOP_K,
        positions=range(64, 97),
        special_peaks=True,
        n_random=N_RANDOM,
        n_sampled=N_SAMPLED,
        n_background=N_BACKGROUND,
        seed=SEED,
    )
    batches = (read(number, size) for number in count())
    for done in range(0, options.warm_up, size):
        collector.read(*next(batches))
        print(f"{done + size:,} of {options.warm_up:,} segments before", end="\r", file=sys.stderr)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rounds = list(take_turns(collector, layer, batches, options.rounds))
    n_tokens = size * 128
    active = collector.stats[layer].positive.sum() / max(1, collector.stats[layer].n)
    result: dict[str, object] = {
        "width": options.width,
        "model": options.shape or Path(subject.name).name,
        "layer": layer,
        "batch": [size, 128],
        "active_at_a_token": round(float(active), 1),
        "segments_before": options.warm_up,
        "peak_memory_bytes": peak,
        "device": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    if rounds:
        for name in WORKS:
            result[f"{name}_tokens_per_s"] = round(n_tokens / statistics.median(r[name][0] for r in rounds))
        for place, clock in enumerate(("wall", "processor")):
            ratios = [(r["forward"][place] + r["product"][place]) / r["collect"][place] for r in rounds]
            low, middle, high = statistics.quantiles(ratios, n=4)
            result[f"floor_over_collect_{clock}"] = round(middle, 4)
            result[f"quartiles_{clock}"] = [round(low, 4), round(high, 4)]
    return result


def load(options: argparse.Namespace) -> tuple[Subject, object]:
    if options.shape is not None:
        subject = build(options.shape, "float32", "cpu")
        return subject, random_batches(subject)
    from neuroexplain.demo.embedded_model import embedded_model
    from neuroexplain.subject.load import load_subject

    subject = load_subject(embedded_model(), "float32", "cpu")
    return subject, corpus_batches(subject, None)


def write_dictionary(subject: Subject, layer: int, width: int, token_ids: Tensor, folder: Path) -> None:
    """A JumpReLU dictionary in SAELens's format, whose thresholds leave ACTIVE latents at a token."""
    generator = torch.Generator().manual_seed(SEED)
    values: list[Tensor] = []
    handle = subject.layers[layer].register_forward_hook(
        lambda module, args, out: values.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        subject.model(token_ids[:8], use_cache=False)
    handle.remove()
    read = values[0][:, 64:].reshape(-1, values[0].shape[-1])  # [tokens, d_in]
    mean = read.mean(dim=0)
    encoder = torch.randn(width, read.shape[1], generator=generator) / read.shape[1] ** 0.5
    z = linear(read - mean, encoder[:2048])
    threshold = torch.quantile(z.reshape(-1)[:1_000_000], 1 - ACTIVE / width).clamp(min=1e-3)
    config = {"architecture": "jumprelu", "d_in": read.shape[1], "d_sae": width}
    hook = {"model_name": subject.name, "hook_name": f"blocks.{layer}.hook_resid_post"}
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": hook}))
    tensors = {
        "W_enc": encoder.T.contiguous(),
        "W_dec": encoder.clone(),
        "b_enc": torch.zeros(width),
        "b_dec": mean.clone(),
        "threshold": threshold.expand(width).clone(),
    }
    save_file(tensors, folder / "sae_weights.safetensors")


def take_turns(
    collector: Collector, layer: int, batches: Iterator[Batch], n_rounds: int
) -> Iterator[dict[str, tuple[float, float]]]:
    """Each round's seconds by work, see both_clocks, in an order that rotates."""
    subject, source = collector.subject, collector.sources[layer]
    dictionary, _ = encoder_of(subject, source)
    kept: list[Tensor] = []

    def forward(token_ids: Tensor, segments: Tensor, splits: NDArray[np.int8]) -> None:
        kept.clear()
        capture_activations(subject, token_ids, {layer: source}, lambda _, values: kept.append(values))

    def product(token_ids: Tensor, segments: Tensor, splits: NDArray[np.int8]) -> None:
        values = kept[0]
        at_once = latents_at_once(values.shape[0] * values.shape[1])
        with torch.inference_mode():
            for rows in torch.split(dictionary.encoder, at_once):
                linear(values, rows)

    works = dict(zip(WORKS, (forward, product, collector.read), strict=True))
    for number in range(n_rounds):
        batch = next(batches)
        forward(*batch)
        turn = WORKS[number % len(WORKS) :] + WORKS[: number % len(WORKS)]
        yield {name: both_clocks(works[name], batch) for name in turn}


def both_clocks(work: Work, batch: Batch) -> tuple[float, float]:
    """How long a work takes: (seconds that pass, seconds of all processors for it)."""
    began = time.perf_counter(), time.process_time()
    work(*batch)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape in place of SmolLM2")
    parser.add_argument("--width", type=int, default=32_768, help="latents")
    parser.add_argument("--rounds", type=int, default=9, help="in each of which every work has a turn")
    parser.add_argument("--warm-up", type=int, default=1000, help="segments collected before measuring")
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH_SIZE)
    parser.add_argument("--memory", metavar="N,N", help="print the peak of memory after so many segments")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
