"""The files of dictionaries: those of a local folder or of a hub repository, and how they are read."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError

if TYPE_CHECKING:
    from torch import Tensor

# What reading a file raises that is no such file, or is cut off.
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile)
MOST_LEVELS = 6  # of folders below the named one that are looked through
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Folder:
    """The files below a local folder or in a hub repository, of which a pattern chooses."""

    root: str  # the local folder, or the hub repository
    is_local: bool
    names: tuple[str, ...]  # of the chosen files, from the root, with slashes, in order
    pattern: str = ""  # what chose them; empty: all

    def path(self, name: str) -> Path:
        """The file of a name, downloaded first if it is on the hub."""
        return Path(self.root, name) if self.is_local else _download(self.root, name)

    def folders_with(self, *files: str) -> Iterator[str]:
        """The folders that hold all of these files, from the root; empty for the root itself."""
        held = set(self.names)
        for name in self.names:
            if PurePosixPath(name).match(files[0]):
                folder = name.removesuffix(files[0]).rstrip("/")
                if all(join(folder, file) in held for file in files):
                    yield folder

    def place(self, where: str) -> str:
        """The whole name of a folder or file, with those above it; for what names alone tell."""
        root = Path(self.root).resolve().as_posix() if self.is_local else self.root
        return join(root, where)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object. Raises NeuroexplainError if it cannot be read."""
        return self._mapping(name, json.loads, "JSON")

    def yaml(self, name: str) -> dict[str, Any]:
        """A YAML mapping. Raises NeuroexplainError if it cannot be read."""
        return self._mapping(name, _parse_yaml, "YAML")

    def tensors(self, name: str) -> Weights:
        """The tensors of a .safetensors, .npz or .pt file, on the CPU. Raises NeuroexplainError."""
        path = self.path(name)
        return Weights(str(path), read_tensors(path))

    def _mapping(self, name: str, parse: Any, language: str) -> dict[str, Any]:
        path = self.path(name)
        try:
            value = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(path, error) from error
        if not isinstance(value, dict):
            raise NeuroexplainError(f"{path} holds no {language} object, and is to be a configuration.")
        return value


@dataclass(frozen=True)
class Weights:
    """The tensors of one file by name."""

    file: str
    tensors: Mapping[str, Tensor] = field(repr=False)

    def take(self, *names: str) -> Tensor:
        """The tensor of the first of the names that there is. Raises NeuroexplainError if there is none."""
        tensor = self.find(*names)
        if tensor is None:
            held = ", ".join(f"{name} {list(t.shape)}" for name, t in sorted(self.tensors.items())) or "none"
            raise NeuroexplainError(
                f"{self.file} holds no tensor {' or '.join(names)}. It holds: {held}. It is of another "
                "format or version than its folder tells."
            )
        return tensor

    def find(self, *names: str) -> Tensor | None:
        """The tensor of the first of the names that there is, or None."""
        return next((self.tensors[name] for name in names if name in self.tensors), None)


def open_folder(name: str) -> Folder:
    """The files of a folder, of folders that a glob chooses, or of a hub repository.

    Raises NeuroexplainError if it does not exist or cannot be reached.
    """
    parts = Path(name).expanduser().parts
    n_fixed = next((n for n, part in enumerate(parts) if _GLOB.search(part)), len(parts))
    root, pattern = Path(*parts[:n_fixed]), "/".join(parts[n_fixed:])
    if root.is_dir():
        names = tuple(sorted(_walk(root)))
        return Folder(str(root), True, _choose(names, pattern), pattern)
    if name.startswith((".", "/", "~")) or name.count("/") < 1 or root.exists():
        kind = "is a file" if root.is_file() else "does not exist"
        raise NeuroexplainError(
            f"--dictionary {name}: {root} {kind}. Give the folder of a dictionary or of several, or a name "
            "on the hub like OWNER/NAME or OWNER/NAME/FOLDER."
        )
    repository, pattern = "/".join(parts[:2]), "/".join(parts[2:])
    return _open_repository(repository, pattern)


def join(folder: str, name: str) -> str:
    """A name below a folder; each may be empty."""
    return "/".join(filter(None, (folder, name)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .npz or .pt file. No code in the file is run.

    Raises NeuroexplainError if the file cannot be read, or holds anything but tensors by name.
    """
    import torch
    from safetensors import SafetensorError

    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    try:
        values = readers.get(path.suffix, _read_pickle)(path)
    except pickle.UnpicklingError as error:
        raise NeuroexplainError(
            f"{path} holds more than tensors, or is damaged: {_first_line(error)}\nA pickle can run code "
            "when it is opened, so only tensors are read from it. Save those alone:  "
            "torch.save(dictionary.state_dict(), 'ae.pt')"
        ) from error
    except (*UNREADABLE, SafetensorError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise NeuroexplainError(
            f"{path} holds no tensors by name, but {type(values).__name__}. Save the dictionary's state:  "
            "torch.save(dictionary.state_dict(), 'ae.pt')"
        )
    return values


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_npz(path: Path) -> Any:
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_pickle(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _unreadable(path: Path, error: Exception) -> NeuroexplainError:
    return NeuroexplainError(
        f"Cannot read {path}: {_first_line(error)}\nIt is damaged, or was not copied or downloaded to its "
        "end: get it again."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _walk(root: Path) -> Iterator[str]:
    """The names of all files some levels below the folder."""
    for folder, below, files in os.walk(root):
        level = len(Path(folder).relative_to(root).parts)
        if level >= MOST_LEVELS:
            below.clear()
        for file in files:
            yield Path(folder, file).relative_to(root).as_posix()


def _choose(names: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    """The names of which the pattern matches a folder above, or the whole."""
    globs = tuple(filter(None, pattern.split("/")))
    return tuple(
        name
        for name in names
        if len(parts := name.split("/")) >= len(globs)
        and all(fnmatchcase(part, glob) for part, glob in zip(parts, globs, strict=False))
    )


def _open_repository(repository: str, pattern: str) -> Folder:
    """The files of a hub repository; without a network, what of it has been downloaded before."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = tuple(sorted(list_repo_files(repository)))
        return Folder(repository, False, _choose(names, pattern), pattern)
    except _hub_errors() as error:
        try:
            root = Path(snapshot_download(repository, local_files_only=True))
        except (OSError, ValueError):
            raise NeuroexplainError(
                f"--dictionary {join(repository, pattern)}: there is no such folder here, and {repository} "
                f"on the hub cannot be read: {_first_line(error)}"
            ) from error
        return Folder(str(root), True, _choose(tuple(sorted(_walk(root))), pattern), pattern)


def _download(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except _hub_errors() as error:
        raise NeuroexplainError(f"Cannot download {name} of {repository}: {_first_line(error)}") from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its HTTP library, another in each version, has errors of its own."""
    from huggingface_hub import get_session

    library = import_module(type(get_session()).__module__.partition(".")[0])
    return (OSError, ValueError, library.HTTPError)
