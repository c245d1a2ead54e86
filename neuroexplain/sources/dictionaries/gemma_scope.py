"""Gemma Scope 1: `layer_N/width_W/average_l0_K/params.npz`. Only names tell what it reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from neuroexplain.sources.dictionaries._files import Folder, join
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import Dictionary, Entry, JumpRelu

WEIGHTS = "params.npz"
# Of the release's part: what is read, and what is predicted of it.
SITES = {
    "res": ("hook_resid_post", None),
    "mlp": ("hook_mlp_out", None),
    "att": ("attn.hook_z", None),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
_RELEASE = re.compile(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)\b")
_L0 = re.compile(r"average_l0_(\d+)")


class GemmaScope:
    name = "Gemma Scope"
    files = WEIGHTS

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(WEIGHTS):
            place = folder.place(where)
            release, layer, l0 = _RELEASE.search(place), layer_in(place), _L0.search(place)
            site = written = model = None
            if release is not None:
                size, tuning, part = release.groups()
                site, written = (None if hook is None else f"blocks.{layer}.{hook}" for hook in SITES[part])
                model = f"google/gemma-2-{size}" + ("-it" if tuning == "it" else "")
            yield Entry(
                where=where,
                kind="sae" if written is None else "transcoder",
                layer=layer,
                site=None if layer is None else site,
                written=written,
                model=model,
                l0=None if l0 is None else float(l0[1]),
            )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        weights = folder.tensors(join(entry.where, WEIGHTS))
        write_vectors = weights.take("W_dec")
        factor = weights.find("scaling_factor")
        return Dictionary(
            encoder=weights.take("W_enc").T,
            bias=weights.take("b_enc"),
            rule=JumpRelu(weights.take("threshold")),
            write_vectors=write_vectors if factor is None else write_vectors * factor[:, None],
            output_bias=weights.take("b_dec"),
        )


FORMAT = GemmaScope()
