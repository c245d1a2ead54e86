"""Collect on several devices of one machine: a process and a part for each device, merged at the end."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

from neuroexplain.collecting.merge import run_merge
from neuroexplain.collecting.run import find_finished_run, run_collect
from neuroexplain.config import CollectConfig
from neuroexplain.corpus.shared_progress import FAILED, FINISHED, SharedProgress
from neuroexplain.corpus.tokenizing import tokenize_for_parts
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.part_progress import combine
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.worker import Worker
from neuroexplain.store.engine import Store, open_store, remove_if_unused
from neuroexplain.store.runs import load_run
from neuroexplain.subject.device import choose_device, device_name

STAGES = ("loading the model", "tokenizing", "collecting", "saving")  # of a part, in order
READING = ("collecting", "saving")  # the stages in which a part counts segments or layers


def run_collect_on_devices(store: Store, config: CollectConfig) -> Generator[Progress]:
    """`run_collect`, shared among `config.devices`: equal to it exactly, and statistics to rounding.

    The parts lie in a folder beside the database until they are merged. When interrupted or killed, the
    processes leave their checkpoints there, and the same call continues. Raises NeuroexplainError if the
    devices differ or a process fails.
    """
    _check_alike(config.devices)
    n, folder = len(config.devices), store.beside("parts")
    folder.mkdir(exist_ok=True)
    parts = {
        str(folder / f"{number}of{n}.db"): replace(config, device=device, shard=(number, n))
        for number, device in enumerate(config.devices, 1)
    }
    try:
        yield from _collect_parts(config, folder, parts)
    except NeuroexplainError:
        with suppress(OSError):
            folder.rmdir()  # works if no part has begun
        raise
    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(file, read_only=True)) for file in parts]
        yield from run_merge([(part, load_run(part)) for part in stores], store, config=config.as_json())
    shutil.rmtree(folder)


def _check_alike(devices: Collection[str]) -> None:
    """Raise NeuroexplainError if the devices are of different kinds."""
    names = {device: device_name(choose_device(device)) for device in devices}
    if len(set(names.values())) > 1:
        kinds = ", ".join(f"{device} is {name}" for device, name in names.items())
        raise NeuroexplainError(
            f"The devices differ, and so may the last bits of activations: {kinds}.\n"
            "Collect on each with --device and --shard, and join the parts:  neuroexplain merge --allow-mixed"
        )


def _collect_parts(
    config: CollectConfig, folder: Path, parts: Mapping[str, CollectConfig]
) -> Generator[Progress]:
    """Run all parts to their end, a process for each, and one that tokenizes for all of them.

    parts: each part's options, by its database.
    """
    workers: dict[str, Worker] = {}
    stages: dict[str, dict[str, Progress]] = {file: {} for file in parts}
    tokenized: Progress | None = None  # the last progress of tokenizing
    shared = SharedProgress()
    tokenizing = Worker("tokenizing", tokenize_for_parts, config, folder, shared)
    try:
        for file, part in parts.items():
            workers[file] = Worker(part.device, _collect_part, file, part, shared)
        busy = {worker.connection: file for file, worker in workers.items()}
        connections = [*busy, tokenizing.connection]
        while busy:
            for connection in wait(connections, timeout=1.0):
                assert isinstance(connection, Connection)
                file_of = busy.get(connection)
                progress = (tokenizing if file_of is None else workers[file_of]).receive()
                if progress is None:
                    connections.remove(connection)
                    busy.pop(connection, None)
                    continue
                note = progress.note
                if file_of is None:
                    tokenized = progress if note is None else tokenized
                else:
                    stages[file_of][progress.stage] = progress
                    note = None if note is None else f"{parts[file_of].device}: {note}"
                yield combine(stages.values(), STAGES, READING, tokenized, note)
            yield combine(
                stages.values(), STAGES, READING, tokenized
            )  # lets the caller stop while no process reports
    finally:
        tokenizing.stop()
        if shared.get()[1] != FINISHED:
            shared.set(state=FAILED)  # for parts that wait for tokens
        for worker in workers.values():
            worker.disconnect()  # a process that still works notices, saves a checkpoint and ends
        for worker in workers.values():
            worker.join()


def _collect_part(file: str, config: CollectConfig, shared: SharedProgress) -> Generator[Progress]:
    """Collect one part into its database, in a process of its own."""
    with open_store(file, create=True) as store:
        try:
            finished = find_finished_run(store, config)
            if finished is not None:
                yield Progress("saving", len(finished.layers), len(finished.layers), "layers")
            else:
                yield from run_collect(store, config, shared=shared)
        except GeneratorExit:
            remove_if_unused(store)
            raise
        except NeuroexplainError as error:
            remove_if_unused(store)
            raise NeuroexplainError(f"{config.device}: {error}") from error
