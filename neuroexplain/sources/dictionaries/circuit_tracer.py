"""Transcoder sets of circuit-tracer: `config.yaml` and a file `layer_N.safetensors` for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._files import Folder, Weights, join
from neuroexplain.sources.dictionaries.base import Dictionary, Entry, JumpRelu, Relu, Rule, TopK

CONFIG = "config.yaml"
_FILE = re.compile(r"layer_(\d{1,4})\.safetensors")


class CircuitTracer:
    name = "circuit-tracer"
    files = f"{CONFIG} and layer_N.safetensors"

    def find(self, folder: Folder) -> Iterable[Entry]:
        for where in folder.folders_with(CONFIG):
            config = folder.yaml(join(where, CONFIG))
            if "feature_input_hook" not in config:
                continue
            self._check(config, folder.place(where))
            for name in folder.names:
                path = PurePosixPath(name)
                match = _FILE.fullmatch(path.name)
                if match is None or path.parent != PurePosixPath(where):
                    continue
                prefix = f"blocks.{int(match[1])}"
                yield Entry(
                    where=name,
                    kind="transcoder",
                    layer=int(match[1]),
                    site=f"{prefix}.{config['feature_input_hook']}",
                    written=f"{prefix}.{config.get('feature_output_hook', 'hook_mlp_out')}",
                    model=config.get("model_name"),
                )

    def read(self, folder: Folder, entry: Entry, input_scale: float | None) -> Dictionary:
        where = PurePosixPath(entry.where).parent.as_posix().removeprefix(".")
        config = folder.yaml(join(where, CONFIG))
        weights = folder.tensors(entry.where)
        skip = weights.find("W_skip")
        return Dictionary(
            encoder=weights.take("W_enc"),
            bias=weights.take("b_enc"),
            rule=_rule(config, weights),
            write_vectors=weights.take("W_dec"),
            output_bias=weights.take("b_dec"),
            skip=None if skip is None else skip.T,
            zeroes_first=True,
        )

    def _check(self, config: Mapping[str, Any], place: str) -> None:
        kind = config.get("model_kind", "transcoder_set")
        if kind != "transcoder_set":
            raise NeuroexplainError(
                f"{place} is a {kind}, which is not read: its latents write to many layers. Take a set of "
                "transcoders of single layers (transcoder_set)."
            )
        if config.get("transcoders"):
            raise NeuroexplainError(
                f"{place} names transcoders elsewhere, such as {config['transcoders'][0]}. Give the folder "
                "or repository that holds them."
            )


def _rule(config: Mapping[str, Any], weights: Weights) -> Rule:
    threshold = weights.find("activation_function.threshold")
    if threshold is not None:
        return JumpRelu(threshold.flatten())
    k = weights.find("k")
    if k is not None or config.get("activation") == "topk":
        return TopK(int(weights.take("k") if k is not None else config["k"]))
    return Relu()


FORMAT = CircuitTracer()
