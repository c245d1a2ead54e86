"""A run that is being collected: how it begins, its checkpoint, and how an interrupted one continues."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from neuroexplain import __version__
from neuroexplain.collecting.checkpoint import find_checkpoint, save_checkpoint
from neuroexplain.collecting.collector import Collector
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.reading import Text, hash_text
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import create_run, save_vocabulary
from neuroexplain.subject.device import device_name
from neuroexplain.subject.tokenizer import tokenizer_sha256, vocabulary_entries


@dataclass
class OpenRun:
    """A run in the store that is not finished, and how much of its text has been read."""

    run: Run
    checkpoint_path: Path
    batch_size: int  # segments
    n_done: int  # segments
    text_hash: Any  # hashlib's SHA-256 of the token ids of these segments

    def save(self, collector: Collector) -> None:
        """Write the checkpoint. Raises NeuroexplainError if it cannot be written."""
        state = _conditions(collector, self.text_hash) | {
            "run": _identity(self.run),
            "batch_size": self.batch_size,
            "done": self.n_done,
            "collector": collector.state(),
        }
        save_checkpoint(self.checkpoint_path, state)


def find_interrupted_run(store: Store, config: CollectConfig) -> Run | None:
    """The unfinished run of these options; None if no run is unfinished.

    Raises NeuroexplainError, naming the differences, if the unfinished run has other options, or if an
    earlier version began it, which drew other records.
    """
    options = config.as_json()
    run = next((run for run in list_runs(store) if run.status == "running"), None)
    if run is None:
        return None
    if run.split_rule == "ranks":
        raise NeuroexplainError(
            f"Run {run.id} in {store.name} was interrupted, and an earlier version began it, whose random "
            "records and splits are others: this version cannot go on with it. That version can, in a copy "
            "of the database from before the upgrade.\n"
            f"Or drop it, and collect anew:  neuroexplain runs --drop {run.id} --db {store.name}"
        )
    different = [name for name in options if run.config.get(name) != options[name]]
    if different:
        differences = "; ".join(
            f"{name}: {run.config.get(name)} then, {options[name]} now" for name in different
        )
        raise NeuroexplainError(
            f"Run {run.id} in {store.name} was interrupted, and had other options. {differences}\n"
            f"Continue with its options, or drop it:  neuroexplain runs --drop {run.id} --db {store.name}"
        )
    return run


def find_run_checkpoint(store: Store, run: Run | None) -> dict[str, Any] | None:
    """The checkpoint of an interrupted run; None without a run, or if the file was left by another run.

    Another run has the same file if the database was deleted and its checkpoint was not.
    """
    if run is None:
        return None
    checkpoint = find_checkpoint(store.checkpoint_path(run.id))
    if checkpoint is None or checkpoint.get("run") != _identity(run):
        return None
    return {"kernels": "plain"} | checkpoint  # older checkpoints lack it: all kernels were plain


def begin_run(
    store: Store, config: CollectConfig, collector: Collector, batch_size: int, text: Text
) -> OpenRun:
    """Create a run in the store, of which nothing has been read."""
    run_id = create_run(store, _run_fields(config, collector, batch_size))
    path = store.checkpoint_path(run_id)
    path.unlink(missing_ok=True)
    save_vocabulary(store, run_id, vocabulary_entries(collector.subject.tokenizer))
    run = next(run for run in list_runs(store) if run.id == run_id)
    return OpenRun(run, path, batch_size, n_done=0, text_hash=hash_text(text, 0))


def continue_run(
    store: Store, run: Run, checkpoint: Mapping[str, Any], collector: Collector, text: Text
) -> OpenRun:
    """Restore the collector from the checkpoint of an interrupted run.

    Raises NeuroexplainError if anything that decides activations differs, or the text that was read.
    """
    n_done = checkpoint["done"]
    text_hash = hash_text(text, n_done)
    different = [
        f"{name}: {checkpoint.get(name)} then, {value} now"
        for name, value in _conditions(collector, text_hash).items()
        if checkpoint.get(name) != value
    ]
    if different:
        raise NeuroexplainError(
            f"The interrupted run had another model, text or way to read it. {'; '.join(different)}"
        )
    collector.restore(checkpoint["collector"])
    return OpenRun(run, store.checkpoint_path(run.id), checkpoint["batch_size"], n_done, text_hash)


def _identity(run: Run) -> str:
    """Which run a checkpoint belongs to: its options and the time of its begin."""
    return json.dumps([run.started_at, dict(run.config)], sort_keys=True)


def _conditions(collector: Collector, text_hash: Any) -> dict[str, Any]:
    """What must not change within a run: everything that decides activations, and the text read so far."""
    subject = collector.subject
    return {
        "dtype": str(subject.dtype),
        "device": subject.device.type,
        "kernels": _kernels(collector),
        "weights": subject.weights_sha256,
        "text": text_hash.hexdigest(),
        "encoders": _encoders(collector),
    }


def _encoders(collector: Collector) -> list[str] | None:
    """The dictionaries with hashes of their weights; None if the values read are the units."""
    encoders = [source.encoder for source in collector.sources.values() if source.encoder is not None]
    return encoders or None


def _kernels(collector: Collector) -> str:
    return "compiled" if collector.compiled else "plain"


def _run_fields(config: CollectConfig, collector: Collector, batch_size: int) -> dict[str, Any]:
    """The fields of a new run in the store."""
    subject = collector.subject
    return {
        "subject": subject.name,
        "subject_revision": subject.revision,
        "dtype": subject.dtype_name,
        "activation": config.activation_name,
        "layers": list(collector.layers),
        "sources": list(collector.sources.values()),
        "n_layers": len(subject.layers),
        "top_k": config.top_k,
        "n_random": config.random_records,
        "n_sampled": config.sampled_records,
        "n_background": config.n_background,
        "split_rule": "passages",
        "barred_ids": [] if collector.barred is None else collector.barred.tolist(),
        "seed": config.seed,
        "tokenizer_sha256": tokenizer_sha256(subject.tokenizer),
        "config": config.as_json(),
        "rectified": config.collected_sign == "both",
        "versions": {
            "neuroexplain": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "batch_size": str(batch_size),
            "weights": subject.weights_sha256,
            "python": platform.python_version(),
            "device": device_name(subject.device),
            "kernels": _kernels(collector),
        },
    }
