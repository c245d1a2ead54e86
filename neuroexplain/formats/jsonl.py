"""One line for each unit: the JSON object that `show --json` prints."""

from __future__ import annotations

import gzip
import json
from collections.abc import Generator, Sequence
from pathlib import Path

from neuroexplain.as_json import unit_json
from neuroexplain.formats._whole_folder import whole_folder
from neuroexplain.formats.base import Format
from neuroexplain.lookup import load_page
from neuroexplain.runs import Run
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.engine import Store
from neuroexplain.units import UnitId


def export_jsonl(store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
    """Write neurons.jsonl.gz into the folder, one line for each unit, in the given order.

    The folder appears when it is complete. Raises NeuroexplainError if it exists or cannot be written.
    """
    with (
        whole_folder(folder) as partial,
        gzip.open(partial / "neurons.jsonl.gz", "wb", compresslevel=5) as file,
    ):
        for done, unit in enumerate(units, 1):
            line = json.dumps(unit_json(load_page(store, run, unit)), ensure_ascii=True, allow_nan=False)
            file.write(line.encode() + b"\n")
            yield Progress("exporting", done, len(units), "neurons")


class Jsonl(Format):
    name = "jsonl"
    about = "one JSON object a line, as show --json prints it"

    def write(self, store: Store, run: Run, units: Sequence[UnitId], folder: Path) -> Generator[Progress]:
        return export_jsonl(store, run, units, folder)


FORMAT = Jsonl()
