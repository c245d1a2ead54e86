"""All layers' running state, folded batch by batch: segments -> exemplars and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.arrays import CollectedLayer, ExemplarArrays
from neuroexplain.collecting.kernels import MOST_GRAPHS, compile_around, compiled_sum_segments, undo
from neuroexplain.collecting.second_stream import Behind
from neuroexplain.collecting.statistics import RunningStats, SumUp, sum_segments, sum_segments_in_cache
from neuroexplain.collecting.top_k import EMPTY, Offer, TopK, fold_top_k, segments_of
from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.stable_hash import stable_hash
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import Subject, special_ids
from neuroexplain.subject.vocabulary import read_vocabulary
from neuroexplain.units import PEAK_INDEX, RANDOM_START, RECORD_LENGTH, SEGMENT_LENGTH, Kind

# (segments, positions, record starts) -> (documents of the positions, offsets there of the records' first tokens, token ids)
Locate = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Collector:
    """What is kept of everything read so far. Its size depends on neurons x k, never on the number of tokens.

    All of it is on the subject's device but the random records, which are written once each, and, with `windows_on_host`, the
    top records' windows.
    """

    def __init__(
        self,
        subject: Subject,
        layers: Sequence[int],
        *,
        source: str = "mlp",
        activation: str,
        sign: str,
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
        self.kinds: tuple[Kind, ...] = {
            "positive": ("top",),
            "negative": ("bottom",),
            "both": ("top", "bottom"),
        }[sign]  # type: ignore[assignment]
        self.top_k = top_k
        self.windows_device = torch.device("cpu") if windows_on_host else subject.device
        self.tops = {layer: self._empty_tops(layer) for layer in layers}
        self.stats = {layer: self._empty_stats(layer) for layer in layers}
        self.sum_up: SumUp = sum_segments_in_cache if subject.device.type == "cpu" else sum_segments
        self.compiled = False
        self.behind = Behind(subject.device)
        self.drawn = RandomSegments(n_random, seed)
        self.random = {
            layer: torch.zeros((n_random, RECORD_LENGTH, self.sources[layer].width), dtype=subject.dtype)
            for layer in layers
        }
        specials = [] if special_peaks else sorted(special_ids(subject.tokenizer))
        self.barred = torch.tensor(specials, dtype=torch.int64, device=subject.device) if specials else None

    def _empty_tops(self, layer: int) -> dict[Kind, TopK]:
        subject = self.subject
        made = (self.sources[layer].width, self.top_k, subject.dtype, subject.device, self.windows_device)
        return {kind: TopK.empty(*made) for kind in self.kinds}

    def _empty_stats(self, layer: int) -> RunningStats:
        return RunningStats(self.sources[layer].width, self.subject.device)

    def read(self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "n"]) -> None:
        """Run one batch and fold it in. Rows from `n` on are padding and are left out.

        `segments` is on the CPU; token_ids can be on the subject's device already.
        """
        n = len(segments)
        token_ids = send(token_ids, self.subject.device)
        offer = self._offer(token_ids[:n], segments)
        places, rows = self.drawn.draw(segments.tolist())

        def keep(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            for units, acts in self._fold(layer, self.tops[layer], self.stats[layer], values, offer):
                if places:
                    self.random[layer][places, :, units] = acts[rows, RANDOM_START:].cpu()

        self._run(token_ids, n, keep)

    def _run(self, token_ids: Int[Tensor, "batch seq"], n: int, keep: Callable[[int, Tensor], None]) -> None:
        """Run a batch, and call keep(layer, values) of its first n segments for each layer, in order."""
        self.behind.forget()

        def receive(layer: int, values: Float[Tensor, "batch seq d_in"]) -> None:
            values = values[:n]
            self.behind.do(lambda: keep(layer, values), values)

        capture_activations(self.subject, token_ids, self.sources, receive)
        with torch.inference_mode():
            self.behind.finish()

    def probe(self, batch_size: int) -> None:
        """Read a batch of so many segments and keep nothing; raises what the device raises where it does not fit.

        It takes the memory that the first batches of a run take, of which every segment is a candidate of every neuron.
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
        """Make few kernels of many, for batches of this size, and read one to see that they work.

        Raises what the compiler raises; then all is as it was.
        """
        plain = self.sum_up
        try:
            compile_around(self.subject, self.sources.values())
            self.sum_up = compiled_sum_segments(batch_size)
            with torch._dynamo.config.patch(cache_size_limit=MOST_GRAPHS):
                self.probe(batch_size)
        except BaseException:
            undo(self.subject)
            self.sum_up = plain
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
        """Fold what was read of a layer, a slice of its units at a time; yields each slice and its activations."""
        for units, acts in self.kind.encode(self.subject, self.sources[layer], values):
            for kind, state in tops.items():
                fold_top_k(state.narrow(units), acts, offer, lowest=kind == "bottom")
            stats.fold_slice(units, acts[:, RANDOM_START:], self.sum_up)
            yield units, acts
        stats.count(len(values) * (SEGMENT_LENGTH - RANDOM_START))

    def state(self) -> dict[str, Any]:
        """All that was kept so far, as tensors and numbers: what a checkpoint holds. It shares memory with the collector."""
        return {
            "tops": {
                layer: {kind: dict(vars(state)) for kind, state in kinds.items()}
                for layer, kinds in self.tops.items()
            },
            "stats": {layer: dict(vars(stats)) for layer, stats in self.stats.items()},
            "random": self.random,
            "drawn": list(self.drawn.kept),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, wherever its tensors are."""
        for layer in self.layers:
            for kind, top in self.tops[layer].items():
                _copy_into(top, state["tops"][layer][kind])
            _copy_into(self.stats[layer], state["stats"][layer])
            self.random[layer].copy_(state["random"][layer])
        self.drawn.kept = [(key, segment) for key, segment in state["drawn"]]

    def finish(self, locate: Locate) -> Iterator[CollectedLayer]:
        """Every layer's result, in order. Raises NeuroexplainError where activations were not finite."""
        n_known = (
            max(self.subject.tokenizer.get_vocab().values()) + 1
        )  # a model may have rows beyond, for padding
        known_tokens = self.subject.unembedding[:n_known]
        for layer in self.layers:
            stats = self.stats[layer].finish()
            if not (
                np.isfinite(stats.min).all()
                and np.isfinite(stats.max).all()
                and np.isfinite(stats.mean).all()
            ):
                raise NeuroexplainError(
                    f"Layer {layer} of {self.subject.name} gave activations that are not finite in {self.subject.dtype}. "
                    "Try --dtype float32"
                )
            exemplars: dict[Kind, ExemplarArrays] = {
                kind: _top(state, locate) for kind, state in self.tops[layer].items()
            }
            if self.drawn.kept:
                exemplars["random"] = _random(self.random[layer], self.drawn, locate)
            written = self.kind.write_vectors(self.subject, self.sources[layer])
            vocabulary = (
                None
                if written is None
                else read_vocabulary(written, self.subject.norm_weight(), known_tokens)
            )
            yield CollectedLayer(layer, exemplars, stats, vocabulary)


class RandomSegments:
    """The n segments with the smallest `stable_hash(seed, segment)` of all that came by: the same in any order."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self.kept: list[tuple[int, int]] = []  # (hash, segment); each keeps its place until it is driven out

    def draw(self, segments: Sequence[int]) -> tuple[list[int], list[int]]:
        """(places, rows): which places are taken, and by which of these segments."""
        taken: dict[int, int] = {}
        for row, segment in enumerate(segments):
            key = (stable_hash(self.seed, segment), segment)
            if len(self.kept) < self.n:
                taken[len(self.kept)] = row
                self.kept.append(key)
            elif self.kept and key < (last := max(self.kept)):
                place = self.kept.index(last)
                taken[place] = row
                self.kept[place] = key
        return list(taken), list(taken.values())

    def in_order(self) -> tuple[list[int], list[int]]:
        """(places, segments), the smallest hash first."""
        places = sorted(range(len(self.kept)), key=lambda place: self.kept[place])
        return places, [self.kept[place][1] for place in places]


def send(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU gets it from pinned memory, and nobody waits for it."""
    if device.type != "cuda" or values.device == device:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _copy_into(target: TopK | RunningStats, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Tensor):
            getattr(target, name).copy_(value)
        else:
            setattr(target, name, value)


def _top(state: TopK, locate: Locate) -> ExemplarArrays:
    keys, places = state.best()
    used = (keys > EMPTY).cpu().numpy()
    segments = np.where(used, segments_of(keys).cpu().numpy(), 0)
    starts = state.starts.gather(1, places).cpu().numpy()
    where = places.to(state.windows.device)[:, :, None].expand(-1, -1, RECORD_LENGTH)
    windows = state.windows.gather(1, where).float().cpu().numpy()
    documents, offsets, tokens = (
        np.where(used, found, unused)
        for found, unused in zip(
            locate(segments, starts.astype(np.int64) + PEAK_INDEX, starts), (-1, 0, 0), strict=True
        )
    )
    return ExemplarArrays(
        counts=used.sum(axis=1),
        segments=segments.astype(np.uint32),
        starts=starts,
        documents=documents.astype(np.int32),
        token_offsets=offsets.astype(np.int32),
        peaks=windows[:, :, PEAK_INDEX].copy(),
        activations=windows,
        peak_token_ids=tokens.astype(np.uint32),
    )


def _random(acts: Tensor, drawn: RandomSegments, locate: Locate) -> ExemplarArrays:
    places, segments = drawn.in_order()
    windows = acts[places].float().permute(2, 0, 1).cpu().numpy()  # [width, n, 64]
    width, n, _ = windows.shape
    # Every neuron peaks somewhere else in a random record; it belongs to the document of its own peak.
    peaks_at = windows.argmax(axis=2) + RANDOM_START
    everywhere = np.tile(np.array(segments, np.int64), (width, 1))
    starts = np.full((width, n), RANDOM_START, np.uint8)
    documents, offsets, tokens = locate(everywhere, peaks_at, starts)
    return ExemplarArrays(
        counts=np.full(width, n),
        segments=everywhere.astype(np.uint32),
        starts=starts,
        documents=documents.astype(np.int32),
        token_offsets=offsets.astype(np.int32),
        peaks=windows.max(axis=2),
        activations=windows,
        peak_token_ids=tokens.astype(np.uint32),
    )
