"""The texts of a corpus, streamed from files or a hub data set."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neuroexplain.errors import NeuroexplainError

BUILDERS = {".txt": "text", ".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet"}
SHUFFLE_BUFFER = 10_000  # documents from which the next is drawn while a data set is streamed


def find_files(names: Sequence[str]) -> list[Path] | None:
    """The local files of names, globs and folders, in the order given and sorted within each.

    None for a single name that can only be a hub data set. Raises NeuroexplainError for a file that does not
    exist, cannot be read, is empty or is of a kind that is not read.
    """
    looks_local = any(
        glob.has_magic(name) or Path(name).exists() or _builder(Path(name)) is not None for name in names
    )
    if not looks_local and len(names) == 1 and not names[0].startswith((".", "/", "~")):
        return None
    files = [file for name in names for file in _matching_files(name)]
    for file in files:
        _check_readable(file)
    return files


def _matching_files(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _builder(file) is not None)
    elif glob.has_magic(name):
        files = sorted(Path(match) for match in glob.glob(name, recursive=True))
    else:
        files = [path]
    if not files or not files[0].exists():
        raise NeuroexplainError(
            f"There is no file {name}. Give .txt, .jsonl, .jsonl.gz or .parquet files, a glob or a folder."
        )
    return files


def _check_readable(file: Path) -> None:
    if file.is_dir() or _builder(file) is None:
        raise NeuroexplainError(
            f"Cannot read {file}: texts are read from .txt, .jsonl, .jsonl.gz and .parquet files."
        )
    try:
        with file.open("rb") as opened:
            is_empty = not opened.read(1)
    except OSError as error:
        raise NeuroexplainError(f"Cannot read {file}: {error.strerror}.") from error
    if is_empty:
        raise NeuroexplainError(f"{file} is empty.")


def read_documents(
    names: Sequence[str], config: str | None, split: str, text_column: str, shuffle_seed: int | None
) -> Iterator[str]:
    """The texts in order; a .txt file is one document.

    A hub data set is streamed, and shuffled if there is a seed. Raises NeuroexplainError for a file or data
    set that cannot be read, and for a missing text column, naming the existing columns.
    """
    files = find_files(names)
    if files is None:
        yield from _texts(partial(_open_hub, names[0], config, split, shuffle_seed), names[0], text_column)
        return
    for file in files:
        if file.suffix == ".txt":
            yield file.read_bytes().decode("utf-8", "replace")
        else:
            yield from _texts(partial(_open_file, file), str(file), text_column)


def _builder(path: Path) -> str | None:
    """What `datasets` calls the kind of file; None for a kind that is not read."""
    return BUILDERS.get("".join(path.suffixes[-2:]).lower()) or BUILDERS.get(path.suffix.lower())


def _open_file(file: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(_builder(file), data_files=[str(file)], split="train", streaming=True)


def _open_hub(name: str, config: str | None, split: str, shuffle_seed: int | None) -> Any:
    from datasets import load_dataset

    try:
        data_set = load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise NeuroexplainError(
            f"Cannot load the data set {name!r} (configuration {config}, split {split}): {error}\n"
            "For a local corpus give its files:  --dataset 'texts/*.jsonl'"
        ) from error
    if shuffle_seed is None:
        return data_set
    return data_set.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER)


def _texts(open_rows: Callable[[], Any], name: str, text_column: str) -> Iterator[str]:
    """The text column of all rows; `name` is for error messages."""
    import zlib

    import datasets
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # our error message is enough
    try:
        for number, row in enumerate(open_rows()):
            if text_column not in row:
                columns = ", ".join(map(str, row)) or "no column"
                raise NeuroexplainError(
                    f"{name} has no column {text_column!r}; it has {columns}. "
                    "Give the column that holds the text:  --text-column NAME"
                )
            text = row[text_column]
            if not isinstance(text, str):
                raise NeuroexplainError(
                    f"{name}, row {number}: column {text_column!r} holds {type(text).__name__}, not text."
                )
            yield text
    except (DatasetGenerationError, ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
        raise NeuroexplainError(f"Cannot read {name}: {error}") from error
