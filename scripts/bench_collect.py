"""How much collecting costs over the bare forward pass:  python scripts/bench_collect.py [--json]

Four works take turns in one process on the same segments, model, batch shape and dtype:

- `forward` is Transformers' base model, all layers, without the head and without any hook of ours: the
  floor. On a GPU attention and norms are compiled for all works, unless `--no-compile`; `plain_forward`
  is the forward pass before that.
- `collect` is what `neuroexplain collect` does with a batch: top, random and sampled records, statistics.
- `collect_without_samples` is the same with `--sampled-records 0`, by a collector of its own.
- `published` is the same pass with the published method's rule in place of ours.

Printed are the median of the rounds' ratios, and their quartiles; what folding, all of `collect` but the
forward pass, adds to that, with and without the samples; the share of the device's matrix peak, measured here
by one large product in the model's dtype; and the peak of memory.

New candidates get rarer as one over the segments read: after n segments, a segment is among a neuron's best k
with probability k/n. So the cost of collecting depends on how many segments were read before, `--warm-up`; a
run reads thousands to millions. By default a CPU reads 1,000 before and a GPU 16 batches: until then some
neurons have more candidates in a batch than spare slots.

`--shape llama3-8b` builds a model of that shape with random weights and reads random tokens. It needs torch
and Transformers alone.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.collecting.batch_size import find_batch_size
from neuroexplain.collecting.collector import Collector, send
from neuroexplain.collecting.kernels import can_compile
from neuroexplain.collecting.published import PublishedTopK
from neuroexplain.runtime.tuning import CPU_BATCH_SIZE, keep_freed_memory
from neuroexplain.sampling import split_segments
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.device import choose_device, choose_dtype
from neuroexplain.subject.families import FAMILIES
from neuroexplain.subject.model import Subject

LLAMA3 = {
    "vocab_size": 128_256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "rms_norm_eps": 1e-5,
}
SHAPES = {
    "llama3-8b": LLAMA3
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "max_position_embeddings": 8192},
    "smollm2": {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048},
    "tiny": {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128},
}
WORKS = ("forward", "collect", "collect_without_samples", "published")
TOP_K, N_RANDOM, N_SAMPLED, SEED = 32, 32, 40, 0
# Token ids [batch, 128] on the device, segment numbers [batch] on the CPU, and the places of their splits.
Batch = tuple[Tensor, Tensor, NDArray[np.int8]]
Work = Callable[[Tensor, Tensor, NDArray[np.int8]], object]


def main() -> None:
    options = parse_options()
    subject, read = load(options)
    on_gpu = subject.device.type == "cuda"
    collector = new_collector(subject, options)
    batch_size = options.batch_size or find_batch_size(collector, 1024)
    batches = (read(number, batch_size) for number in count())
    forward = forward_pass(subject)
    plain_seconds = None
    if options.compile and can_compile(subject.device):
        forward(*next(batches))
        turns = (take(batches, options.batches) for _ in range(5))
        plain_seconds = statistics.median(seconds(forward, turn, on_gpu) for turn in turns)
        collector.compile(batch_size)
    n_warm_up = options.warm_up or (16 * batch_size if on_gpu else 1000)
    peak_memory = warm_up(collector, take(batches, -(-n_warm_up // batch_size)), on_gpu)
    without = new_collector(subject, options, n_sampled=0)
    without.sum_up = collector.sum_up
    warm_up(without, (read(number, batch_size) for number in range(-(-n_warm_up // batch_size))), on_gpu)
    published = published_pass(subject, collector)
    works = dict(zip(WORKS, (forward, collector.read, without.read, published), strict=True))
    for work in works.values():
        work(*next(batches))
    rounds = measure_rounds(works, batches, options, on_gpu)
    n_tokens = options.batches * batch_size * 128
    result = {
        **speeds(subject, rounds, n_tokens, plain_seconds),
        "peak_memory_bytes": peak_memory,
        "pairs": len(rounds),
        "model": options.shape or Path(subject.name).name,
        "neurons": len(subject.layers) * subject.d_mlp,
        "batch": [batch_size, 128],
        "n_sampled": N_SAMPLED,
        "segments_before": n_warm_up,
        "dtype": subject.dtype_name,
        "kernels": "compiled" if collector.compiled else "plain",
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    lines = (f"{name:34} {value}" for name, value in result.items())
    print(json.dumps(result) if options.json else "\n".join(lines))


def load(options: argparse.Namespace) -> tuple[Subject, Callable[[int, int], Batch]]:
    """The subject, and a function from (number, batch size) to a batch."""
    if options.shape is not None:
        subject = build(options.shape, options.dtype, options.device)
        return subject, random_batches(subject)
    from neuroexplain.demo.embedded_model import embedded_model
    from neuroexplain.subject.load import load_subject

    subject = load_subject(options.model or embedded_model(), options.dtype, options.device)
    return subject, corpus_batches(subject, options.dataset)


def new_collector(subject: Subject, options: argparse.Namespace, n_sampled: int = N_SAMPLED) -> Collector:
    return Collector(
        subject,
        range(len(subject.layers)),
        activation="act",
        sign=options.sign,
        top_k=TOP_K,
        positions=range(64, 97),
        special_peaks=True,
        n_random=N_RANDOM,
        n_sampled=n_sampled,
        seed=SEED,
        windows_on_host=options.windows == "host",
    )


def forward_pass(subject: Subject) -> Work:
    def forward(token_ids: Tensor, segments: Tensor, splits: NDArray[np.int8]) -> None:
        with torch.inference_mode():
            subject.model(token_ids, use_cache=False)

    return forward


def published_pass(subject: Subject, collector: Collector) -> Work:
    """The forward pass with the published rule folded in."""
    tops = {
        layer: PublishedTopK(subject.d_mlp, TOP_K, subject.dtype, subject.device)
        for layer in collector.layers
    }

    def published(token_ids: Tensor, segments: Tensor, splits: NDArray[np.int8]) -> None:
        numbers = send(segments, subject.device)
        fold = lambda layer, acts: tops[layer].fold(acts, numbers)  # noqa: E731
        capture_activations(subject, token_ids, collector.sources, fold)

    return published


def take(batches: Iterator[Batch], n: int) -> list[Batch]:
    return list(islice(batches, n))


def warm_up(collector: Collector, batches: Iterable[Batch], on_gpu: bool) -> int:
    """Fill the top k and the samples. Returns the peak of memory, in bytes."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for batch in batches:
        collector.read(*batch)
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_rounds(
    works: dict[str, Work], batches: Iterator[Batch], options: argparse.Namespace, on_gpu: bool
) -> list[dict[str, float]]:
    """Each round's seconds by work. All works of a round read the same batches, in an order that rotates."""
    rounds = []
    for number in range(options.pairs):
        turn = WORKS[number % len(WORKS) :] + WORKS[: number % len(WORKS)]
        round_batches = take(batches, options.batches)
        took = {name: seconds(works[name], round_batches, on_gpu) for name in turn}
        rounds.append(took)
        print(f"{number + 1} of {options.pairs}: {took['forward'] / took['collect']:.3f}", file=sys.stderr)
    return rounds


def speeds(
    subject: Subject, rounds: list[dict[str, float]], n_tokens: int, plain_seconds: float | None
) -> dict[str, float | list[float]]:
    """Tokens per second of each work, ratios to the forward pass, and the share of the matrix peak."""
    speed = {name: n_tokens / statistics.median(took[name] for took in rounds) for name in WORKS}
    plain = (
        {} if plain_seconds is None else {"plain_forward_tokens_per_s": round(n_tokens / plain_seconds, 1)}
    )
    matrix_peak = measure_matrix_peak(subject)
    flops = 2 * n_matrix_weights(subject)  # a token; attention's own products are left out
    return {
        **{f"{name}_tokens_per_s": round(speed[name], 1) for name in WORKS},
        **plain,
        "collect_over_forward": ratio(rounds, "collect")[1],
        "collect_over_forward_quartiles": ratio(rounds, "collect")[::2],
        "fold_over_forward": added(rounds, "collect"),
        "fold_over_forward_without_samples": added(rounds, "collect_without_samples"),
        "published_over_forward": ratio(rounds, "published")[1],
        "published_over_forward_quartiles": ratio(rounds, "published")[::2],
        "matrix_peak_share": round(speed["collect"] * flops / matrix_peak, 4),
        "matrix_peak_tflops": round(matrix_peak / 1e12, 3),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=SHAPES, help="build a model with random weights instead of loading --model"
    )
    parser.add_argument("--model", help="hub name, folder or .gguf file; SmolLM2 by default")
    parser.add_argument("--dataset", help="text file; the demo's corpus by default")
    parser.add_argument("--pairs", type=int, default=9, help="rounds, in each of which every work has a turn")
    parser.add_argument("--batches", type=int, default=2, help="batches of a turn")
    parser.add_argument("--warm-up", type=int, help="segments collected before measuring")
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"{CPU_BATCH_SIZE} on a CPU, the largest that fits on a GPU",
    )
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="as `collect --no-compile`"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sign", choices=("positive", "negative", "both"), default="positive")
    parser.add_argument("--windows", choices=("device", "host"), default="device")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def build(shape: str, dtype: str, device: str) -> Subject:
    """A Llama of the shape with random weights, created on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch_device = choose_device(device)
    keep_freed_memory()
    torch.set_default_dtype(choose_dtype(dtype, torch_device))
    with torch_device:
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    body = model.base_model
    d_mlp = model.config.intermediate_size
    return Subject(
        shape,
        None,
        body,
        None,
        FAMILIES["llama"],
        list(body.layers),
        model.get_output_embeddings().weight,
        d_mlp,
    )


def random_batches(subject: Subject) -> Callable[[int, int], Batch]:
    n_tokens = len(subject.unembedding)

    def batch(number: int, size: int) -> Batch:
        ids = torch.randint(n_tokens, (size, 128), generator=torch.Generator().manual_seed(number))
        numbers = torch.arange(number * size, (number + 1) * size)
        return send(ids, subject.device), numbers, split_segments(SEED, numbers.numpy(), None)

    return batch


def corpus_batches(subject: Subject, dataset: str | None) -> Callable[[int, int], Batch]:
    """Batches in a random order; at the end of the corpus it starts again, with new segment numbers."""
    from importlib import resources

    from neuroexplain.corpus.documents import read_documents
    from neuroexplain.corpus.token_stream import TokenStream
    from neuroexplain.corpus.tokenizing import tokenize
    from neuroexplain.corpus.visiting_order import visiting_order

    text = dataset or str(resources.files("neuroexplain.demo") / "corpus.jsonl.gz")
    stream = TokenStream.of(tokenize(read_documents((text,), None, "train", "text", None), subject.tokenizer))
    order = visiting_order(stream.n_segments, "random", SEED, None)

    def batch(number: int, size: int) -> Batch:
        numbers = torch.arange(number * size, (number + 1) * size)
        rows = order[numbers.numpy() % len(order)]
        ids = torch.from_numpy(stream.rows(rows).astype("int64"))
        return send(ids, subject.device), numbers, stream.splits(rows, SEED)

    return batch


def seconds(work: Work, batches: list[Batch], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches:
        work(*batch)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ratio(rounds: list[dict[str, float]], work: str) -> list[float]:
    """Quartiles of how fast the work is relative to the forward pass of the same round."""
    return [
        round(value, 4)
        for value in statistics.quantiles([took["forward"] / took[work] for took in rounds], n=4)
    ]


def added(rounds: list[dict[str, float]], work: str) -> float:
    """What the work adds to the forward pass, as a share of its time: the rounds' median."""
    return round(statistics.median(took[work] / took["forward"] - 1 for took in rounds), 4)


def measure_matrix_peak(subject: Subject) -> float:
    """FLOP/s of the best of ten square products in the subject's dtype, on its device."""
    on_gpu = subject.device.type == "cuda"
    n, n_products = (8192, 10) if on_gpu else (2048, 1)
    a, b = (torch.randn(n, n, device=subject.device).to(subject.dtype) for _ in range(2))
    best = min(seconds(torch.mm, [(a, b)] * n_products, on_gpu) for _ in range(10))
    return n_products * 2 * n**3 / best


def n_matrix_weights(subject: Subject) -> int:
    """The number of weights that every token is multiplied with: all matrices but the embeddings."""
    modules = (module for module in subject.model.modules() if not isinstance(module, torch.nn.Embedding))
    return sum(p.numel() for module in modules for p in module.parameters(recurse=False) if p.dim() == 2)


if __name__ == "__main__":
    main()
