"""The vocabulary reading against the definition; rows of the unembedding without a token are left out."""

import numpy as np
import pytest
import torch

from neuroexplain.subject.vocabulary import read_vocabulary
from tests.fakes import tiny_subject, tiny_tokenizer


@pytest.mark.parametrize("n_tokens", [30, 320, 640, 1001])  # 1,001: 15 blocks and a rest
def test_the_reading_is_the_top_of_the_logits(n_tokens):
    generator = torch.Generator().manual_seed(1)
    vectors, norm, unembedding = (
        torch.randn(shape, generator=generator) for shape in ((90, 5), (5,), (n_tokens, 5))
    )
    reading = read_vocabulary(vectors, norm, unembedding, n=4)
    logits = ((vectors * norm) @ unembedding.T).numpy()
    order = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(reading.promoted_ids, order[:, :4])
    np.testing.assert_array_equal(reading.suppressed_ids, order[:, ::-1][:, :4])
    np.testing.assert_allclose(
        reading.promoted_logits, np.take_along_axis(logits, order[:, :4], 1), rtol=1e-5
    )
    lowest = np.take_along_axis(logits, order[:, ::-1][:, :4], 1)
    np.testing.assert_allclose(reading.suppressed_logits, lowest, rtol=1e-5)


def test_rows_without_a_token_are_not_read(tmp_path):
    from neuroexplain.collecting.collector import Collector
    from neuroexplain.subject.load import load_subject

    subject = load_subject(str(tiny_subject(tmp_path)))  # 330 rows
    n_tokens = len(tiny_tokenizer(bos=True))
    assert len(subject.unembedding) > n_tokens
    options = {
        "activation": "act",
        "sign": "positive",
        "top_k": 2,
        "positions": range(64, 97),
        "special_peaks": True,
    }
    collector = Collector(subject, (0,), **options, n_random=1, seed=0)
    collector.read(torch.randint(2, n_tokens, (2, 128)), torch.arange(2), np.zeros(2, np.int8))
    (layer,) = collector.finish(lambda segments, positions, starts: (segments, positions, segments))
    assert layer.vocabulary is not None
    assert layer.vocabulary.promoted_ids.max() < n_tokens
