"""How a prediction's numbers are stored and read."""

import numpy as np
import pytest

from neuroexplain.scoring.codecs import CODECS, pack_mass, unpack_mass


def test_masses_beyond_0_and_1_by_rounding_are_0_and_1():
    steps = pack_mass(np.array([-0.01, 0.0, 1.0, 1.0000001, 1.3], np.float32))
    assert unpack_mass(steps).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("shape", [(1, 32), (3, 4), (2, 1)])
def test_what_is_read_is_what_was_rounded(codec, shape):
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    np.testing.assert_array_equal(codec.unpack(codec.pack(values), len(values)), codec.rounded(values))
    detail = codec.unpack_detail(codec.pack_detail(values), len(values))
    np.testing.assert_array_equal(detail, codec.rounded_detail(values))
    assert np.abs(detail - values).max() < 0.004


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_no_records_have_no_values(codec):
    assert codec.unpack(b"", 0).shape == (0, 0)
    with pytest.raises(ValueError, match="reshape"):
        codec.unpack(codec.pack(np.zeros(5, np.float32)), 3)
