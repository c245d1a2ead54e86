"""Collect on several devices of one machine: a process and a part for each, merged when all have ended."""

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
from neuroexplain.corpus.reading import BROKEN_OFF, WHOLE, Tally, tokenize_for_parts
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress
from neuroexplain.runtime.worker import Worker
from neuroexplain.store.engine import Store, open_store, remove_if_unused
from neuroexplain.store.runs import load_run
from neuroexplain.subject.load import choose_device, device_name

STAGES = ("loading the model", "tokenizing", "collecting", "saving")
READING = {"collecting", "saving"}


def run_collect_on_devices(store: Store, config: CollectConfig) -> Generator[Progress]:
    """run_collect, shared among `config.devices`; equal to it exactly, statistics to rounding.

    The parts lie in a folder beside the database until they are merged. Interrupted or killed, the processes leave their
    checkpoints there, and the same call goes on. Raises NeuroexplainError where devices differ or a process fails.
    """
    names = {device: device_name(choose_device(device)) for device in config.devices}
    if len(set(names.values())) > 1:
        shown = ", ".join(f"{device} is {name}" for device, name in names.items())
        raise NeuroexplainError(
            f"The devices differ, and so may the last bits of activations: {shown}.\n"
            "Collect on each with --device and --shard; neuroexplain merge joins such parts with --allow-mixed."
        )
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
            folder.rmdir()  # where no part has begun
        raise
    with ExitStack() as opened:
        stores = [opened.enter_context(open_store(where, read_only=True)) for where in parts]
        yield from run_merge([(part, load_run(part)) for part in stores], store, config=config.as_json())
    shutil.rmtree(folder)


def _collect_parts(
    config: CollectConfig, folder: Path, parts: dict[str, CollectConfig]
) -> Generator[Progress]:
    """Run all parts to their end, a process for each, and one that tokenizes for all of them."""
    workers: dict[str, Worker] = {}
    heard: dict[str, dict[str, Progress]] = {where: {} for where in parts}  # the last of each stage
    text: Progress | None = None  # the last of tokenizing
    tally = Tally()
    tokenizing = Worker("tokenizing", tokenize_for_parts, config, folder, tally)
    try:
        for where, part in parts.items():
            workers[where] = Worker(part.device, _collect_part, where, part, tally)
        busy = {worker.pipe: where for where, worker in workers.items()}
        open_pipes = [*busy, tokenizing.pipe]
        while busy:
            for pipe in wait(open_pipes, timeout=1.0):
                assert isinstance(pipe, Connection)
                part_of = busy.get(pipe)
                told = (tokenizing if part_of is None else workers[part_of]).hear()
                if told is None:
                    open_pipes.remove(pipe)
                    busy.pop(pipe, None)
                    continue
                note = told.note
                if part_of is None:
                    text = told if note is None else text
                else:
                    heard[part_of][told.stage] = told
                    note = None if note is None else f"{parts[part_of].device}: {note}"
                yield _together(heard.values(), text, note)
            yield _together(heard.values(), text)  # so that the caller can stop while nobody says anything
    finally:
        tokenizing.stop()
        if tally.get()[1] != WHOLE:
            tally.set(state=BROKEN_OFF)  # for whoever waits
        for worker in workers.values():
            worker.hang_up()  # whoever still works notices, leaves a checkpoint and ends
        for worker in workers.values():
            worker.join()


def _together(
    heard: Collection[Mapping[str, Progress]], text: Progress | None = None, note: str | None = None
) -> Progress:
    """How far all parts are in the stage of the slowest one that reads already; before, how far tokenizing is.

    heard: each part's last word of each stage.
    """
    begun = [max(told, key=STAGES.index) for told in heard if told]
    reading = [stage for stage in begun if stage in READING]
    if text is not None and not reading:
        return replace(text, note=note)
    stage = min(reading or begun or STAGES[:1], key=STAGES.index)
    if reading and len(reading) < len(heard):
        stage = "collecting"  # those who have not begun will
    said = [told[stage] for told in heard if stage in told]
    totals = [one.total for one in said if one.total is not None]
    is_known = len(reading) == len(heard) and len(totals) == len(said)
    unit = said[0].unit if said else ""
    return Progress(stage, sum(one.done for one in said), sum(totals) if is_known else None, unit, note=note)


def _collect_part(where: str, config: CollectConfig, tally: Tally) -> Generator[Progress]:
    """One part, for a process of its own."""
    with open_store(where, create=True) as store:
        try:
            finished = find_finished_run(store, config)
            if finished is not None:
                yield Progress("saving", len(finished.layers), len(finished.layers), "layers")
            else:
                yield from run_collect(store, config, tally=tally)
        except GeneratorExit:
            remove_if_unused(store)
            raise
        except NeuroexplainError as error:
            remove_if_unused(store)
            raise NeuroexplainError(f"{config.device}: {error}") from error
