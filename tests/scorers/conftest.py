"""An engine whose model is tiny, for simulators."""

import pytest

from neuroexplain.llm.local import LocalEngine
from tests.fakes import tiny_subject


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def engine(request, tmp_path_factory):
    return LocalEngine(str(tiny_subject(tmp_path_factory.mktemp("model"), "llama", bos=request.param)))
