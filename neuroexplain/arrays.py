"""All units of a layer at once, as arrays: what collecting hands to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy is not imported to look at rows of text: `query` starts quickly
    import numpy as np
    from numpy.typing import NDArray
from neuroexplain.units import Kind


@dataclass(frozen=True, slots=True)
class ExemplarArrays:
    """The exemplars of one kind for neurons `0..width` of one layer, in rank order.

    Unused places (fewer candidates than `top_k`) come last and are not counted in `counts`.
    """

    counts: NDArray[np.int64]  # [width], exemplars of each neuron
    segments: NDArray[np.uint32]  # [width, k]
    starts: NDArray[np.uint8]  # [width, k]
    documents: NDArray[np.int32]  # [width, k]; -1 where the source does not tell
    token_offsets: NDArray[np.int32]  # [width, k]
    peaks: NDArray[np.float32]  # [width, k]
    activations: NDArray[np.float32]  # [width, k, 64]
    peak_token_ids: NDArray[np.uint32] | None = (
        None  # [width, k]; None: read from the stored segments when needed
    )

    def counts_mask(self) -> NDArray[np.bool_]:
        """Which places are used, [width, k]."""
        import numpy as np

        found: NDArray[np.bool_] = np.arange(self.segments.shape[1]) < self.counts[:, None]
        return found


@dataclass(frozen=True, slots=True)
class VocabularyArrays:
    """For every neuron of a layer, the tokens that its output vector promotes and suppresses most, strongest first."""

    promoted_ids: NDArray[np.uint32]  # [width, 10]
    promoted_logits: NDArray[np.float32]  # [width, 10]
    suppressed_ids: NDArray[np.uint32]  # [width, 10]
    suppressed_logits: NDArray[np.float32]  # [width, 10]


@dataclass(frozen=True, slots=True)
class StatsArrays:
    """`Stats` of every neuron of a layer, each [width] float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    share_positive: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CollectedLayer:
    """All that collecting found out about one layer, ready to be stored."""

    layer: int
    exemplars: Mapping[Kind, ExemplarArrays]
    stats: StatsArrays | None  # None where the data was imported without, like the next
    vocabulary: VocabularyArrays | None
