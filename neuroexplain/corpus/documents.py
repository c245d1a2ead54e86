"""The texts of a corpus, streamed from files or a hub data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neuroexplain.corpus.files import TEXT, find_encoding, find_files, find_kind, open_decompressed
from neuroexplain.errors import NeuroexplainError

SHUFFLE_BUFFER = 10_000  # documents from which the next is drawn while a data set is streamed
CHAT_COLUMNS = ("messages", "conversations")  # read as chats where there is no column `text`
ROLES = {"human": "user", "gpt": "assistant"}  # names of roles in the form of ShareGPT
Chat = Sequence[Mapping[str, Any]]


@dataclass
class DocumentCounts:
    """How many documents were read, and what was skipped or replaced."""

    n_read: int = 0
    n_without_text: int = 0
    n_chats: int = 0
    n_undecodable: int = 0  # sequences of bytes that are not UTF-8, each replaced by U+FFFD

    def notes(self) -> list[str]:
        """What a person should know, a line each."""
        notes = []
        if self.n_without_text:
            notes.append(f"Skipped {self.n_without_text:,} rows without a text; {self.n_read:,} have one.")
        if self.n_undecodable:
            notes.append(f"Replaced {self.n_undecodable:,} sequences of bytes that are not UTF-8 by U+FFFD.")
        return notes


def join_chat(messages: Chat) -> str:
    """A chat as text without a template: each message's role and content."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def read_documents(
    names: Sequence[str],
    config: str | None,
    split: str,
    text_column: str,
    shuffle_seed: int | None,
    *,
    counts: DocumentCounts | None = None,
    render_chat: Callable[[Chat], str] = join_chat,
) -> Iterator[str]:
    """The texts in order; a .txt file is one document, and so is a row's text or chat.

    `text_column` may name a nested column, `data.text`; of a list, each item is a document. Rows without a
    text are skipped. A hub data set is streamed, and shuffled if there is a seed. Raises NeuroexplainError
    for a file or data set that cannot be read or holds no text, and for a missing column, naming the existing
    ones.
    """
    counts = DocumentCounts() if counts is None else counts
    files = find_files(names, split)
    if files is None:
        open_rows = partial(_open_hub, names[0], config, split, shuffle_seed)
        yield from _texts(open_rows, names[0], text_column, counts, render_chat)
        return
    for file in files:
        kind = find_kind(file)
        if kind is not None and kind.builder == TEXT:
            yield _read_text(file, counts)
        else:
            yield from _texts(partial(_open_file, file), str(file), text_column, counts, render_chat)


def _read_text(file: Path, counts: DocumentCounts) -> str:
    """A whole file, decoded by its byte order mark, else as UTF-8."""
    import lzma
    import zlib

    import zstandard

    try:
        with open_decompressed(file) as opened:
            data = opened.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise NeuroexplainError(f"Cannot read {file}: {error}") from error
    encoding = find_encoding(data)
    if encoding is None and b"\0" in data:
        raise NeuroexplainError(
            f"{file} holds NUL bytes, so it is no UTF-8 text. If it is UTF-16, convert it:  "
            f"iconv -f UTF-16LE -t UTF-8 {file.name} > utf8.txt"
        )
    text = data.decode(encoding or "utf-8", "replace")
    counts.n_undecodable += text.count("\ufffd") - data.count("\ufffd".encode())
    counts.n_read += 1
    return text


def _open_file(file: Path) -> Any:
    from datasets import load_dataset

    kind = find_kind(file)
    assert kind is not None
    options = dict(kind.options)
    if kind.builder in ("json", "csv"):
        with open_decompressed(file) as opened:
            encoding = find_encoding(opened.read(4))
        if encoding is not None:
            options["encoding"] = encoding
    return load_dataset(kind.builder, data_files=[str(file)], split="train", streaming=True, **options)


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


def _texts(
    open_rows: Callable[[], Iterable[Mapping[str, Any]]],
    name: str,
    text_column: str,
    counts: DocumentCounts,
    render_chat: Callable[[Chat], str],
) -> Iterator[str]:
    """The texts of all rows; `name` is for error messages."""
    import lzma
    import zlib

    import datasets
    import zstandard
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # our error message is enough
    broken = (DatasetGenerationError, ArrowException, OSError, EOFError, ValueError)
    n_read, n_rows = counts.n_read, 0
    try:
        for n_rows, row in enumerate(open_rows(), 1):
            column = _find_column(row, text_column) or (text_column if n_rows > 1 else None)
            if column is None:
                raise NeuroexplainError(_no_column(name, text_column, row))
            for value in _values(row, column):
                if value is None:
                    counts.n_without_text += 1
                    continue
                text = _text_of(value, counts, render_chat)
                if text is None:
                    kind = f"column {column!r} holds {type(value).__name__}, not text"
                    raise NeuroexplainError(f"{name}, row {n_rows - 1}: {kind}.")
                counts.n_read += 1
                yield text
    except (*broken, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise NeuroexplainError(f"Cannot read {name}: {error}") from error
    if n_rows and counts.n_read == n_read:
        raise NeuroexplainError(
            f"None of the {n_rows:,} rows of {name} holds a text in the column {text_column!r}. "
            "Name the column that does:  --text-column NAME"
        )


def _find_column(row: Mapping[str, Any], text_column: str) -> str | None:
    """The column to read: the named one, whole or by its first part, else one with chats in place of
    `text`.
    """
    if text_column in row or text_column.split(".")[0] in row:
        return text_column
    if text_column == "text":
        return next((column for column in CHAT_COLUMNS if column in row), None)
    return None


def _values(row: Any, column: str) -> Iterator[Any]:
    """The values of a column that may be nested; None where there is none. Of lists on the way, each
    item's.
    """
    if not isinstance(row, Mapping):
        yield None
    elif column in row:
        yield row[column]
    else:
        first, _, rest = column.partition(".")
        inner = row.get(first) if rest else None
        for item in inner if isinstance(inner, list) else [inner]:
            yield from _values(item, rest) if rest else [None]


def _text_of(value: Any, counts: DocumentCounts, render_chat: Callable[[Chat], str]) -> str | None:
    """A value's text, rendered if it is a chat; None for a value of another type."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        messages = [_message(message) for message in value]
        if all(message["content"] is not None for message in messages):
            counts.n_chats += 1
            return render_chat(messages)
    return None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it, from the form of OpenAI or of ShareGPT."""
    role = message.get("role", message.get("from", "user"))
    content = message.get("content", message.get("value"))
    return {"role": ROLES.get(role, role), "content": content if isinstance(content, str) else None}


def _no_column(name: str, text_column: str, row: Mapping[str, Any]) -> str:
    """The message for a missing column: the columns that there are, and how nested ones are named."""
    columns = ", ".join(map(str, row)) or "no column"
    nested = [
        f"{column}.{inner}"
        for column, value in row.items()
        for items in [value if isinstance(value, list) else [value]]
        if items and isinstance(items[0], Mapping)
        for inner in items[0]
    ]
    example = "NAME" if not nested else nested[0]
    inner_columns = f" (nested: {', '.join(nested)})" if nested else ""
    return (
        f"{name} has no column {text_column!r}; it has {columns}{inner_columns}. "
        f"Give the column that holds the text:  --text-column {example}"
    )
