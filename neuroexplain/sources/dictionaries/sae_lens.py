"""SAELens: `cfg.json` and `sae_weights.safetensors`, of all versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._files import Folder, Weights, join
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import (
    Dictionary,
    Entry,
    Gated,
    JumpRelu,
    Norm,
    Relu,
    Rule,
    TopK,
)

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAES = ("standard", "gated", "jumprelu", "topk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
NORMS: Mapping[str, Norm] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
BY_FACTOR = "expected_average_only_in"  # the input times a number that is not always in the folder


class SaeLens:
    name = "SAELens"
    files = f"{CONFIG} and {WEIGHTS}"

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(CONFIG, WEIGHTS):
            config = _flat(folder.json(join(where, CONFIG)))
            site = config.get("hook_name")
            yield Entry(
                where=where,
                kind="transcoder" if "transcoder" in _architecture(config) else "sae",
                layer=layer_in(site) if isinstance(site, str) else None,
                site=site,
                written=config.get("hook_name_out"),
                model=config.get("model_name"),
            )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        place = folder.place(entry.where)
        config = _flat(folder.json(join(entry.where, CONFIG)))
        _check(config, place)
        weights = folder.tensors(join(entry.where, WEIGHTS))
        encoder, write_vectors, b_dec = weights.take("W_enc").T, weights.take("W_dec"), weights.take("b_dec")
        rule = _rule(config, weights, place)
        bias = encoder.new_zeros(len(encoder)) if isinstance(rule, Gated) else weights.take("b_enc")
        if config.get("rescale_acts_by_decoder_norm") and isinstance(rule, TopK):
            # The k largest of z times the decoder's norms: as if these were in the encoder.
            norms = write_vectors.float().norm(dim=1)
            encoder, bias = encoder.float() * norms[:, None], bias.float() * norms
            write_vectors = write_vectors.float() / norms[:, None]
        finetuned = weights.find("finetuning_scaling_factor")
        if finetuned is not None:
            write_vectors = write_vectors * finetuned[:, None]
        skip = weights.take("W_skip").T if "skip" in _architecture(config) else None
        is_subtracted = entry.kind == "sae" and config.get("apply_b_dec_to_input", True)
        return Dictionary(
            encoder=encoder,
            bias=bias,
            rule=rule,
            write_vectors=write_vectors,
            output_bias=b_dec,
            pre_bias=b_dec if is_subtracted else None,
            norm=_norm(config, input_scale, place),
            skip=skip,
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of all versions in one mapping, under their names of today."""
    metadata = config.get("metadata")
    flat = {**config, **(metadata if isinstance(metadata, dict) else {})}
    if "hook_point" in flat:
        flat.setdefault("hook_name", flat["hook_point"])
    if flat.get("activation_fn_str", flat.get("activation_fn")) == "topk":
        options = flat.get("activation_fn_kwargs") or {}
        flat["architecture"], flat["k"] = "topk", flat.get("k", options.get("k"))
    return flat


def _architecture(config: Mapping[str, Any]) -> str:
    return str(config.get("architecture") or "standard")


def _check(config: Mapping[str, Any], place: str) -> None:
    architecture = _architecture(config)
    if architecture not in (*SAES, *TRANSCODERS):
        raise NeuroexplainError(
            f"{place} has the architecture {architecture!r}, which is not read. There is "
            f"{', '.join((*SAES, *TRANSCODERS))}."
        )
    function = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if function not in ("relu", "topk", None):
        raise NeuroexplainError(
            f"{place} has the activation function {function!r}, which is not read: there is relu and topk."
        )
    head = config.get("hook_head_index", config.get("hook_point_head_index"))
    if head is not None:
        raise NeuroexplainError(f"{place} reads head {head} alone. Only all heads of a layer are read.")


def _rule(config: Mapping[str, Any], weights: Weights, place: str) -> Rule:
    architecture = _architecture(config)
    if architecture == "gated":
        return Gated(weights.take("b_gate"), weights.take("r_mag").exp(), weights.take("b_mag"))
    if architecture == "topk":
        k = config.get("k")
        if not isinstance(k, int) or isinstance(k, bool):
            raise NeuroexplainError(f"{place} keeps the k largest latents, and {CONFIG} does not tell k.")
        return TopK(k)
    return JumpRelu(_threshold(weights)) if "jumprelu" in architecture else Relu()


def _threshold(weights: Weights) -> Tensor:
    logarithms = weights.find("log_threshold")
    return weights.take("threshold") if logarithms is None else logarithms.exp()


def _norm(config: Mapping[str, Any], input_scale: float | None, place: str) -> Norm:
    """How the input is normalised. Raises NeuroexplainError if that takes a factor that was not given."""
    name = config.get("normalize_activations")
    if name is True:  # in the first versions
        name = BY_FACTOR
    if name == BY_FACTOR:
        if input_scale is None:
            raise NeuroexplainError(
                f"{place} was trained on activations times a factor ({BY_FACTOR}), which its folder does not "
                "tell. Without it every latent would be wrong. It is the square root of d_in over the mean "
                "norm of what it reads:  --input-scale FACTOR"
            )
        return "none"
    if name in (None, False):
        name = "none"
    if name not in NORMS:
        raise NeuroexplainError(
            f"{place} normalises its input by {name!r}, which is not read. There is {', '.join(NORMS)}, "
            f"{BY_FACTOR}."
        )
    return NORMS[name]


FORMAT = SaeLens()
