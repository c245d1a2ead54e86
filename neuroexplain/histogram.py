"""The bins of histograms of activations: half an octave, the same for every unit, so that they add up."""

from __future__ import annotations

FIRST, LAST = -20, 20  # half octaves: from 2^-10 to 2^10
# A bin holds its lower edge and not its upper one. The first bin is below all edges, the last one above.
EDGES: tuple[float, ...] = tuple(2.0 ** (half / 2) for half in range(FIRST, LAST + 1))


def bin_middle(place: int) -> float:
    """The geometric middle of a bin's edges; the first and the last bin are taken to be as wide."""
    return float(2.0 ** ((FIRST + place - 0.5) / 2))
