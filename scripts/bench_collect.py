"""How much collecting costs over the bare forward pass:  python scripts/bench_collect.py [--json] [--shape llama3-8b]

Three works take turns in one process on the same segments, model, batch shape and dtype. `forward` is Transformers' base
model, all layers, without the head and without any hook of ours: the floor. On a GPU attention and norms are compiled for all
three, unless `--no-compile`; `plain_forward` is the forward pass before that. `collect` is what `neuroexplain collect` does
with a batch. `published` is the same pass with the published method's rule in place of ours. Printed: the median of the
rounds' ratios, and quartiles; the share of the device's matrix peak, measured here by one large product in the model's dtype;
and peak memory.

New candidates get rarer as one over the segments read: after n, a segment is among a neuron's best k with probability k/n. So
what collecting costs depends on how many were read before, `--warm-up`; a run reads thousands to millions. Unless told, a CPU
reads 1,000 before, a GPU 16 batches: until then single neurons have more candidates in a batch than they have room for.

`--shape` builds a model of that shape with random weights and reads random tokens: it needs torch and Transformers alone.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from neuroexplain.collecting.batch_size import CPU_BATCH_SIZE, find_batch_size
from neuroexplain.collecting.collector import Collector, send
from neuroexplain.collecting.kernels import can_compile
from neuroexplain.collecting.published import PublishedTopK
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import FAMILIES, Subject, choose_device, choose_dtype, keep_freed_memory

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
WORKS = ("forward", "collect", "published")
Batch = tuple[Tensor, Tensor]  # token ids [batch, 128] on the device, segment numbers [batch] on the CPU


def main() -> None:
    options = parse_options()
    if options.shape is not None:
        subject = build(options.shape, options.dtype, options.device)
        read = random_batches(subject)
    else:
        from neuroexplain.subject.load import embedded_model, load_subject

        subject = load_subject(options.model or embedded_model(), options.dtype, options.device)
        read = corpus_batches(subject, options.dataset)
    collector = Collector(
        subject,
        range(len(subject.layers)),
        activation="act",
        sign=options.sign,
        top_k=32,
        positions=range(64, 97),
        special_peaks=True,
        n_random=32,
        seed=0,
        windows_on_host=options.windows == "host",
    )
    gpu = subject.device.type == "cuda"
    batch_size = options.batch_size or find_batch_size(collector, 1024)
    numbers = iter(range(10**9))
    batches = lambda n: [read(next(numbers), batch_size) for _ in range(n)]  # noqa: E731

    def forward(token_ids: Tensor, segments: Tensor) -> None:
        with torch.inference_mode():
            subject.model(token_ids, use_cache=False)

    plain = None
    if options.compile and can_compile(subject.device):
        forward(*batches(1)[0])
        plain = statistics.median(seconds(forward, batches(options.batches), gpu) for _ in range(5))
        collector.compile(batch_size)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    warm_up = options.warm_up or (16 * batch_size if gpu else 1000)
    for one in batches(-(-warm_up // batch_size)):  # so that the top k have filled up
        collector.read(*one)
    peak = (
        torch.cuda.max_memory_allocated()
        if gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    published = {n: PublishedTopK(subject.d_mlp, 32, subject.dtype, subject.device) for n in collector.layers}

    def published_rule(token_ids: Tensor, segments: Tensor) -> None:
        places = send(segments, subject.device)
        fold = lambda layer, acts: published[layer].fold(acts, places)  # noqa: E731
        capture_activations(subject, token_ids, collector.sources, fold)

    works = dict(zip(WORKS, (forward, collector.read, published_rule), strict=True))
    for work in works.values():
        work(*batches(1)[0])
    rounds: list[dict[str, float]] = []
    for number in range(options.pairs):
        turn = WORKS[number % 3 :] + WORKS[: number % 3]
        some = batches(options.batches)
        took = {name: seconds(works[name], some, gpu) for name in turn}
        rounds.append(took)
        print(f"{number + 1} of {options.pairs}: {took['forward'] / took['collect']:.3f}", file=sys.stderr)
    tokens = options.batches * batch_size * 128
    speed = {name: tokens / statistics.median(took[name] for took in rounds) for name in WORKS}
    matrix_peak = measure_matrix_peak(subject)
    flops = 2 * n_matrix_weights(subject)  # a token; attention's own products are left out
    found = {
        **{f"{name}_tokens_per_s": round(speed[name], 1) for name in WORKS},
        **({} if plain is None else {"plain_forward_tokens_per_s": round(tokens / plain, 1)}),
        "collect_over_forward": ratio(rounds, "collect")[1],
        "collect_over_forward_quartiles": ratio(rounds, "collect")[::2],
        "published_over_forward": ratio(rounds, "published")[1],
        "published_over_forward_quartiles": ratio(rounds, "published")[::2],
        "matrix_peak_share": round(speed["collect"] * flops / matrix_peak, 4),
        "matrix_peak_tflops": round(matrix_peak / 1e12, 3),
        "peak_memory_bytes": peak,
        "pairs": len(rounds),
        "model": options.shape or Path(subject.name).name,
        "neurons": len(subject.layers) * subject.d_mlp,
        "batch": [batch_size, 128],
        "segments_before": warm_up,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "kernels": "compiled" if collector.compiled else "plain",
        "device": torch.cuda.get_device_name()
        if gpu
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    print(
        json.dumps(found)
        if options.json
        else "\n".join(f"{name:34} {value}" for name, value in found.items())
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, help="a model with random weights instead of --model")
    parser.add_argument("--model", help="hub name, folder or .gguf file; SmolLM2 unless told")
    parser.add_argument("--dataset", help="text file; the demo's corpus unless told")
    parser.add_argument("--pairs", type=int, default=9, help="rounds in which each work has its turn")
    parser.add_argument("--batches", type=int, default=2, help="batches in each turn")
    parser.add_argument("--warm-up", type=int, help="segments collected before: of a run, the first moment")
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"{CPU_BATCH_SIZE} on a CPU, the largest that fits on a GPU unless told",
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
    """A Llama of the shape with random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    where = choose_device(device)
    keep_freed_memory()
    torch.set_default_dtype(choose_dtype(dtype, where))
    with where:
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
        return send(ids, subject.device), torch.arange(number * size, (number + 1) * size)

    return batch


def corpus_batches(subject: Subject, dataset: str | None) -> Callable[[int, int], Batch]:
    """Batches in a random order of visit; it starts again at the end, under new segment numbers."""
    from importlib import resources

    from neuroexplain.corpus.documents import read_documents
    from neuroexplain.corpus.token_stream import TokenStream, tokenize, visiting_order

    text = dataset or str(resources.files("neuroexplain.demo") / "corpus.jsonl.gz")
    stream = TokenStream.of(tokenize(read_documents((text,), None, "train", "text", None), subject.tokenizer))
    order = visiting_order(stream.n_segments, "random", 0, None)

    def batch(number: int, size: int) -> Batch:
        places = torch.arange(number * size, (number + 1) * size)
        ids = torch.from_numpy(stream.rows(order[places.numpy() % len(order)]).astype("int64"))
        return send(ids, subject.device), places

    return batch


def seconds(work: Callable[[Tensor, Tensor], object], batches: list[Batch], gpu: bool) -> float:
    if gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for token_ids, segments in batches:
        work(token_ids, segments)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ratio(rounds: list[dict[str, float]], work: str) -> list[float]:
    """Quartiles of how fast the work is relative to the forward pass of the same round."""
    return [
        round(value, 4)
        for value in statistics.quantiles([took["forward"] / took[work] for took in rounds], n=4)
    ]


def measure_matrix_peak(subject: Subject) -> float:
    """FLOP/s of the best of ten square products in the subject's dtype, on its device."""
    gpu = subject.device.type == "cuda"
    n = 8192 if gpu else 2048
    one, other = (torch.randn(n, n, device=subject.device).to(subject.dtype) for _ in range(2))
    best = min(seconds(torch.mm, [(one, other)] * (10 if gpu else 1), gpu) for _ in range(10))
    return (10 if gpu else 1) * 2 * n**3 / best


def n_matrix_weights(subject: Subject) -> int:
    """Weights that every token is multiplied with: all matrices but the embeddings."""
    modules = (module for module in subject.model.modules() if not isinstance(module, torch.nn.Embedding))
    return sum(p.numel() for module in modules for p in module.parameters(recurse=False) if p.dim() == 2)


if __name__ == "__main__":
    main()
