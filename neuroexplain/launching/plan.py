"""A command -> its steps on many machines, each a `neuroexplain` command that a person can type (pure)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One command, or one for each shard. Each shard writes a file of its own."""

    name: str
    words: tuple[str, ...]  # of the command, without those of the shard
    n_shards: int | None = None  # None: one command
    file_option: str = ""  # the option that names a shard's file
    file_stem: str = ""  # its name begins so
    gpus: int = 0  # of each command

    def command(self, number: int, file: str) -> tuple[str, ...]:
        """The words of one shard, from 1."""
        return *self.words, "--shard", f"{number}/{self.n_shards}", self.file_option, file


@dataclass(frozen=True)
class Plan:
    """Steps, one after the other; the next one begins when all shards of one are done."""

    folder: Path  # of the shards' files, and of nothing else
    steps: tuple[Step, ...]

    def file(self, step: Step, number: int | str) -> str:
        """A shard's file."""
        return str(self.folder / f"{step.file_stem}{number}.db")


def plan_collect(words: Sequence[str], db: str, folder: Path, n_shards: int, gpus: int) -> Plan:
    """Tokenize the text once, collect its parts, and join them in `db`. words: those after `collect`."""
    collect = Step("collect", ("collect", *words, "--keep-tokens"), n_shards, "--db", "collected-", gpus)
    tokenize = Step("tokenize", ("collect", *words, "--only-tokenize", "--db", str(folder / "tokens.db")))
    return Plan(folder, (tokenize, collect, _merge("merge", folder, collect, db)))


def plan_explain(
    words: Sequence[str],
    control_words: Sequence[str] | None,
    db: str,
    folder: Path,
    n_shards: int,
    gpus: int,
) -> Plan:
    """Explain parts of the units, join them in `db`, then make the controls in parts and join these.

    words: those after `explain`. control_words: the options of `score --controls`; None: no controls.
    """
    explain = Step(
        *("explain", ("explain", *words, "--db", db, "--allow-failed"), n_shards, "--part", "explained-"),
        gpus,
    )
    steps = [explain, _merge("merge", folder, explain, db)]
    if control_words is not None:
        command = ("score", "--controls", *control_words, "--db", db, "--allow-failed")
        controls = Step("controls", command, n_shards, "--part", "controls-", gpus)
        steps += [controls, _merge("merge-controls", folder, controls, db)]
    return Plan(folder, tuple(steps))


def folder_name(words: Sequence[str]) -> str:
    """A name that the same command finds again: `explain-1f00c3a2`."""
    return f"{words[0]}-{hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:8]}"


def _merge(name: str, folder: Path, step: Step, db: str) -> Step:
    files = [str(folder / f"{step.file_stem}{number}.db") for number in range(1, (step.n_shards or 0) + 1)]
    return Step(name, ("merge", *files, "--into", db))
