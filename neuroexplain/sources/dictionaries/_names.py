"""What names of folders, hooks and modules tell: the layer."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|[./_])(?:layers?|blocks|h)[._](\d{1,4})(?![\d])")


def layer_in(name: str) -> int | None:
    """The layer's number in `blocks.3.hook_resid_post`, `layers.3.mlp` or `layer_3/width_16k`; or None."""
    numbers = _LAYER.findall(name)
    return int(numbers[-1]) if numbers else None
