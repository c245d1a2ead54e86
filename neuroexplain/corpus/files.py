"""Which local files a corpus consists of, and how each is read: by its ending and its first bytes."""

from __future__ import annotations

import codecs
import glob
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from neuroexplain.errors import NeuroexplainError

TEXT = "text"  # the kind of a file that is one document
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # ending -> the builder of `datasets`, and its options
    ".txt": (TEXT, {}),
    ".text": (TEXT, {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
ENDINGS = ".txt, .json, .jsonl, .ndjson, .csv, .tsv, .parquet and .arrow, also with .gz, .bz2, .xz or .zst"
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
ENCODINGS = {  # by the mark that a file begins with; the longer marks come first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
POINTER = b"version https://git-lfs.github.com"  # the first bytes of a file that Git LFS did not fetch


@dataclass(frozen=True)
class FileKind:
    """How a file is read."""

    builder: str  # TEXT, or what `datasets` calls it
    options: Mapping[str, Any] = field(default_factory=dict)
    compression: str | None = None  # its ending, like `.gz`


def find_kind(file: Path) -> FileKind | None:
    """The kind that the file's ending names, in upper or lower case; None for one that is not read."""
    endings = [ending.lower() for ending in file.suffixes]
    compression = endings.pop() if endings and endings[-1] in COMPRESSED else None
    if not endings or endings[-1] not in KINDS:
        return None
    return FileKind(*KINDS[endings[-1]], compression)


def find_files(names: Sequence[str], split: str = "train") -> list[Path] | None:
    """The local files of names, globs and folders, in the order given and sorted within each.

    None for a single name that can only be a hub data set. Of a folder that `save_to_disk` wrote, the files
    of the split. Raises NeuroexplainError for a file that does not exist, cannot be read, is empty or is of a
    kind that is not read.
    """
    looks_local = any(
        glob.has_magic(name) or Path(name).exists() or find_kind(Path(name)) is not None for name in names
    )
    if not looks_local and len(names) == 1 and not names[0].startswith((".", "/", "~")):
        return None
    files = [file for name in names for file in _matching_files(name, split)]
    for file in files:
        _check_readable(file)
    return files


def left_out(names: Sequence[str]) -> list[Path]:
    """The files of the named folders that are not read: hidden ones, metadata, and other kinds."""
    folders = [Path(name) for name in names if Path(name).is_dir() and not _is_saved(Path(name))]
    return [
        file
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file not in _files_of_folder(folder)
    ]


def open_decompressed(file: Path) -> IO[bytes]:
    """The file's bytes, decompressed by its ending."""
    import bz2
    import gzip
    import lzma

    import zstandard

    kind = find_kind(file)
    openers: Mapping[str | None, Callable[[Path, str], Any]] = {
        None: lambda path, mode: path.open(mode),
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": zstandard.open,
    }
    opened: IO[bytes] = openers[None if kind is None else kind.compression](file, "rb")
    return opened


def find_encoding(first_bytes: bytes) -> str | None:
    """The encoding that a byte order mark names; None without one."""
    return next((name for mark, name in ENCODINGS.items() if first_bytes.startswith(mark)), None)


def _matching_files(name: str, split: str) -> list[Path]:
    path = Path(name)
    if path.is_dir() and _is_saved(path):
        return _saved_files(path, split)
    if path.is_dir():
        files = _files_of_folder(path)
    elif glob.has_magic(name):
        files = sorted(Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file())
    else:
        files = [path]
    if not files or not files[0].exists():
        raise NeuroexplainError(f"There is no file {name}. Give files, a glob or a folder of {ENDINGS}.")
    return files


def _files_of_folder(folder: Path) -> list[Path]:
    """The files with text. A .json beside files of another kind is metadata, as in copies of hub data
    sets.
    """
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and find_kind(file) is not None and not _is_hidden(file.relative_to(folder))
    ]
    files = [file for file in files if file.name not in METADATA]
    others = [file for file in files if ".json" not in file.suffixes]
    return others or files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of the library `datasets` wrote the folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved_files(folder: Path, split: str) -> list[Path]:
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if split not in splits:
                raise NeuroexplainError(
                    f"{folder} has no split {split!r}; it has {', '.join(splits)}. "
                    f"Name one of them:  --split {splits[0]}"
                )
            folder = folder / split
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [folder / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise NeuroexplainError(f"Cannot read {folder} as a saved data set: {error!r}.") from error


def _check_readable(file: Path) -> None:
    if file.is_dir() or find_kind(file) is None:
        raise NeuroexplainError(f"Cannot read {file}: texts are read from {ENDINGS}.")
    try:
        with file.open("rb") as opened:
            beginning = opened.read(len(POINTER))
    except OSError as error:
        raise NeuroexplainError(f"Cannot read {file}: {error.strerror}.") from error
    if not beginning:
        raise NeuroexplainError(f"{file} is empty.")
    if beginning == POINTER:
        raise NeuroexplainError(f"{file} is a pointer of Git LFS, not the data. Fetch it:  git lfs pull")
