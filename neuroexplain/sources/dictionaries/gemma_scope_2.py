"""Gemma Scope 2: `config.json`, which names modules of Transformers, and `params.safetensors`."""

from __future__ import annotations

from collections.abc import Iterable

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._files import Folder, join
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import Dictionary, Entry, JumpRelu

CONFIG, WEIGHTS = "config.json", "params.safetensors"
ARCHITECTURES = ("jump_relu", "jumprelu")


class GemmaScope2:
    name = "Gemma Scope 2"
    files = f"{CONFIG} and {WEIGHTS}"

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(CONFIG, WEIGHTS):
            config = folder.json(join(where, CONFIG))
            site, written = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
            is_transcoder = written not in (None, site)
            l0, model = config.get("l0"), config.get("model_name")
            yield Entry(
                where=where,
                kind="transcoder" if is_transcoder else "sae",
                layer=layer_in(site) if isinstance(site, str) else layer_in(folder.place(where)),
                site=site,
                written=written if is_transcoder else None,
                model=model.replace("gemma-v3", "gemma-3") if isinstance(model, str) else None,
                l0=float(l0) if isinstance(l0, int | float) else None,
            )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        place = folder.place(entry.where)
        architecture = folder.json(join(entry.where, CONFIG)).get("architecture")
        if architecture not in ARCHITECTURES:
            raise NeuroexplainError(
                f"{place} has the architecture {architecture!r}, which is not read. There is jump_relu."
            )
        weights = folder.tensors(join(entry.where, WEIGHTS))
        write_vectors = weights.take("w_dec")
        if write_vectors.ndim > 2:
            raise NeuroexplainError(
                f"{place} is a cross-layer transcoder, whose latents write to many layers: it is not read. "
                "Take the transcoders of single layers."
            )
        return Dictionary(
            encoder=weights.take("w_enc").T,
            bias=weights.take("b_enc"),
            rule=JumpRelu(weights.take("threshold")),
            write_vectors=write_vectors,
            output_bias=weights.take("b_dec"),
            skip=weights.find("affine_skip_connection"),
        )


FORMAT = GemmaScope2()
