"""All layers' running state, folded batch by batch: segments -> exemplars and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.load import Subject
from neuroexplain.subject.statistics import RunningStats
from neuroexplain.subject.topk import EMPTY, TopK, fold_top_k, hash_records, segments_of
from neuroexplain.subject.vocabulary import read_vocabulary
from neuroexplain.types import PEAK_INDEX, RANDOM_START, RECORD_LENGTH, SEGMENT_LENGTH, CollectedLayer, ExemplarArrays, Kind

# (segments, positions, record starts) -> (documents of the positions, offsets there of the records' first tokens, token ids)
Locate = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


class Collector:
    """What is kept of everything read so far. Its size depends on neurons x k, never on the number of tokens."""

    def __init__(
        self,
        subject: Subject,
        layers: Sequence[int],
        *,
        activation: str,
        sign: str,
        top_k: int,
        positions: range,
        special_peaks: bool,
        random_segments: Sequence[int],
    ) -> None:
        self.subject, self.layers, self.activation, self.positions = subject, tuple(layers), activation, positions
        made = (subject.d_mlp, top_k, subject.dtype, subject.device)
        kinds: tuple[Kind, ...] = {"positive": ("top",), "negative": ("bottom",), "both": ("top", "bottom")}[sign]  # type: ignore[assignment]
        self.tops: dict[int, dict[Kind, TopK]] = {layer: {kind: TopK.empty(*made) for kind in kinds} for layer in layers}
        self.stats = {layer: RunningStats(subject.d_mlp, subject.device) for layer in layers}
        self.random_place = {segment: place for place, segment in enumerate(random_segments)}
        shape = (len(random_segments), RECORD_LENGTH, subject.d_mlp)
        self.random = {layer: torch.zeros(shape, dtype=subject.dtype, device=subject.device) for layer in layers}
        specials = [] if special_peaks else sorted(set(subject.tokenizer.all_special_ids))
        self.barred = torch.tensor(specials, dtype=torch.int64, device=subject.device) if specials else None

    def read(self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "n"]) -> None:
        """Run one batch and fold it in. Rows from `n` on are padding and are left out."""
        n = len(segments)
        token_ids, segments = token_ids.to(self.subject.device), segments.to(self.subject.device)
        hashes = hash_records(token_ids[:n])
        allowed = None
        if self.barred is not None:
            allowed = ~torch.isin(token_ids[:n, self.positions.start : self.positions.stop], self.barred)
        drawn = [(row, self.random_place[s]) for row, s in enumerate(segments.tolist()) if s in self.random_place]

        def receive(layer: int, acts: Float[Tensor, "batch seq d_mlp"]) -> None:
            acts = acts[:n]
            for kind, state in self.tops[layer].items():
                fold_top_k(state, acts if kind == "top" else -acts, segments, hashes, self.positions, allowed)
            self.stats[layer].fold(acts[:, RANDOM_START:])
            for row, place in drawn:
                self.random[layer][place] = acts[row, RANDOM_START:]

        capture_activations(self.subject, token_ids, self.layers, self.activation, receive)

    def probe(self, batch_size: int) -> None:
        """Read a batch of so many segments and keep nothing; raises what the device raises where it does not fit."""
        token_ids = torch.zeros((batch_size, SEGMENT_LENGTH), dtype=torch.int64, device=self.subject.device)
        hashes = hash_records(token_ids)
        segments = torch.arange(batch_size, device=self.subject.device)

        def receive(layer: int, acts: Float[Tensor, "batch seq d_mlp"]) -> None:
            made = TopK.empty(acts.shape[2], next(iter(self.tops[layer].values())).k, acts.dtype, acts.device)
            fold_top_k(made, acts, segments, hashes, self.positions)
            RunningStats(acts.shape[2], acts.device).fold(acts[:, RANDOM_START:])

        capture_activations(self.subject, token_ids, self.layers, self.activation, receive)

    def state(self) -> dict[str, Any]:
        """All that was kept so far, as tensors and numbers: what a checkpoint holds. It shares memory with the collector."""
        return {
            "tops": {layer: {kind: dict(vars(state)) for kind, state in kinds.items()} for layer, kinds in self.tops.items()},
            "stats": {layer: dict(vars(stats)) for layer, stats in self.stats.items()},
            "random": self.random,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.tops = {layer: {k: TopK(**found) for k, found in kinds.items()} for layer, kinds in state["tops"].items()}
        self.random = state["random"]
        for layer, found in state["stats"].items():
            vars(self.stats[layer]).update(found)

    def finish(self, locate: Locate) -> Iterator[CollectedLayer]:
        """Every layer's result, in order. Raises NeuroexplainError where activations were not finite."""
        n_known = max(self.subject.tokenizer.get_vocab().values()) + 1  # a model may have rows beyond, for padding
        known_tokens = self.subject.unembedding[:n_known]
        for layer in self.layers:
            stats = self.stats[layer].finish()
            if not (np.isfinite(stats.min).all() and np.isfinite(stats.max).all() and np.isfinite(stats.mean).all()):
                raise NeuroexplainError(
                    f"Layer {layer} of {self.subject.name} gave activations that are not finite in {self.subject.dtype}. "
                    "Try --dtype float32"
                )
            exemplars: dict[Kind, ExemplarArrays] = {
                kind: _top(state, kind, locate) for kind, state in self.tops[layer].items()
            }
            if self.random_place:
                exemplars["random"] = _random(self.random[layer], list(self.random_place), locate)
            vocabulary = read_vocabulary(self.subject.output_vectors(layer), self.subject.norm_weight(), known_tokens)
            yield CollectedLayer(layer, exemplars, stats, vocabulary)


def _top(state: TopK, kind: Kind, locate: Locate) -> ExemplarArrays:
    keys, places = state.best()
    used = (keys > EMPTY).cpu().numpy()
    segments = np.where(used, segments_of(keys).cpu().numpy(), 0)
    starts = state.starts.gather(1, places).cpu().numpy()
    windows = state.windows.gather(1, places[:, :, None].expand(-1, -1, RECORD_LENGTH)).float().cpu().numpy()
    windows = windows if kind == "top" else -windows
    documents, offsets, tokens = (
        np.where(used, found, unused)
        for found, unused in zip(locate(segments, starts.astype(np.int64) + PEAK_INDEX, starts), (-1, 0, 0), strict=True)
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


def _random(acts: Tensor, segments: list[int], locate: Locate) -> ExemplarArrays:
    windows = acts.float().permute(2, 0, 1).cpu().numpy()  # [d_mlp, n, 64]
    d_mlp, n, _ = windows.shape
    # Every neuron peaks somewhere else in a random record; it belongs to the document of its own peak.
    peaks_at = windows.argmax(axis=2) + RANDOM_START
    everywhere = np.tile(np.array(segments, np.int64), (d_mlp, 1))
    starts = np.full((d_mlp, n), RANDOM_START, np.uint8)
    documents, offsets, tokens = locate(everywhere, peaks_at, starts)
    return ExemplarArrays(
        counts=np.full(d_mlp, n),
        segments=everywhere.astype(np.uint32),
        starts=starts,
        documents=documents.astype(np.int32),
        token_offsets=offsets.astype(np.int32),
        peaks=windows.max(axis=2),
        activations=windows,
        peak_token_ids=tokens.astype(np.uint32),
    )
