"""How much collecting costs over the bare forward pass:  python scripts/bench_collect.py [--json]

The two alternate in one process on the same segments, model, batch and dtype. The forward pass is Transformers' base model,
all layers, without the head and without any hook of ours: the floor. Printed: the median of the pairs' ratios, and quartiles.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from importlib import resources

import numpy as np
import torch

from neuroexplain.corpus.documents import read_documents
from neuroexplain.corpus.segments import TokenStream, tokenize
from neuroexplain.pipeline.collect import CPU_BATCH_SIZE
from neuroexplain.subject.collector import Collector
from neuroexplain.subject.load import embedded_model, load_subject

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default=None, help="hub name, folder or .gguf file; SmolLM2 unless told")
parser.add_argument("--dataset", default=None, help="text file; the demo's corpus unless told")
parser.add_argument("--pairs", type=int, default=9)
parser.add_argument("--batches", type=int, default=2, help="batches in each half of a pair")
parser.add_argument("--warm-up", type=int, default=4, help="batches collected before, so that the top k have filled up")
parser.add_argument("--batch-size", type=int, default=None)
parser.add_argument("--dtype", default="auto")
parser.add_argument("--device", default="auto")
parser.add_argument("--sign", default="positive")
parser.add_argument("--json", action="store_true")
options = parser.parse_args()

subject = load_subject(options.model or embedded_model(), options.dtype, options.device)
batch_size = options.batch_size or (CPU_BATCH_SIZE if subject.device.type == "cpu" else 64)
text = options.dataset or str(resources.files("neuroexplain.demo") / "corpus.jsonl.gz")
stream = TokenStream(tokenize(read_documents((text,), None, "train", "text", None), subject.tokenizer))
order = np.random.default_rng(0).permutation(stream.n_segments)
collector = Collector(
    subject,
    range(len(subject.layers)),
    activation="act",
    sign=options.sign,
    top_k=32,
    positions=range(64, 97),
    special_peaks=False,
    random_segments=[int(s) for s in order[:32]],
)


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch `number` of the visiting order; it starts again at the end, under new segment numbers."""
    places = np.arange(number * batch_size, (number + 1) * batch_size)
    cells = order[places % len(order)]
    ids = np.stack([stream.segment(int(cell)).token_ids for cell in cells]).astype(np.int64)
    return torch.from_numpy(ids), torch.from_numpy(cells + places // len(order) * stream.n_segments)


def forward(token_ids: torch.Tensor) -> None:
    with torch.inference_mode():
        subject.model(token_ids.to(subject.device), use_cache=False)


def seconds(work: object, first: int) -> float:
    batches = [batch(number) for number in range(first, first + options.batches)]
    synchronize()
    began = time.perf_counter()
    for token_ids, segments in batches:
        if work == "collect":
            collector.read(token_ids, segments)
        else:
            forward(token_ids)
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    if subject.device.type == "cuda":
        torch.cuda.synchronize()


for number in range(options.warm_up):
    collector.read(*batch(number))
forward(batch(0)[0])
pairs = []
for pair in range(options.pairs):
    first = options.warm_up + pair * options.batches
    works = ("forward", "collect") if pair % 2 else ("collect", "forward")
    took = {work: seconds(work, first) for work in works}
    pairs.append((took["forward"], took["collect"]))
    print(f"pair {pair + 1} of {options.pairs}: {took['forward'] / took['collect']:.3f}", file=sys.stderr)
ratios = [forward_s / collect_s for forward_s, collect_s in pairs]
low, _, high = statistics.quantiles(ratios, n=4)
tokens = options.batches * batch_size * 128
peak = (
    torch.cuda.max_memory_allocated()
    if subject.device.type == "cuda"
    else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
)
found = {
    "forward_tokens_per_s": round(tokens / statistics.median(f for f, _ in pairs), 1),
    "collect_tokens_per_s": round(tokens / statistics.median(c for _, c in pairs), 1),
    "collect_over_forward": round(statistics.median(ratios), 4),
    "quartiles": [round(low, 4), round(high, 4)],
    "pairs": len(pairs),
    "peak_memory_bytes": peak,
    "model": subject.name.rsplit("/", 1)[-1],
    "batch": [batch_size, 128],
    "dtype": str(subject.dtype).removeprefix("torch."),
    "device": torch.cuda.get_device_name()
    if subject.device.type == "cuda"
    else f"{platform.machine()}, {torch.get_num_threads()} threads",
    "torch": torch.__version__,
}
if options.json:
    print(json.dumps(found))
else:
    print("\n".join(f"{name:22} {value}" for name, value in found.items()))
