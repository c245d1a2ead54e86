"""What a few thousand tokens tell of a dictionary: whether it is read as it was trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from neuroexplain.formatting import health_text
from neuroexplain.sources._encoding import encode, latents_at_once, predict
from neuroexplain.sources._latents import encoder_of
from neuroexplain.sources.dictionaries._open import find_member
from neuroexplain.subject.capture import capture_activations
from neuroexplain.subject.model import Subject
from neuroexplain.subject.sites import find_site, normalized
from neuroexplain.units import RANDOM_START, Source

SEGMENTS_AT_ONCE = 8
LEAST_EXPLAINED = 0.3  # of the variance; below, something is wrong with most dictionaries
MOST_OFF = 0.5  # by how much of the published L0 the measured one may differ


@dataclass(frozen=True)
class Health:
    """Figures of one layer's dictionary, over tokens 64..127 of some segments."""

    layer: int
    n_tokens: int
    l0: float  # latents that are active at a token
    silent_share: float  # latents that are active at none of the tokens
    variance_explained: float | None  # of what is predicted, by the prediction; None if it does not vary
    published_l0: float | None

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures as the store keeps them, without the layer."""
        values = asdict(self)
        del values["layer"]
        return {name: v if v is not None and math.isfinite(v) else None for name, v in values.items()}

    @property
    def line(self) -> str:
        """The figures in a sentence."""
        return f"Layer {self.layer}: {health_text(self.figures)}."

    @property
    def warning(self) -> str | None:
        """What may be wrong; None if nothing looks wrong."""
        signs = []
        if self.variance_explained is None or self.variance_explained < LEAST_EXPLAINED:
            signs.append("it explains little of the variance")
        if self.published_l0 is not None and abs(self.l0 / self.published_l0 - 1) > MOST_OFF:
            signs.append("its number of active latents is far from the published one")
        if not signs:
            return None
        return (
            f"Layer {self.layer}: {' and '.join(signs)}. It may be another model's or another place's "
            "(--site), its input may need a factor (--input-scale) or the decoder's bias subtracted, or not "
            "(--subtract-b-dec). Latents that are read wrongly look like latents."
        )


def measure_health(subject: Subject, sources: Mapping[int, Source], token_ids: Tensor) -> Iterator[Health]:
    """The figures of each layer. token_ids: [n, 128] on the subject's device."""
    targets = {layer: _target(subject, source) for layer, source in sources.items()}
    sums = {layer: _Sums(source.width, subject.device) for layer, source in sources.items()}
    for batch in torch.split(token_ids, SEGMENTS_AT_ONCE):
        predicted = _read(subject, batch, targets)
        for layer, values in _read(subject, batch, sources).items():
            sums[layer].add(subject, sources[layer], values, predicted[layer])
    for layer, own in sums.items():
        yield own.health(layer, find_member(sources[layer]).entry.l0)


def _target(subject: Subject, source: Source) -> Source:
    """Where what the dictionary predicts is read."""
    written = find_member(source).entry.written
    if written is None:
        return source
    site = find_site(subject, written)
    return replace(source, module=site.module, side=site.side)


def _read(subject: Subject, token_ids: Tensor, sources: Mapping[int, Source]) -> dict[int, Tensor]:
    values: dict[int, Tensor] = {}

    def keep(layer: int, read: Tensor) -> None:
        values[layer] = read[:, RANDOM_START:].float()

    capture_activations(subject, token_ids, sources, keep)
    return values


class _Sums:
    """Running sums of one layer, float64 where they are of squares."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.n = 0
        self.n_active = torch.zeros(width, dtype=torch.int64, device=device)
        self.total: Tensor | float = 0.0
        self.squares = self.errors = 0.0

    def add(self, subject: Subject, source: Source, values: Tensor, target: Tensor) -> None:
        dictionary, site = encoder_of(subject, source)
        if site.is_normalized:
            values = normalized(subject.module(site.module), values)
            target = values if source.kind == "sae" else target
        # The first token of a text is not among these.
        dictionary = replace(dictionary, zeroes_first=False)
        at_once = latents_at_once(values.shape[0] * values.shape[1])
        with torch.inference_mode():
            for units, acts in encode(dictionary, values, at_once):
                self.n_active[units] += (acts > 0).sum(dim=(0, 1))
            error = target - predict(dictionary, values, at_once)
        self.n += values.shape[0] * values.shape[1]
        self.errors += float(error.double().square().sum())
        self.squares += float(target.double().square().sum())
        self.total = self.total + target.double().sum(dim=(0, 1))

    def health(self, layer: int, published_l0: float | None) -> Health:
        assert isinstance(self.total, Tensor)
        variance = self.squares - float(self.total.square().sum()) / self.n
        return Health(
            layer=layer,
            n_tokens=self.n,
            l0=float(self.n_active.sum()) / self.n,
            silent_share=float((self.n_active == 0).double().mean()),
            variance_explained=1 - self.errors / variance if variance > 0 else None,
            published_l0=published_l0,
        )
