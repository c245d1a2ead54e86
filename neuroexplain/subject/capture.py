"""One forward pass -> every layer's activations, handed over as the pass goes and never kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuroexplain.subject.load import Subject

Receive = Callable[[int, Float[Tensor, "batch seq d_mlp"]], None]


class _Enough(Exception):
    """Raised at the last site that is needed: the rest of the pass is not run."""


def capture_activations(
    subject: Subject, token_ids: Int[Tensor, "batch seq"], layers: Sequence[int], activation: str, receive: Receive
) -> None:
    """Run the subject on a batch of segments and call `receive(layer, acts)` for each layer, in order.

    acts is [batch, seq, d_mlp] in the subject's dtype; nothing writes into it later. `act` is the activation module's output,
    `post` the down-projection's input. The pass ends after the last layer; the head is never run.
    """
    last = max(layers)
    handles = []

    def pass_on(layer: int, acts: Tensor) -> None:
        receive(layer, acts.view(*token_ids.shape, -1))
        if layer == last:
            raise _Enough

    for layer in layers:
        site = subject.site(layer, activation)
        if activation == "act":

            def after(module: Any, args: Any, output: Tensor, layer: int = layer) -> None:
                pass_on(layer, output)

            handles.append(site.register_forward_hook(after))
        else:

            def before(module: Any, args: tuple[Tensor, ...], layer: int = layer) -> None:
                pass_on(layer, args[0])

            handles.append(site.register_forward_pre_hook(before))
    try:
        with torch.inference_mode():
            subject.model(token_ids, use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
