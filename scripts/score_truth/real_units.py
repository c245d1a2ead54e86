"""Real units of a model: a fair choice of selective and dense ones, and all of their activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuroexplain.corpus.token_stream import TokenStream
from neuroexplain.subject.model import Subject
from neuroexplain.units import RANDOM_START, Side, UnitId

SELECTION_SEGMENTS = 64  # by which units are called selective or dense


@dataclass(frozen=True)
class Chosen:
    """One side of a unit that is evaluated."""

    activation: str  # act or post; of units made by rules the name of their run
    side: Side
    unit: UnitId
    density: str  # selective or dense

    @property
    def group(self) -> str:
        if self.activation.startswith("made"):
            return self.activation.replace("made", "made by rules")
        side = "" if self.activation == "act" else f" {self.side}"
        return f"layer {self.unit.layer} {self.activation}{side}, {self.density}"


def choose_units(
    subject: Subject, stream: TokenStream, order: NDArray[np.int64], layers: Sequence[int], n: int
) -> list[Chosen]:
    """Sides of each group, by the share of the sum of squares that the strongest 1% of tokens have."""
    recorder = Recorder(subject, [], layers)
    with recorder.recording(True), torch.inference_mode():
        for rows in np.array_split(order[:SELECTION_SEGMENTS], 4):
            subject.model(torch.from_numpy(stream.rows(rows).astype(np.int64)), use_cache=False)
    kinds: list[tuple[str, Side]] = [("act", "positive"), ("post", "positive"), ("post", "negative")]
    n_groups = 2 * len(kinds) * len(layers)
    each, generator = -(-n // n_groups), np.random.default_rng(0)
    chosen = []
    for layer in layers:
        for activation, side in kinds:
            values = np.concatenate(recorder.values[layer, activation]).reshape(-1, recorder.width(layer))
            strength = np.sort(np.maximum(values if side == "positive" else -values, 0) ** 2, axis=0)
            total = strength.sum(axis=0)
            share = strength[-len(strength) // 100 :].sum(axis=0) / np.where(total > 0, total, np.inf)
            ranked = np.argsort(-share, kind="stable")
            ranked = ranked[total[ranked] > 0]
            third = len(ranked) // 3
            for density, part in (("selective", ranked[:third]), ("dense", ranked[-third:])):
                for index in generator.choice(part, each, replace=False).tolist():
                    chosen.append(Chosen(activation, side, UnitId(layer, index), density))
    return chosen


class Recorder:
    """Records activations of chosen units at tokens 64..127 while something else runs the model."""

    def __init__(self, subject: Subject, chosen: Sequence[Chosen], layers: Sequence[int] = ()) -> None:
        self.subject = subject
        self.units: dict[tuple[int, str], list[int] | slice] = {
            (layer, activation): slice(None) for layer in layers for activation in ("act", "post")
        }
        for side in chosen:
            units = self.units.setdefault((side.unit.layer, side.activation), [])
            if isinstance(units, list) and side.unit.index not in units:
                units.append(side.unit.index)
        self.values: dict[tuple[int, str], list[NDArray[np.float32]]] = {key: [] for key in self.units}
        self._handles: list[Any] = []

    def width(self, layer: int) -> int:
        return int(self.values[layer, "act"][0].shape[2])

    def recording(self, is_on: bool) -> Recorder:
        self._is_on = is_on
        return self

    def __enter__(self) -> None:
        if not self._is_on:
            return
        for layer, activation in self.units:
            mlp = self.subject.layers[layer].mlp

            def record(module: Any, inputs: Any, output: Any = None, key: Any = (layer, activation)) -> None:
                values = inputs[0] if output is None else output
                self.values[key].append(
                    values[:, RANDOM_START:, self.units[key]].float().cpu().numpy().copy()
                )

            if activation == "act":
                self._handles.append(mlp.act_fn.register_forward_hook(record))
            else:
                self._handles.append(mlp.down_proj.register_forward_pre_hook(record))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def activations(self, n_segments: int) -> dict[tuple[int, str, int], NDArray[np.float32]]:
        """[segments, 64] by layer, activation and unit; padding of the last batch is left out."""
        by_unit = {}
        for (layer, activation), parts in self.values.items():
            values = np.concatenate(parts)[:n_segments]
            for place, index in enumerate(self.units[layer, activation]):  # type: ignore[arg-type]
                by_unit[layer, activation, index] = values[:, :, place]
        return by_unit
