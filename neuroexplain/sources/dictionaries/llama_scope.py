"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`.

Its input is multiplied by sqrt(d_model) over the mean norm of what it reads, and the threshold is one for all
latents, for z of the multiplied input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._files import Folder, join
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import Dictionary, Entry, JumpRelu

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"


class LlamaScope:
    name = "Llama Scope"
    files = f"{CONFIG} and {WEIGHTS}"

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(CONFIG, WEIGHTS):
            config = folder.json(join(where, CONFIG))
            site, written = config.get("hook_point_in"), config.get("hook_point_out")
            is_transcoder = written not in (None, site)
            yield Entry(
                where=where,
                kind="transcoder" if is_transcoder else "sae",
                layer=layer_in(site) if isinstance(site, str) else None,
                site=site,
                written=written if is_transcoder else None,
                model="meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in folder.place(where) else None,
            )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        place = folder.place(entry.where)
        config = folder.json(join(entry.where, CONFIG))
        if config.get("act_fn", "jumprelu") != "jumprelu":
            raise NeuroexplainError(
                f"{place} has the activation function {config['act_fn']!r}, which is not read. It reads "
                "jumprelu."
            )
        weights = folder.tensors(join(entry.where, WEIGHTS))
        encoder, b_dec = weights.take("encoder.weight"), weights.take("decoder.bias")
        scale = input_scale or _factor(config, "in", place)
        threshold = _number(config, "jump_relu_threshold", place)
        return Dictionary(
            encoder=encoder,
            bias=weights.take("encoder.bias"),
            rule=JumpRelu(encoder.new_full((len(encoder),), threshold).float()),
            write_vectors=weights.take("decoder.weight").T,
            output_bias=b_dec,
            pre_bias=b_dec if config.get("apply_decoder_bias_to_pre_encoder") else None,
            scale=scale,
            written_scale=scale if entry.kind == "sae" else _factor(config, "out", place),
        )


def _factor(config: Mapping[str, Any], side: str, place: str) -> float:
    norms = config.get("dataset_average_activation_norm")
    norm = norms.get(side) if isinstance(norms, dict) else None
    if not isinstance(norm, int | float) or norm <= 0:
        raise NeuroexplainError(
            f"{place} was trained on activations times a factor, and {CONFIG} does not tell the mean norm it "
            f"comes from (dataset_average_activation_norm.{side}). Without it every latent would be wrong:  "
            "--input-scale FACTOR"
        )
    return float(_number(config, "d_model", place) ** 0.5 / norm)


def _number(config: Mapping[str, Any], name: str, place: str) -> float:
    value = config.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise NeuroexplainError(f"{place}: {CONFIG} does not tell {name}, without which it cannot be read.")
    return float(value)


FORMAT = LlamaScope()
