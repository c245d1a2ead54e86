"""How a prediction's numbers are stored: half precision for levels, 250ths for their masses (pure).

Scores are computed from the numbers as they are stored, so that `verify` computes the same scores again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Prediction

MASS_STEPS = 250  # a byte holds them, and the least mass that counts, 0.02, is exactly 5 of them


def pack_mass(mass: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Masses in [0, 1] as 250ths, rounded down, so that a mass stays on its side of 0.02.

    Packing is exact for what unpack_mass gives.
    """
    steps = np.clip(mass, 0, 1).astype(np.float64) * MASS_STEPS
    return np.floor(steps + 1e-4).astype(np.uint8)  # 1e-4 for the rounding error of an unpacked float32


def unpack_mass(steps: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Masses from 250ths: up to 0.004 below the packed ones."""
    return (steps.astype(np.float64) / MASS_STEPS).astype(np.float32)


@dataclass(frozen=True)
class Codec:
    """How predictions are stored and named in JSON. All records of a prediction have equally many values."""

    dtype: str  # of values, as NumPy names it
    detail_is_mass: (
        bool  # whether details are probabilities, stored as 250ths; else they are stored like values
    )
    names: tuple[str, str, str]  # JSON keys of values, details and the control's values
    n_of_window: int | None = None  # values of a record for all of its 32 scored tokens together
    bounds: tuple[float, float] | None = None  # within which values lie; None: anywhere

    def pack(self, values: NDArray[np.float32]) -> bytes:
        """Values [n_records, n] as bytes."""
        return np.ascontiguousarray(values, self.dtype).tobytes()

    def unpack(self, data: bytes, n_records: int) -> NDArray[np.float32]:
        """Values [n_records, n], float32. Raises ValueError if they do not divide into n_records records."""
        values = np.frombuffer(data, self.dtype).astype(np.float32)
        return values.reshape(n_records, -1) if n_records else values.reshape(0, 0)

    def pack_detail(self, detail: NDArray[np.float32]) -> bytes:
        return pack_mass(detail).tobytes() if self.detail_is_mass else self.pack(detail)

    def unpack_detail(self, data: bytes, n_records: int) -> NDArray[np.float32]:
        if not self.detail_is_mass:
            return self.unpack(data, n_records)
        return unpack_mass(np.frombuffer(data, np.uint8)).reshape(n_records, -1)

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values as the store returns them."""
        return values.astype(self.dtype).astype(np.float32)

    def rounded_detail(self, detail: NDArray[np.float32]) -> NDArray[np.float32]:
        """The details as the store returns them."""
        return unpack_mass(pack_mass(detail)) if self.detail_is_mass else self.rounded(detail)


CODECS = {
    "levels": Codec("<f2", True, ("expected_levels", "digit_mass", "control_levels")),
    "floats": Codec("<f4", False, ("predicted", "detail", "control_predicted")),
    "probabilities": Codec(
        "<f4", False, ("probability", "answer_mass", "control_probability"), n_of_window=1, bounds=(0, 1)
    ),
    "choices": Codec("<f4", False, ("choices", "detail", "control_choices"), n_of_window=5, bounds=(0, 1)),
    "cosines": Codec("<f4", False, ("cosine", "detail", "control_cosine"), n_of_window=1, bounds=(-1, 1)),
}


def as_stored(prediction: Prediction) -> Prediction:
    """The prediction with its numbers rounded as the store returns them."""
    codec = CODECS[prediction.codec]
    rounded = (
        replace(
            r,
            values=codec.rounded(r.values),
            detail=None if r.detail is None else codec.rounded_detail(r.detail),
            control=None if r.control is None else codec.rounded(r.control),
        )
        for r in prediction.records
    )
    return replace(prediction, records=tuple(rounded))
