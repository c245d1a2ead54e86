"""dictionary_learning: `ae.pt`, a pickle of tensors, and `config.json`, whose trainer names the class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._files import Folder, Weights, join
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import Dictionary, Entry, Gated, JumpRelu, Relu, Rule, TopK

CONFIG, WEIGHTS = "config.json", "ae.pt"
SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}
_SUBMODULE = re.compile(r"^(resid_post|mlp_out|attn_out)(?:_layer_\d+)?$")


class DictionaryLearning:
    name = "dictionary_learning"
    files = f"{CONFIG} and {WEIGHTS}"

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(WEIGHTS, CONFIG):
            trainer = _trainer(folder, where)
            submodule, layer = str(trainer.get("submodule_name")), trainer.get("layer")
            layer = layer if isinstance(layer, int) else layer_in(submodule)
            known = _SUBMODULE.match(submodule)
            yield Entry(
                where=where,
                kind="sae",
                layer=layer,
                site=None if known is None or layer is None else f"blocks.{layer}.{SITES[known[1]]}",
                model=trainer.get("lm_name"),
            )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        trainer, place = _trainer(folder, entry.where), folder.place(entry.where)
        name = str(trainer.get("dict_class"))
        if name not in CLASSES:
            raise NeuroexplainError(
                f"{place} is of the class {name!r}, which is not read. There is {', '.join(CLASSES)}."
            )
        weights = folder.tensors(join(entry.where, WEIGHTS))
        is_matrix = weights.find("W_enc") is not None  # else torch's linear modules
        encoder = weights.take("W_enc").T if is_matrix else weights.take("encoder.weight")
        rule_of, is_subtracted = CLASSES[name]
        b_dec = weights.take("b_dec", "bias", "decoder_bias", "decoder.bias")
        rule = rule_of(weights, trainer, len(encoder), place)
        return Dictionary(
            encoder=encoder,
            bias=encoder.new_zeros(len(encoder))
            if isinstance(rule, Gated)
            else weights.take("b_enc", "encoder.bias"),
            rule=rule,
            write_vectors=weights.take("W_dec") if is_matrix else weights.take("decoder.weight").T,
            output_bias=b_dec,
            pre_bias=b_dec if is_subtracted else None,
        )


def _trainer(folder: Folder, where: str) -> dict[str, Any]:
    trainer = folder.json(join(where, CONFIG)).get("trainer")
    if not isinstance(trainer, dict):
        raise NeuroexplainError(
            f"{folder.place(where)}: {CONFIG} has no trainer, which tells the class of {WEIGHTS}. Take the "
            "config.json that was written beside it."
        )
    return trainer


def _relu(weights: Weights, trainer: Mapping[str, Any], n: int, place: str) -> Rule:
    return Relu()


def _top_k(weights: Weights, trainer: Mapping[str, Any], n: int, place: str) -> Rule:
    """The threshold that is stored beside k is for another way of encoding."""
    stored = weights.find("k")
    k = trainer.get("k") if stored is None else int(stored)
    if not isinstance(k, int):
        raise NeuroexplainError(
            f"{place} keeps the k largest latents, and tells k neither in {CONFIG} nor in it."
        )
    return TopK(k)


def _threshold(weights: Weights, trainer: Mapping[str, Any], n: int, place: str) -> Rule:
    """One threshold for all latents, or one for each."""
    threshold = weights.take("threshold").float()
    return JumpRelu(threshold.expand(n) if threshold.ndim == 0 else threshold)


def _gated(weights: Weights, trainer: Mapping[str, Any], n: int, place: str) -> Rule:
    return Gated(weights.take("gate_bias"), weights.take("r_mag").exp(), weights.take("mag_bias"))


# Of each class the rule, and whether the decoder's bias is subtracted before encoding.
RuleOf = Callable[[Weights, Mapping[str, Any], int, str], Rule]
CLASSES: Mapping[str, tuple[RuleOf, bool]] = {
    "AutoEncoder": (_relu, True),
    "AutoEncoderNew": (_relu, False),
    "AutoEncoderTopK": (_top_k, True),
    "BatchTopKSAE": (_threshold, True),
    "MatryoshkaBatchTopKSAE": (_threshold, True),
    "JumpReluAutoEncoder": (_threshold, False),
    "GatedAutoEncoder": (_gated, True),
}
FORMAT = DictionaryLearning()
