"""EleutherAI's sparsify: a folder a module, with `cfg.json` and `sae.safetensors`.

The folder is called like the module whose output an SAE reads, or whose input a transcoder reads and whose
output it predicts: `layers.3`, `layers.3.mlp`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._files import Folder, join
from neuroexplain.sources.dictionaries._names import layer_in
from neuroexplain.sources.dictionaries.base import Dictionary, Entry, GroupMax, Rule, TopK

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
RULES: dict[str, type[TopK] | type[GroupMax]] = {"topk": TopK, "groupmax": GroupMax}


class Sparsify:
    name = "sparsify"
    files = f"{CONFIG} and {WEIGHTS}"

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(CONFIG, WEIGHTS):
            config = folder.json(join(where, CONFIG))
            module = PurePosixPath(folder.place(where)).name
            layer, is_transcoder = layer_in(module), bool(config.get("transcode"))
            read, written = (None, None) if layer is None else (f"{module}.input", f"{module}.output")
            yield Entry(
                where=where,
                kind="transcoder" if is_transcoder else "sae",
                layer=layer,
                site=read if is_transcoder else written,
                written=written if is_transcoder else None,
                model=_find_model(folder, where),
            )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        place = folder.place(entry.where)
        config = folder.json(join(entry.where, CONFIG))
        weights = folder.tensors(join(entry.where, WEIGHTS))
        b_dec, skip = weights.take("b_dec"), weights.find("W_skip")
        return Dictionary(
            encoder=weights.take("encoder.weight"),
            bias=weights.take("encoder.bias"),
            rule=_rule(config, place),
            write_vectors=weights.take("W_dec"),
            output_bias=b_dec,
            pre_bias=b_dec if entry.kind == "sae" else None,
            skip=None if skip is None else skip.T,
        )


def _rule(config: dict[str, object], place: str) -> Rule:
    name, k = config.get("activation", "topk"), config.get("k")
    if name not in RULES:
        raise NeuroexplainError(
            f"{place} has the activation {name!r}, which is not read. There is {', '.join(RULES)}."
        )
    if config.get("signed"):
        raise NeuroexplainError(
            f"{place} keeps the latents that are largest without their sign (signed), which is not read."
        )
    if not isinstance(k, int) or isinstance(k, bool):
        raise NeuroexplainError(f"{place} keeps k latents of each token, and {CONFIG} does not tell k.")
    return RULES[str(name)](k)


def _find_model(folder: Folder, where: str) -> str | None:
    """The model's name in the training's `config.json`, which lies beside the modules' folders."""
    beside = join(PurePosixPath(where).parent.as_posix().removeprefix("."), "config.json")
    if not where or beside not in folder.names:
        return None
    model = folder.json(beside).get("model")
    return model if isinstance(model, str) else None


FORMAT = Sparsify()
