"""One forward pass -> every layer's activations, handed over as the pass goes and never kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.errors import NeuroexplainError
from neuroexplain.subject.load import Subject
from neuroexplain.units import Source

Receive = Callable[[int, Float[Tensor, "batch seq d_in"]], None]


class _Enough(Exception):
    """Raised at the last site that is needed: the rest of the pass is not run."""


def capture_activations(
    subject: Subject, token_ids: Int[Tensor, "batch seq"], sources: Mapping[int, Source], receive: Receive
) -> None:
    """Run the subject on a batch of segments and call `receive(layer, values)` for each layer's source, in order.

    values is what goes into or comes out of the source's module, [batch, seq, d_in] in the subject's dtype; nothing writes into
    it later. The pass ends after the last layer; the head is never run. Raises NeuroexplainError where a module is missing.
    """
    last = max(sources)
    handles = []

    def pass_on(layer: int, values: Any) -> None:
        values = values[0] if isinstance(values, tuple) else values  # some layers give more than their output
        receive(layer, values.reshape(*token_ids.shape, -1))
        if layer == last:
            raise _Enough

    for layer, source in sources.items():
        if source.module is None:
            raise NeuroexplainError(f"Where layer {layer} is read is not known: its data was imported.")
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
