"""One JSON object a line and neuron, as `show --json` prints it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Generator, Sequence
from pathlib import Path

from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format
from neuroexplain.formatting import show_json
from neuroexplain.lookup import load_page
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.units import UnitId


def export_jsonl(store: Store, run: Run, neurons: Sequence[UnitId], folder: Path) -> Generator[Progress]:
    """Write folder/neurons.jsonl.gz, a line a neuron, in order. The folder appears when it is whole."""
    with (
        whole_folder(folder) as partial,
        gzip.open(partial / "neurons.jsonl.gz", "wb", compresslevel=5) as file,
    ):
        for done, neuron in enumerate(neurons, 1):
            line = json.dumps(show_json(load_page(store, run, neuron)), ensure_ascii=True, allow_nan=False)
            file.write(line.encode() + b"\n")
            yield Progress("exporting", done, len(neurons), "neurons")


class Jsonl(Format):
    name = "jsonl"
    about = "one JSON object a line, as show --json prints it"

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_jsonl(store, run, units, folder)


FORMAT = Jsonl()
