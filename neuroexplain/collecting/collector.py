"""The running state of all layers, into which batches are folded: segments -> records and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from neuroexplain.arrays import (
    CollectedLayer,
    ExemplarArrays,
    NearestArrays,
    SampleArrays,
    VocabularyArrays,
)
from neuroexplain.collecting.active_values import ActiveValues
from neuroexplain.collecting.background import BackgroundRecords
from neuroexplain.collecting.histogram import RunningHistogram
from neuroexplain.collecting.kernels import MOST_GRAPHS, compile_around, compiled_sum_segments, undo_compile
from neuroexplain.collecting.records import Locate, RandomRecords, sampled_records, top_records
from neuroexplain.collecting.running_best import RunningBest
from neuroexplain.collecting.sample import Sample, SampleOffer, fold_sample, segment_sizes
from neuroexplain.collecting.second_stream import SecondStream
from neuroexplain.collecting.statistics import RunningStats, SumUp, sum_segments, sum_segments_in_cache
from neuroexplain.collecting.top_k import Offer, TopK, fold_top_k
from neuroexplain.errors import ActivationsNotFinite
from neuroexplain.evidence import SPLITS, Split
from neuroexplain.sampling import RANDOM_SHARES, SAMPLED_SHARES, share_out
from neuroexplain.sources._nearest import nearest_by_cosine
from neuroexplain.sources.base import SOURCES, HasDirections, SourceKind, find_sources
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.model import Subject
from neuroexplain.subject.tokenizer import special_ids
from neuroexplain.subject.vocabulary import read_vocabulary
from neuroexplain.units import RANDOM_START, SEGMENT_LENGTH, SIDES, STRONGEST, Kind, Side, Sign


class Collector:
    """What is kept of everything read so far. Its size depends on units x k, never on the number of tokens.

    It lies on the subject's device, except the random records and, with `windows_on_host`, the activations of
    all other records.
    """

    def __init__(
        self,
        subject: Subject,
        layers: Sequence[int],
        *,
        source: str | SourceKind = "mlp",
        activation: str,
        sign: Sign,
        top_k: int,
        positions: range,
        special_peaks: bool,
        n_random: int,
        n_sampled: int = 0,
        n_background: int = 0,
        seed: int,
        windows_on_host: bool = False,
    ) -> None:
        self.subject, self.layers, self.positions = subject, tuple(layers), positions
        self.kind = SOURCES.load(source) if isinstance(source, str) else source
        self.sources = find_sources(subject, self.kind, activation, layers)
        self.sides = SIDES[sign]
        self.top_k, self.n_sampled, self.seed = top_k, n_sampled, seed
        self.windows_device = torch.device("cpu") if windows_on_host else subject.device
        self.tops = {layer: self._empty_tops(layer) for layer in layers}
        self.samples = {layer: self._empty_samples(layer) for layer in layers}
        self.stats = {layer: self._empty_stats(layer) for layer in layers}
        self.split_segments: dict[Split, int] = dict.fromkeys(SPLITS, 0)  # visited so far
        widths = {layer: self.sources[layer].width for layer in layers}
        counts = share_out(n_random, RANDOM_SHARES)
        self.random = RandomRecords(counts, seed, widths, subject.dtype)
        in_background = counts["report"] + n_background if n_background else 0
        self.background = BackgroundRecords(in_background, seed, layers)
        self.histograms = {layer: self._empty_histogram(layer) for layer in layers}
        self.sum_up: SumUp = sum_segments_in_cache if subject.device.type == "cpu" else sum_segments
        self.compiled = False
        self.second_stream = SecondStream(subject.device)
        barred = [] if special_peaks else sorted(special_ids(subject.tokenizer))  # token ids
        self.barred = torch.tensor(barred, dtype=torch.int64, device=subject.device) if barred else None

    def _empty_tops(self, layer: int) -> dict[Kind, TopK]:
        subject, width = self.subject, self.sources[layer].width
        return {
            STRONGEST[side]: TopK(width, self.top_k, subject.dtype, subject.device, self.windows_device)
            for side in self.sides
        }

    def _empty_samples(self, layer: int) -> dict[Side, Sample]:
        if not self.n_sampled:
            return {}
        subject, width = self.subject, self.sources[layer].width
        counts = share_out(self.n_sampled, SAMPLED_SHARES)
        return {
            side: Sample(width, counts, subject.dtype, subject.device, self.windows_device)
            for side in self.sides
        }

    def _empty_stats(self, layer: int) -> RunningStats:
        return RunningStats(self.sources[layer].width, self.subject.device)

    def _empty_histogram(self, layer: int) -> RunningHistogram | None:
        """None if the layer's units are not sparse."""
        source = self.sources[layer]
        return None if source.encoder is None else RunningHistogram(source.width, self.subject.device)

    def read(
        self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "n"], splits: NDArray[np.int8]
    ) -> None:
        """Run the subject on one batch and fold it in. Rows from `n` on are padding and are left out.

        `segments`, their numbers, is on the CPU; token_ids can be on the subject's device already. splits,
        [n]: the place of each one's split in SPLITS, or NO_SPLIT.
        """
        n = len(segments)
        token_ids = send(token_ids, self.subject.device)
        offer = self._offer(token_ids[:n], segments)
        sample_offer = self._sample_offer(token_ids[:n], segments, splits)
        draw = self.random.draw(segments.tolist(), splits)
        background_draw = self.background.draw(segments.tolist(), splits)

        def keep(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            running = self.tops[layer], self.stats[layer], self.histograms[layer]
            for units, acts in self._fold(layer, *running, values, offer):
                _fold_samples(self.samples[layer], units, acts, sample_offer)
                self.random.keep(layer, units, acts, draw)
                self.background.keep(layer, units, acts, background_draw)

        self._run(token_ids, keep)
        for code, split in enumerate(SPLITS):
            self.split_segments[split] += int((splits == code).sum())

    def _run(self, token_ids: Int[Tensor, "batch seq"], keep: Callable[[int, Tensor], None]) -> None:
        """Run a batch, and call keep(layer, values) for each layer, in order."""
        self.second_stream.discard()

        def receive(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
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
        segments, splits = torch.arange(batch_size), np.zeros(batch_size, np.int8)
        offer = self._offer(token_ids, segments)
        sample_offer = self._sample_offer(token_ids, segments, splits)

        def drop(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            samples = self._empty_samples(layer)
            empty = self._empty_tops(layer), self._empty_stats(layer), self._empty_histogram(layer)
            for units, acts in self._fold(layer, *empty, values, offer):
                _fold_samples(samples, units, acts, sample_offer)

        self._run(token_ids, drop)

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

    def _sample_offer(
        self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch"], splits: NDArray[np.int8]
    ) -> SampleOffer:
        barred = None if self.barred is None else torch.isin(token_ids[:, RANDOM_START:], self.barred)
        return SampleOffer.of(segments.tolist(), splits, self.seed, self.subject.device, barred)

    def _fold(
        self,
        layer: int,
        tops: dict[Kind, TopK],
        stats: RunningStats,
        histogram: RunningHistogram | None,
        values: Float[Tensor, "batch seq d_in"],
        offer: Offer,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Fold a layer's values, a slice of its units at a time; yields each slice and its activations.

        Padding is encoded and then left out: last bits of sums differ with the shape of a batch. Sparse units
        have a histogram.
        """
        n = len(offer.segments)
        for units, padded in self.kind.encode(self.subject, self.sources[layer], values):
            acts = padded[:n]
            for kind, state in tops.items():
                fold_top_k(state.narrow(units), acts, offer, lowest=kind == "bottom")
            counted = acts[:, RANDOM_START:]
            active = None
            if histogram is not None:
                active = ActiveValues.of(counted)
                histogram.fold(units, active)
            if active is not None and counted.device.type == "cpu":
                stats.fold_active(units, active)
            else:
                stats.fold_slice(units, counted, self.sum_up)
            yield units, acts
        stats.count(n * (SEGMENT_LENGTH - RANDOM_START))

    def state(self) -> dict[str, Any]:
        """Everything kept so far, as tensors and numbers for a checkpoint; shares the collector's memory."""
        return {
            "tops": _states(self.tops),
            "samples": _states(self.samples),
            "split_segments": dict(self.split_segments),
            "stats": {layer: dict(vars(stats)) for layer, stats in self.stats.items()},
            "random": self.random.windows,
            "drawn": {split: list(kept) for split, kept in self.random.segments.kept.items()},
            "background": self.background.state(),
            "histograms": {layer: own.counts for layer, own in self.histograms.items() if own is not None},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave. Its tensors can be on any device."""
        for layer in self.layers:
            for kind, top in self.tops[layer].items():
                _copy_into(top, state["tops"][layer][kind])
            for side, sample in self.samples[layer].items():
                _copy_into(sample, state["samples"][layer][side])
            _copy_into(self.stats[layer], state["stats"][layer])
            self.random.windows[layer].copy_(state["random"][layer])
            if (histogram := self.histograms[layer]) is not None:
                histogram.counts.copy_(state["histograms"][layer])
        self.random.segments.kept = {split: list(map(tuple, kept)) for split, kept in state["drawn"].items()}
        self.split_segments = dict(state["split_segments"])
        if "background" in state:  # checkpoints of earlier versions are of dense units
            self.background.restore(state["background"])

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
            if any(self.random.segments.kept.values()):
                exemplars["random"] = self.random.arrays(layer, locate)
            samples: dict[tuple[Side, Split], SampleArrays] = {
                (side, split): arrays
                for side, state in self.samples[layer].items()
                for split, arrays in sampled_records(state, side, locate).items()
            }
            self._check_finite(layer, *(arrays.activations for arrays in exemplars.values()))
            width, histogram = self.sources[layer].width, self.histograms[layer]
            yield CollectedLayer(
                layer,
                exemplars,
                stats,
                self._vocabulary(layer, n_tokens),
                samples,
                self.background.arrays(layer, width) if self.background.segments.counts["report"] else None,
                None if histogram is None else histogram.finish(),
                self._nearest(layer),
            )

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

    def _nearest(self, layer: int) -> NearestArrays | None:
        """The nearest ones of each latent; None of units that have no direction of their own."""
        if not isinstance(self.kind, HasDirections):
            return None
        return nearest_by_cosine(self.kind.directions(self.subject, self.sources[layer]))


def send(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU copies it from pinned memory without making the caller wait."""
    if device.type != "cuda" or values.device == device:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _fold_samples(
    samples: Mapping[Side, Sample], units: slice, acts: Float[Tensor, "batch seq width"], offer: SampleOffer
) -> None:
    """Fold some units' activations into their samples."""
    if not samples:
        return
    sizes = segment_sizes(acts, tuple(samples), offer)
    for side, state in samples.items():
        fold_sample(state.narrow_to_units(units), acts, sizes[side], offer)


def _states(layers: Mapping[int, Mapping[Any, RunningBest]]) -> dict[int, dict[Any, dict[str, Tensor]]]:
    return {layer: {name: state.state() for name, state in own.items()} for layer, own in layers.items()}


def _copy_into(target: RunningBest | RunningStats, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            getattr(target, name).copy_(value)
        else:
            setattr(target, name, value)
