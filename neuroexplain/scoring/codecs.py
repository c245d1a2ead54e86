"""How a scorer's predictions are kept: half precision for levels, probabilities in 250ths (pure)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neuroexplain.evidence import Prediction

MASS_STEPS = 250  # the least mass that counts, 0.02, is 5 of them


def pack_mass(mass: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Masses in [0, 1] as 250ths, rounded down: one of 0.02 or more stays so. What unpack_mass gave is packed as it was."""
    steps: NDArray[np.uint8] = np.floor(np.clip(mass, 0, 1).astype(np.float64) * MASS_STEPS + 1e-4).astype(
        np.uint8
    )
    return steps


def unpack_mass(steps: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What pack_mass packed, to 0.004."""
    return (steps.astype(np.float64) / MASS_STEPS).astype(np.float32)


@dataclass(frozen=True)
class Codec:
    """How a scorer's predictions are kept and named: each record has as many values as every other of its prediction."""

    dtype: str  # of values
    in_steps: bool  # whether the detail is a probability, kept in 250ths; else it is kept like values
    names: tuple[str, str, str]  # of values, detail and the control's values in JSON

    def pack(self, values: NDArray[np.float32]) -> bytes:
        return np.ascontiguousarray(values, self.dtype).tobytes()

    def unpack(self, data: bytes, n_records: int) -> NDArray[np.float32]:
        """[n_records, n] float32. Raises ValueError where the records' lengths differ."""
        values = np.frombuffer(data, self.dtype).astype(np.float32)
        return values.reshape(n_records, -1) if n_records else values.reshape(0, 0)

    def pack_detail(self, detail: NDArray[np.float32]) -> bytes:
        return pack_mass(detail).tobytes() if self.in_steps else self.pack(detail)

    def unpack_detail(self, data: bytes, n_records: int) -> NDArray[np.float32]:
        if not self.in_steps:
            return self.unpack(data, n_records)
        return unpack_mass(np.frombuffer(data, np.uint8)).reshape(n_records, -1)

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The values as they come back from the store."""
        return values.astype(self.dtype).astype(np.float32)

    def rounded_detail(self, detail: NDArray[np.float32]) -> NDArray[np.float32]:
        return unpack_mass(pack_mass(detail)) if self.in_steps else self.rounded(detail)


CODECS = {
    "levels": Codec("<f2", True, ("expected_levels", "digit_mass", "control_levels")),
    "floats": Codec("<f4", False, ("predicted", "detail", "control_predicted")),
}


def as_stored(prediction: Prediction) -> Prediction:
    """The prediction with its numbers rounded as the store keeps them: what scores are computed from."""
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
