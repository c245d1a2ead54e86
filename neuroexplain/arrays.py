"""All units of a layer at once, as arrays: what collecting hands to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neuroexplain.evidence import Split
from neuroexplain.units import Kind, Side

if TYPE_CHECKING:  # `query` starts sooner without numpy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ExemplarArrays:
    """The exemplars of one kind for all units of one layer, in rank order.

    A unit with fewer exemplars than k has unused places: they come last, and `counts` leaves them out.
    """

    counts: NDArray[np.int64]  # [width], exemplars of each unit
    segments: NDArray[np.uint32]  # [width, k]
    starts: NDArray[np.uint8]  # [width, k]
    documents: NDArray[np.int32]  # [width, k]; -1 if the source does not tell
    token_offsets: NDArray[np.int32]  # [width, k]
    peaks: NDArray[np.float32]  # [width, k]
    activations: NDArray[np.float32]  # [width, k, 64]
    peak_token_ids: NDArray[np.uint32] | None = None  # [width, k]; None: to be read from the stored segments

    def counts_mask(self) -> NDArray[np.bool_]:
        """Which places are used, [width, k]."""
        import numpy as np

        mask: NDArray[np.bool_] = np.arange(self.segments.shape[1]) < self.counts[:, None]
        return mask


@dataclass(frozen=True, slots=True)
class SampleArrays:
    """One side's sampled records in one split, for all units of a layer, the largest ratio first."""

    records: ExemplarArrays
    sizes: NDArray[np.float32]  # [width, n], by which they were drawn; 0 in unused places
    thresholds: NDArray[np.float64]  # [width], the largest size / uniform outside of the sample; 0 if none is


@dataclass(frozen=True, slots=True)
class HardRecords:
    """Records of the look-alikes of one side of a unit, and the unit's own activations there."""

    segments: NDArray[np.uint32]  # [n]
    starts: NDArray[np.uint8]  # [n], the record's first token in its segment; the shared one is 32 later
    reasons: NDArray[np.uint8]  # [n], why it was taken: a place in look_alikes.REASONS
    others: NDArray[np.uint32]  # [n], the look-alike, a unit of the same layer
    activations: NDArray[np.float32]  # [n, 64], raw; bfloat16 is widened without loss


@dataclass(frozen=True, slots=True)
class VocabularyArrays:
    """The tokens that each unit's write vector promotes and suppresses most, strongest first."""

    promoted_ids: NDArray[np.uint32]  # [width, 10]
    promoted_logits: NDArray[np.float32]  # [width, 10]
    suppressed_ids: NDArray[np.uint32]  # [width, 10]
    suppressed_logits: NDArray[np.float32]  # [width, 10]


@dataclass(frozen=True, slots=True)
class StatsArrays:
    """`Stats` of every unit of a layer, each [width] float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    share_positive: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BackgroundArrays:
    """Tokens 64..127 of a run's background, and what is not 0 there, unit after unit."""

    segments: NDArray[np.uint32]  # [n], the smallest hash first; the random records of `report` come first
    counts: NDArray[np.int64]  # [width], activations of each unit
    # Of each activation, [sum of counts]: its record's place in `segments`, its token there, its value.
    records: NDArray[np.uint16]
    positions: NDArray[np.uint8]
    activations: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NearestArrays:
    """The latents of the same dictionary whose directions are most like each unit's, the nearest first."""

    units: NDArray[np.uint32]  # [width, n]
    cosines: NDArray[np.float32]  # [width, n]; 0 in unused places, which come last


@dataclass(frozen=True, slots=True)
class CollectedLayer:
    """All that was collected of one layer, ready to be stored."""

    layer: int
    exemplars: Mapping[Kind, ExemplarArrays]  # without the sampled records
    stats: StatsArrays | None  # None if the data was imported without
    vocabulary: VocabularyArrays | None  # likewise
    samples: Mapping[tuple[Side, Split], SampleArrays] = field(default_factory=dict)
    background: BackgroundArrays | None = None  # of sparse units
    histogram: NDArray[np.uint32] | None = None  # likewise, [width, bins]: see histogram.EDGES
    nearest: NearestArrays | None = None  # of latents
