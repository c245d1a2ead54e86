"""Documents -> token ids, and the whole corpus into a file of tokens that lies beside the database."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroexplain.config import CollectConfig
from neuroexplain.corpus.documents import Chat, DocumentCounts, join_chat, read_documents
from neuroexplain.corpus.files import find_files, left_out
from neuroexplain.corpus.shared_progress import FINISHED, SharedProgress
from neuroexplain.corpus.token_stream import TokenStream, TokenWriter, find_tokens
from neuroexplain.corpus.visiting_order import is_tokenized_while_read, takes_first_segments
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.tuning import DOCUMENTS_AT_ONCE
from neuroexplain.subject.tokenizer import load_tokenizer, tokenizer_sha256
from neuroexplain.units import SEGMENT_LENGTH

DOCUMENTS_VERSION = 2  # of how files become documents and documents tokens: earlier files of tokens differ


def tokenize(documents: Iterable[str], tokenizer: Any) -> Iterator[NDArray[np.uint32]]:
    """Each document's token ids as the tokenizer gives them, with its BOS if it adds one, then one EOS."""
    eos = tokenizer.eos_token_id
    batch: list[str] = []

    def flush() -> Iterator[NDArray[np.uint32]]:
        if batch:
            for ids in tokenizer(batch, verbose=False).input_ids:
                has_end = eos is None or ids[-1:] == [eos]  # some tokenizers add it themselves
                yield np.array(ids if has_end else [*ids, eos], np.uint32)
            batch.clear()

    for document in documents:
        batch.append(document.encode("utf-8", "replace").decode("utf-8"))  # lone surrogates stop a tokenizer
        if len(batch) == DOCUMENTS_AT_ONCE:
            yield from flush()
    yield from flush()


def write_tokens(
    config: CollectConfig, tokenizer: Any, path: Path, growing: Path | None = None
) -> Generator[Progress, None, TokenStream]:
    """Tokenize the corpus into the file at `path`, which appears when it is whole.

    Of a corpus whose first segments are visited, no more documents are tokenized than `--segments` needs.
    With `growing`, the tokens that progress counts can be read there meanwhile.
    """
    n_needed = None  # tokens
    if config.segments is not None and takes_first_segments(config):
        n_needed = config.segments * SEGMENT_LENGTH
    counts = DocumentCounts()
    token_ids = tokenize(_documents(config, tokenizer, counts), tokenizer)
    if n_needed is not None:
        token_ids = _until(token_ids, n_needed)
    began = time.monotonic()
    with TokenWriter(path, growing) as writer:
        for number, ids in enumerate(token_ids, 1):
            writer.add(ids)
            if number % DOCUMENTS_AT_ONCE:
                continue  # the other documents that were tokenized together follow at once
            if growing is not None:
                writer.flush()
            yield Progress("tokenizing", writer.n_tokens, n_needed, "tokens")
        stream = writer.finish()
    seconds = time.monotonic() - began
    yield Progress("tokenizing", note=f"Tokenized {stream.n_tokens:,} tokens in {seconds:.1f} s.")
    for note in _notes(config, tokenizer, counts):
        yield Progress("tokenizing", note=note)
    if config.segments is not None and stream.n_segments < config.segments:
        size = f"{stream.n_segments:,} segments of {SEGMENT_LENGTH} tokens"
        yield Progress("tokenizing", note=f"The corpus has {size}, not {config.segments:,}: all are read.")
    return stream


def tokenize_for_parts(config: CollectConfig, folder: Path, shared: SharedProgress) -> Generator[Progress]:
    """Tokenize the corpus for all parts of a collection that lie in the folder, and count in `shared`."""
    tokenizer = load_tokenizer(config.model, config.revision, trust_remote_code=config.trust_remote_code)
    path = tokens_path(folder, config, tokenizer)
    if find_tokens(path) is None:
        yield tokenizing_note(config)
        for progress in write_tokens(config, tokenizer, path, growing_path(path)):
            if progress.note is None:
                shared.set(n_tokens=progress.done)
            yield progress
    shared.set(state=FINISHED)


def tokenize_beside(config: CollectConfig, folder: Path) -> Generator[Progress]:
    """Tokenize the corpus for parts that will lie in the folder, unless it is tokenized already."""
    tokenizer = load_tokenizer(config.model, config.revision, trust_remote_code=config.trust_remote_code)
    path = tokens_path(folder, config, tokenizer)
    if find_tokens(path) is None:
        yield Progress("tokenizing", note="Tokenizing the corpus ...")
        yield from write_tokens(config, tokenizer, path)


def tokenizing_note(config: CollectConfig) -> Progress:
    """The note with which tokenizing begins."""
    note = "Tokenizing the corpus " + ("while it is read ..." if is_tokenized_while_read(config) else "...")
    return Progress("tokenizing", note=note)


def tokens_path(folder: Path, config: CollectConfig, tokenizer: Any) -> Path:
    """The file of this corpus's tokens in the folder, kept until its run is finished.

    Its name is a hash of everything that decides the tokens, so parts in one folder share it. A local file
    counts by its size and time. A streamed data set is taken to be unchanged as long as the file exists.
    """
    files = find_files(config.dataset, config.split)
    source: Any = [DOCUMENTS_VERSION, config.dataset, config.dataset_config, config.split, config.text_column]
    if files is not None:
        source += [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    if takes_first_segments(config):
        source += [config.segments, config.sampling, config.seed]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    source += [tokenizer_sha256(tokenizer) if backend is None else backend.to_str(), tokenizer.eos_token_id]
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()[:16]
    return folder / f"neuroexplain-{digest}.tokens"


def growing_path(path: Path) -> Path:
    """Where the tokens grow that one process writes and its siblings read.

    The name holds the parent's number: if a parent was killed, the next one's processes write another file.
    """
    parent = multiprocessing.parent_process()
    return path.with_name(f"{path.name}.{os.getpid() if parent is None else parent.pid}.unfinished")


def _documents(config: CollectConfig, tokenizer: Any, counts: DocumentCounts) -> Iterator[str]:
    is_streamed = find_files(config.dataset, config.split) is None
    return read_documents(
        config.dataset,
        config.dataset_config,
        config.split,
        config.text_column,
        config.seed if is_streamed and config.sampling == "random" else None,
        counts=counts,
        render_chat=partial(_render_chat, tokenizer=tokenizer),
    )


def _render_chat(messages: Chat, tokenizer: Any) -> str:
    """A chat by the tokenizer's template, without the BOS that the tokenizer adds itself; else joined."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return join_chat(messages)
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except TemplateError:  # some templates refuse a chat, by its roles or their order
        return join_chat(messages)
    adds_bos = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text


def _notes(config: CollectConfig, tokenizer: Any, counts: DocumentCounts) -> Iterator[str]:
    """What was left out of the corpus, and how chats became text."""
    yield from counts.notes()
    if counts.n_chats:
        how = "the tokenizer's chat template" if tokenizer.chat_template else "joining roles and contents"
        yield f"Rendered {counts.n_chats:,} chats by {how}."
    files = left_out(config.dataset)
    if files:
        names = ", ".join(str(file) for file in files[:3]) + (", ..." if len(files) > 3 else "")
        yield f"Left out {len(files):,} files of the named folders: {names}."


def _until(token_ids: Iterable[NDArray[np.uint32]], n_tokens: int) -> Iterator[NDArray[np.uint32]]:
    """The documents up to the one with which they have n_tokens or more."""
    n = 0
    for ids in token_ids:
        yield ids
        n += len(ids)
        if n >= n_tokens:
            return
