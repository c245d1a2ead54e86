"""The running state of all layers, into which batches are folded: segments -> records and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.arrays import CollectedLayer, ExemplarArrays, VocabularyArrays
from neuroexplain.collecting.kernels import MOST_GRAPHS, compile_around, compiled_sum_segments, undo_compile
from neuroexplain.collecting.records import Locate, RandomRecords, top_records
from neuroexplain.collecting.second_stream import SecondStream
from neuroexplain.collecting.statistics import RunningStats, SumUp, sum_segments, sum_segments_in_cache
from neuroexplain.collecting.top_k import Offer, TopK, fold_top_k
from neuroexplain.errors import ActivationsNotFinite
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.model import Subject
from neuroexplain.subject.tokenizer import special_ids
from neuroexplain.subject.vocabulary import read_vocabulary
from neuroexplain.units import RANDOM_START, SEGMENT_LENGTH, Kind, Sign

KINDS_OF_SIGN: Mapping[Sign, tuple[Kind, ...]] = {
    "positive": ("top",),
    "negative": ("bottom",),
    "both": ("top", "bottom"),
}


class Collector:
    """What is kept of everything read so far. Its size depends on units x k, never on the number of tokens.

    It lies on the subject's device, except the random records and, with `windows_on_host`, the activations of
    top and bottom records.
    """

    def __init__(
        self,
        subject: Subject,
        layers: Sequence[int],
        *,
        source: str = "mlp",
        activation: str,
        sign: Sign,
        top_k: int,
        positions: range,
        special_peaks: bool,
        n_random: int,
        seed: int,
        windows_on_host: bool = False,
    ) -> None:
        self.subject, self.layers, self.positions = subject, tuple(layers), positions
        self.sources = find_sources(subject, source, activation, layers)
        self.kind = SOURCES.load(source)
        self.kinds = KINDS_OF_SIGN[sign]
        self.top_k = top_k
        self.windows_device = torch.device("cpu") if windows_on_host else subject.device
        self.tops = {layer: self._empty_tops(layer) for layer in layers}
        self.stats = {layer: self._empty_stats(layer) for layer in layers}
        widths = {layer: self.sources[layer].width for layer in layers}
        self.random = RandomRecords(n_random, seed, widths, subject.dtype)
        self.sum_up: SumUp = sum_segments_in_cache if subject.device.type == "cpu" else sum_segments
        self.compiled = False
        self.second_stream = SecondStream(subject.device)
        barred = [] if special_peaks else sorted(special_ids(subject.tokenizer))  # token ids
        self.barred = torch.tensor(barred, dtype=torch.int64, device=subject.device) if barred else None

    def _empty_tops(self, layer: int) -> dict[Kind, TopK]:
        subject, width = self.subject, self.sources[layer].width
        return {
            kind: TopK.empty(width, self.top_k, subject.dtype, subject.device, self.windows_device)
            for kind in self.kinds
        }

    def _empty_stats(self, layer: int) -> RunningStats:
        return RunningStats(self.sources[layer].width, self.subject.device)

    def read(self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "n"]) -> None:
        """Run the subject on one batch and fold it in. Rows from `n` on are padding and are left out.

        `segments`, their numbers, is on the CPU; token_ids can be on the subject's device already.
        """
        n = len(segments)
        token_ids = send(token_ids, self.subject.device)
        offer = self._offer(token_ids[:n], segments)
        draw = self.random.draw(segments.tolist())

        def keep(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            for units, acts in self._fold(layer, self.tops[layer], self.stats[layer], values, offer):
                self.random.keep(layer, units, acts, draw)

        self._run(token_ids, n, keep)

    def _run(self, token_ids: Int[Tensor, "batch seq"], n: int, keep: Callable[[int, Tensor], None]) -> None:
        """Run a batch, and call keep(layer, values) of its first n segments for each layer, in order."""
        self.second_stream.discard()

        def receive(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            values = values[:n]
            self.second_stream.defer(lambda: keep(layer, values), values)

        capture_activations(self.subject, token_ids, self.sources, receive)
        with torch.inference_mode():
            self.second_stream.finish()

    def probe(self, batch_size: int) -> None:
        """Read a batch of this size and keep nothing. Raises torch.OutOfMemoryError if it does not fit.

        It takes the memory of a run's first batches, of which every segment is a candidate of every unit.
        """
        token_ids = torch.arange(SEGMENT_LENGTH, device=self.subject.device).repeat(batch_size, 1)
        if self.barred is not None:
            token_ids[::2, self.positions.start] = self.barred[0]
        offer = self._offer(token_ids, torch.arange(batch_size))

        def drop(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            for _ in self._fold(layer, self._empty_tops(layer), self._empty_stats(layer), values, offer):
                pass

        self._run(token_ids, batch_size, drop)

    def compile(self, batch_size: int) -> None:
        """Compile kernels for batches of this size, and read one batch to see that they work.

        Raises what the compiler raises; the collector is then unchanged.
        """
        eager = self.sum_up
        try:
            compile_around(self.subject, self.sources.values())
            self.sum_up = compiled_sum_segments(batch_size)
            with torch._dynamo.config.patch(cache_size_limit=MOST_GRAPHS):
                self.probe(batch_size)
        except BaseException:
            undo_compile(self.subject)
            self.sum_up = eager
            raise
        self.compiled = True

    def _offer(self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch"]) -> Offer:
        allowed = None
        if self.barred is not None:
            allowed = ~torch.isin(token_ids[:, self.positions.start : self.positions.stop], self.barred)
        return Offer.of(token_ids, send(segments, self.subject.device), self.positions, allowed)

    def _fold(
        self,
        layer: int,
        tops: dict[Kind, TopK],
        stats: RunningStats,
        values: Float[Tensor, "batch seq d_in"],
        offer: Offer,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Fold a layer's values, a slice of its units at a time; yields each slice and its activations."""
        for units, acts in self.kind.encode(self.subject, self.sources[layer], values):
            for kind, state in tops.items():
                fold_top_k(state.narrow(units), acts, offer, lowest=kind == "bottom")
            stats.fold_slice(units, acts[:, RANDOM_START:], self.sum_up)
            yield units, acts
        stats.count(len(values) * (SEGMENT_LENGTH - RANDOM_START))

    def state(self) -> dict[str, Any]:
        """Everything kept so far, as tensors and numbers for a checkpoint; shares the collector's memory."""
        return {
            "tops": {
                layer: {kind: dict(vars(state)) for kind, state in kinds.items()}
                for layer, kinds in self.tops.items()
            },
            "stats": {layer: dict(vars(stats)) for layer, stats in self.stats.items()},
            "random": self.random.windows,
            "drawn": list(self.random.segments.kept),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave. Its tensors can be on any device."""
        for layer in self.layers:
            for kind, top in self.tops[layer].items():
                _copy_into(top, state["tops"][layer][kind])
            _copy_into(self.stats[layer], state["stats"][layer])
            self.random.windows[layer].copy_(state["random"][layer])
        self.random.segments.kept = [(key, segment) for key, segment in state["drawn"]]

    def finish(self, locate: Locate) -> Iterator[CollectedLayer]:
        """Every layer's result, in order. Raises ActivationsNotFinite if a stored value is not finite."""
        # A model may have more rows than its tokenizer has tokens, as padding.
        n_tokens = max(self.subject.tokenizer.get_vocab().values()) + 1
        for layer in self.layers:
            stats = self.stats[layer].finish()
            self._check_finite(layer, stats.min, stats.max, stats.mean)
            exemplars: dict[Kind, ExemplarArrays] = {
                kind: top_records(state, locate) for kind, state in self.tops[layer].items()
            }
            if self.random.segments.kept:
                exemplars["random"] = self.random.arrays(layer, locate)
            self._check_finite(layer, *(arrays.activations for arrays in exemplars.values()))
            yield CollectedLayer(layer, exemplars, stats, self._vocabulary(layer, n_tokens))

    def check_finite(self) -> None:
        """Raise ActivationsNotFinite if a layer's activations overflowed. The device is waited for."""
        for layer, stats in self.stats.items():
            self._check_finite(layer, stats.min.cpu().numpy(), stats.max.cpu().numpy())

    def _check_finite(self, layer: int, *arrays: NDArray[Any]) -> None:
        if not all(np.isfinite(array).all() for array in arrays):
            raise ActivationsNotFinite(
                f"Layer {layer} of {self.subject.name} gave activations that are not finite in "
                f"{self.subject.dtype_name}: its largest ones overflow. Give another precision:  --dtype "
                + ("float32" if self.subject.dtype_name == "bfloat16" else "bfloat16 | --dtype float32")
            )

    def _vocabulary(self, layer: int, n_tokens: int) -> VocabularyArrays | None:
        """The vocabulary reading of a layer over token ids below n_tokens; None without write vectors."""
        write_vectors = self.kind.write_vectors(self.subject, self.sources[layer])
        if write_vectors is None:
            return None
        unembedding = self.subject.unembedding[:n_tokens]
        return read_vocabulary(write_vectors, self.subject.norm_weight(), unembedding)


def send(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU copies it from pinned memory without making the caller wait."""
    if device.type != "cuda" or values.device == device:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _copy_into(target: TopK | RunningStats, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            getattr(target, name).copy_(value)
        else:
            setattr(target, name, value)
