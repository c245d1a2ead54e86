"""Stream texts from files or a hub data set, through `datasets`."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neuroexplain.errors import NeuroexplainError

BUILDERS = {".txt": "text", ".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet"}
SHUFFLE_BUFFER = 10_000  # documents of a streamed data set that are shuffled at a time


def find_files(names: Sequence[str]) -> list[Path] | None:
    """The local files that names and globs stand for, sorted within each; None where the one name can only be a hub data set.

    Raises NeuroexplainError for a file that is not there, cannot be read, is empty or is of a kind that is not read.
    """
    looks_local = [
        name
        for name in names
        if glob.has_magic(name) or Path(name).exists() or _builder(Path(name)) is not None
    ]
    if not looks_local and len(names) == 1 and not names[0].startswith((".", "/", "~")):
        return None
    found: list[Path] = []
    for name in names:
        path = Path(name)
        matches = (
            sorted(Path(match) for match in glob.glob(name, recursive=True))
            if glob.has_magic(name)
            else [path]
        )
        if path.is_dir():
            matches = sorted(
                file for file in path.rglob("*") if file.is_file() and _builder(file) is not None
            )
        if not matches or not matches[0].exists():
            raise NeuroexplainError(
                f"There is no file {name}. Give .txt, .jsonl, .jsonl.gz or .parquet files, a glob or a folder."
            )
        found += matches
    for file in found:
        if file.is_dir() or _builder(file) is None:
            raise NeuroexplainError(
                f"Cannot read {file}: a text is a .txt, .jsonl, .jsonl.gz or .parquet file."
            )
        try:
            with file.open("rb") as opened:
                if not opened.read(1):
                    raise NeuroexplainError(f"{file} is empty.")
        except OSError as error:
            raise NeuroexplainError(f"Cannot read {file}: {error.strerror}.") from error
    return found


def read_documents(
    names: Sequence[str], config: str | None, split: str, text_column: str, shuffle_seed: int | None
) -> Iterator[str]:
    """The corpus's texts in order; a .txt file is one document. Hub data sets are streamed, and shuffled with a seed.

    Raises NeuroexplainError for what cannot be read, and for a missing text column, naming the columns that are there.
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
    return BUILDERS.get("".join(path.suffixes[-2:]).lower()) or BUILDERS.get(path.suffix.lower())


def _open_file(file: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(_builder(file), data_files=[str(file)], split="train", streaming=True)


def _open_hub(name: str, config: str | None, split: str, shuffle_seed: int | None) -> Any:
    from datasets import load_dataset

    try:
        found = load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise NeuroexplainError(
            f"Cannot load the data set {name!r} (configuration {config}, split {split}): {error}\n"
            "A local corpus is named by its files:  --dataset 'texts/*.jsonl'"
        ) from error
    return found if shuffle_seed is None else found.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER)


def _texts(open_rows: Callable[[], Any], name: str, text_column: str) -> Iterator[str]:
    import zlib

    import datasets
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # what is wrong is said once, by us
    try:
        for number, row in enumerate(open_rows()):
            if text_column not in row:
                raise NeuroexplainError(
                    f"{name} has no column {text_column!r}; it has {', '.join(map(str, row)) or 'none'}. "
                    "Name the one that holds the text:  --text-column NAME"
                )
            text = row[text_column]
            if not isinstance(text, str):
                raise NeuroexplainError(
                    f"{name}, row {number}: column {text_column!r} holds {type(text).__name__}, not text."
                )
            yield text
    except (DatasetGenerationError, ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
        raise NeuroexplainError(f"Cannot read {name}: {error}") from error
