"""One forward pass -> every layer's activations, handed over during the pass and never kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.model import Subject
from neuroexplain.units import Source

Receive = Callable[[int, Float[Tensor, "batch seq d_in"]], None]


class _Enough(Exception):
    """Raised after the last layer that is needed, so that the rest of the pass is not run."""


def capture_activations(
    subject: Subject, token_ids: Int[Tensor, "batch seq"], sources: Mapping[int, Source], receive: Receive
) -> None:
    """Run the subject on a batch of segments and call `receive(layer, values)` for each layer, in order.

    `values` enters or leaves the module of the layer's source: [batch, seq, d_in] in the subject's dtype.
    Nothing writes into it later. The pass ends after the last layer of `sources`; the head is never run.
    Raises NeuroexplainError if a module is unknown or missing.
    """
    last = max(sources)
    handles = []

    def pass_on(layer: int, values: Any) -> None:
        values = (
            values[0] if isinstance(values, tuple) else values
        )  # some layers return more than hidden states
        receive(layer, values.reshape(*token_ids.shape, -1))
        if layer == last:
            raise _Enough

    for layer, source in sources.items():
        if source.module is None:
            raise NeuroexplainError(
                f"It is unknown where in the model layer {layer} was read: the data was imported."
            )
        module = subject.module(source.module)
        if source.side == "output":

            def after(module: Any, args: Any, output: Any, layer: int = layer) -> None:
                pass_on(layer, output)

            handles.append(module.register_forward_hook(after))
        else:

            def before(module: Any, args: tuple[Any, ...], layer: int = layer) -> None:
                pass_on(layer, args[0])

            handles.append(module.register_forward_pre_hook(before))
    try:
        with torch.inference_mode():
            subject.model(token_ids, use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
