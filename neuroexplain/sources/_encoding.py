"""Activations -> latents of a dictionary, some latents at a time, and back (pure).

All sums are float32, whatever the dtypes of model and file are. Rules that look at each latent alone are
encoded slice by slice. Of the others the first pass over the slices keeps each token's largest latents with
their numbers, [tokens, k], and the second hands these out in dense slices: all latents of a batch are never
in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from neuroexplain.runtime.tuning import LATENTS_AT_ONCE
from neuroexplain.sources.base import dense_slices
from neuroexplain.sources.dictionaries.base import Dictionary, Gated, GroupMax, JumpRelu, Relu, TopK


@dataclass(frozen=True)
class Prepared:
    """What was read, as the encoder takes it; and what undoes a norm: times `deviation`, plus `mean`."""

    inputs: Tensor  # [batch, seq, d_in] float32
    mean: Tensor | float
    deviation: Tensor | float


def latents_at_once(n_tokens: int) -> int:
    """How many latents make a slice of a batch of so many tokens."""
    return max(1, LATENTS_AT_ONCE // max(1, n_tokens))


def encode(dictionary: Dictionary, values: Tensor, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """The latents' activations in slices of about `at_once`, [batch, seq, slice] in the dtype of the values.

    values: what was read, [batch, seq, d_in].
    """
    inputs = prepare(dictionary, values).inputs
    rule = dictionary.rule
    if isinstance(rule, TopK):
        slices = dense_slices(*top_k(dictionary, inputs, rule.k, at_once), dictionary.width, at_once)
    elif isinstance(rule, GroupMax):
        slices = dense_slices(*group_max(dictionary, inputs, rule.k, at_once), dictionary.width, at_once)
    else:
        slices = each_alone(dictionary, inputs, at_once)
    for units, acts in slices:
        if dictionary.zeroes_first:
            acts[:, 0] = 0
        yield units, acts.to(values.dtype)


def prepare(dictionary: Dictionary, values: Tensor) -> Prepared:
    """Normalise, scale and shift what was read. Dividing by a norm of 0 gives values that are not finite."""
    inputs = values.float()
    mean: Tensor | float = 0.0
    deviation: Tensor | float = 1.0
    if dictionary.norm == "layer_norm":
        mean = inputs.mean(dim=-1, keepdim=True)
        deviation = (inputs - mean).std(dim=-1, keepdim=True)
        inputs = (inputs - mean) / (deviation + 1e-5)
    elif dictionary.norm == "constant_norm_rescale":
        deviation = inputs.norm(dim=-1, keepdim=True) / inputs.shape[-1] ** 0.5
        inputs = inputs / deviation
    if dictionary.scale != 1.0:
        inputs = inputs * dictionary.scale
    if dictionary.pre_bias is not None:
        inputs = inputs - dictionary.pre_bias.float()
    return Prepared(inputs, mean, deviation)


def before_rule(dictionary: Dictionary, inputs: Tensor, units: slice) -> Tensor:
    """z of some latents, [batch, seq, slice] float32."""
    return linear(inputs, dictionary.encoder[units].float(), dictionary.bias[units].float())


def each_alone(dictionary: Dictionary, inputs: Tensor, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Latents of a rule that looks at each alone, slice by slice."""
    rule = dictionary.rule
    for units in _slices(0, dictionary.width, at_once):
        z = before_rule(dictionary, inputs, units)
        if isinstance(rule, Gated):
            is_open = z + rule.gate_bias[units].float() > 0
            size = z.mul_(rule.magnitude_scale[units].float()).add_(rule.magnitude_bias[units].float())
            yield units, size.relu_().mul_(is_open)
        elif isinstance(rule, JumpRelu):
            # As relu(z) where z > threshold, in half the time; what is not a number stays so.
            threshold = rule.threshold[units].float().clamp(min=0)
            yield units, z.masked_fill_(z <= threshold, 0.0)
        else:
            assert isinstance(rule, Relu)
            yield units, z.relu_()


def top_k(dictionary: Dictionary, inputs: Tensor, k: int, at_once: int) -> tuple[Tensor, Tensor]:
    """(numbers, activations) of each token's k largest latents, [batch, seq, k]; 0 where they are below 0."""
    best = inputs.new_full((*inputs.shape[:-1], 0), -torch.inf)
    numbers = torch.zeros(best.shape, dtype=torch.int64, device=best.device)
    for units in _slices(0, dictionary.width, at_once):
        z = before_rule(dictionary, inputs, units)
        own = torch.arange(units.start, units.stop, device=z.device).expand_as(z)
        pool = [torch.cat(pair, dim=-1) for pair in zip((best, numbers), largest(z, own, k), strict=True)]
        best, numbers = largest(pool[0], pool[1], k)
    return numbers, best.relu_()


def largest(values: Tensor, numbers: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, and their numbers; of equal values above 0 the smaller numbers.

    Fewer than k are all kept. The order is any.
    """
    if values.shape[-1] <= k:
        return values, numbers
    best, places = values.topk(k, dim=-1, sorted=False)
    last = best.amin(dim=-1, keepdim=True)
    is_tied = ((values >= last).sum(dim=-1) > k) & (last[..., 0] > 0)
    chosen = numbers.gather(-1, places)
    if bool(is_tied.any()):
        tied, own = values[is_tied], numbers[is_tied]  # [n_tied, any]
        own, by_number = own.sort(dim=-1)
        tied, order = tied.gather(-1, by_number).sort(dim=-1, descending=True, stable=True)
        best[is_tied], chosen[is_tied] = tied[:, :k], own.gather(-1, order)[:, :k]
    return best, chosen


def group_max(dictionary: Dictionary, inputs: Tensor, k: int, at_once: int) -> tuple[Tensor, Tensor]:
    """(numbers, activations) of the largest latent of each of k groups, [batch, seq, k]; the first of equals.

    Slices are of whole groups, or of parts of one group.
    """
    size = dictionary.width // k
    step = max(1, at_once // size)  # groups
    parts = [_largest_of_groups(dictionary, inputs, groups, size, at_once) for groups in _slices(0, k, step)]
    numbers, best = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
    return numbers, best.relu_()


def _largest_of_groups(
    dictionary: Dictionary, inputs: Tensor, groups: slice, size: int, at_once: int
) -> tuple[Tensor, Tensor]:
    """`group_max` of some whole groups at once, or of one group in parts."""
    n = groups.stop - groups.start
    parts = []
    for units in _slices(groups.start * size, groups.stop * size, at_once):
        z = before_rule(dictionary, inputs, units)
        own, places = z.view(*z.shape[:-1], n, -1).max(dim=-1)  # the first of equal ones
        parts.append((own, places + torch.arange(n, device=z.device) * size + units.start))
    best, numbers = parts[0]
    for own, places in parts[1:]:
        is_more = own > best
        best, numbers = torch.where(is_more, own, best), torch.where(is_more, places, numbers)
    return numbers, best


def predict(dictionary: Dictionary, values: Tensor, at_once: int) -> Tensor:
    """What the dictionary makes of the values, [batch, seq, d_out] float32: of an SAE the values again."""
    prepared = prepare(dictionary, values)
    total: Tensor | float = 0.0
    for units, acts in encode(dictionary, values.float(), at_once):
        total = total + acts @ dictionary.write_vectors[units].to(acts.device).float()
    predicted = (total + dictionary.output_bias.float()) / dictionary.written_scale
    if dictionary.norm != "none" and predicted.shape[-1] == values.shape[-1]:
        predicted = predicted * prepared.deviation + prepared.mean
    if dictionary.skip is not None:
        predicted = predicted + values.float() @ dictionary.skip.float()
    return predicted


def _slices(start: int, stop: int, at_once: int) -> Iterator[slice]:
    for first in range(start, stop, at_once):
        yield slice(first, min(first + at_once, stop))
