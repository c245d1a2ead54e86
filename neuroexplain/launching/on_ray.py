"""The shards of a step as tasks of a Ray cluster. The only file that imports ray.

A task runs one attempt at a shard (attempts.py) in the machines' shared folder. A task whose worker or
machine dies is started again, on another machine if there is one; results never pass through Ray. An actor
beside the driver takes the progress of all tasks, and answers whether they are to stop.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuroexplain.errors import EngineLost, NeuroexplainError
from neuroexplain.launching.attempts import begin_attempt, keep_attempt
from neuroexplain.launching.plan import Plan, Step
from neuroexplain.runtime.interrupt import Interrupted
from neuroexplain.runtime.part_progress import combine
from neuroexplain.runtime.progress import Progress

try:
    import ray
except ImportError:  # an optional extra
    ray = None

# Runs a command's words in this process, hands its progress on, and returns its exit status.
RunCommand = Callable[[Sequence[str], Callable[[Progress], None]], int]

WHOLE, STOPPED, MISTAKE = "whole", "stopped", "mistake"  # how a task ends
MOST_ATTEMPTS = 5  # at a shard, in one command
REPORT_EVERY = 1.0  # seconds
WAIT_FOR_STOP = 60.0  # seconds that tasks get to save a checkpoint
COUNTING = ("collecting", "saving", "explaining", "scoring", "comparing")
STAGES = ("waiting", "loading the model", "tokenizing", *COUNTING)


@contextmanager
def connect(address: str | None) -> Iterator[int]:
    """Connect to a cluster, else begin one on this machine. Yields the number of its GPUs.

    Raises NeuroexplainError without Ray, and if no cluster answers at the address.
    """
    if ray is None:
        raise NeuroexplainError("Ray is not installed here. Install it:  pip install 'neuroexplain[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster begun here reports to nobody
    if address is not None:
        _check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "here" if address is None else f"at {address}"
        raise NeuroexplainError(
            f"No Ray cluster answers {where}: {str(error).splitlines()[0]}\n"
            "Start one with `ray start --head`, or leave out --address to use this machine alone."
        ) from error
    try:
        yield int(ray.cluster_resources().get("GPU", 0))
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise NeuroexplainError unless a cluster's head may be there: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise NeuroexplainError(
            f"--address {address} is that of a client, which does not share the folder. Run it on a machine "
            "of the cluster, with the address that `ray start --head` printed:  --address HOST:PORT"
        )
    if not host or not port.isdecimal():
        raise NeuroexplainError(
            f"--address {address} is no address. Give what `ray start --head` printed:  --address HOST:PORT"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise NeuroexplainError(
            f"No Ray cluster answers at {address}: {error}.\n"
            "Start one with `ray start --head`, or leave out --address to use this machine alone."
        ) from error


def run_step(plan: Plan, step: Step, run_command: RunCommand, cwd: str) -> Generator[Progress]:
    """Run all shards of a step to their end. `run_command` must be a function that workers can import.

    Shards that are whole already are not run. If the caller stops iterating, the tasks save their state and
    end. Raises NeuroexplainError if a shard fails by a mistake, or too often.
    """
    numbers = range(1, (step.n_shards or 0) + 1)
    pending = [n for n in numbers if not Path(plan.file(step, n)).exists()]
    tasks = _Tasks(plan, step, run_command, cwd)
    n_kept = tasks.n_whole = len(numbers) - len(pending)
    note = f"continuing: {n_kept} of {len(numbers)} parts done" if n_kept else None
    yield Progress("waiting", note=note)
    try:
        for number in pending:
            tasks.start(number)
        while tasks.running:
            tasks.wait()
            yield from tasks.progress()
    finally:
        tasks.stop()


class _Tasks:
    """The tasks of a step that run, and what happened to those that ended."""

    def __init__(self, plan: Plan, step: Step, run_command: RunCommand, cwd: str) -> None:
        self._plan, self._step = plan, step
        self._run_command, self._cwd = run_command, cwd
        self._board = _start_board()
        self.running: dict[Any, int] = {}  # numbers of shards, by Ray's references
        self.n_whole = 0  # shards
        self._n_attempts: dict[int, int] = {}
        self._bad_nodes: dict[int, set[str]] = {}  # where a shard's attempts died
        self._notes: list[str] = []
        self._stages: dict[int, dict[str, Progress]] = {}
        self._work = ray.remote(max_calls=1, max_retries=0)(_work)

    def start(self, number: int) -> None:
        """Begin an attempt at a shard, on a machine where none died if there is such a machine."""
        self._n_attempts[number] = self._n_attempts.get(number, 0) + 1
        self._stages[number] = {}
        self._board.forget.remote(number)
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._step.gpus}
        bad = self._bad_nodes.get(number, set())
        if any(_fits(node, options) and node["NodeID"] not in bad for node in ray.nodes()) and bad:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(bad))})"}
        else:
            options["scheduling_strategy"] = "SPREAD"
        final = self._plan.file(self._step, number)
        task = self._work.options(**options).remote(
            self._board, number, self._step, final, self._run_command, self._cwd
        )
        self.running[task] = number

    def wait(self) -> None:
        """Wait a second for tasks to end. Those that died are started again."""
        ended, _ = ray.wait(list(self.running), timeout=1.0)
        for task in ended:
            number = self.running.pop(task)
            try:
                outcome, message = ray.get(task)
            except ray.exceptions.RayError as death:
                self._start_again(number, _reason(death))
                continue
            if outcome == MISTAKE:
                raise NeuroexplainError(f"Part {number} of {self._step.n_shards}: {message}")
            if outcome == STOPPED:
                self._start_again(number, "it lost this process")
            self.n_whole += outcome == WHOLE

    def progress(self) -> Iterator[Progress]:
        """The progress of all shards as one, after lines about what died."""
        stages, notes = ray.get(self._board.read.remote())
        for number, own in stages.items():
            self._stages[number] = own
        now = combine(self._stages.values(), STAGES, COUNTING)
        n = self._step.n_shards
        now = replace(now, unit=f"{now.unit} ({self.n_whole} of {n} parts are done)".lstrip())
        yield from (replace(now, note=note) for note in (*self._notes, *notes))
        self._notes.clear()
        yield now

    def stop(self) -> None:
        """Let the tasks that run save their state and end. Those that do not end with the connection.

        ray.cancel is not used: of a task that just begins, it ended the driver by a failed check of Ray's
        (2.60).
        """
        if self.running:
            self._board.stop.remote()
            begun = ray.get(self._board.nodes.remote())
            tasks = [task for task, number in self.running.items() if number in begun]
            if tasks:
                ray.wait(tasks, num_returns=len(tasks), timeout=WAIT_FOR_STOP)
        ray.kill(self._board)

    def _start_again(self, number: int, reason: str) -> None:
        nodes = ray.get(self._board.nodes.remote())
        node = nodes.get(number)
        if node is not None:
            self._bad_nodes.setdefault(number, set()).add(node)
        if self._n_attempts[number] >= MOST_ATTEMPTS:
            raise NeuroexplainError(
                f"Part {number} of {self._step.n_shards} failed {MOST_ATTEMPTS} times, at last: {reason}\n"
                "Finished work is kept: the same command goes on."
            )
        self._notes.append(f"Part {number} of {self._step.n_shards} begins again: {reason}")
        self.start(number)


class _Board:
    """An actor: the progress of every task, and whether they are to stop."""

    def __init__(self) -> None:
        self._stages: dict[int, dict[str, Progress]] = {}
        self._nodes: dict[int, str] = {}
        self._notes: list[str] = []
        self._stops = False

    def begin(self, number: int, node: str) -> bool:
        self._nodes[number], self._stages[number] = node, {}
        return self._stops

    def forget(self, number: int) -> None:
        self._nodes.pop(number, None)
        self._stages.pop(number, None)

    def report(self, number: int, progress: Progress) -> bool:
        if progress.note is not None:
            self._notes.append(f"part {number}: {progress.note}")
        self._stages.setdefault(number, {})[progress.stage] = progress
        return self._stops

    def read(self) -> tuple[dict[int, dict[str, Progress]], list[str]]:
        notes, self._notes = self._notes, []
        return self._stages, notes

    def nodes(self) -> dict[int, str]:
        return self._nodes

    def stop(self) -> None:
        self._stops = True


def _start_board() -> Any:
    """The actor, on the driver's machine: it lives as long as the driver does."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()


def _work(
    board: Any, number: int, step: Step, final: str, run_command: RunCommand, cwd: str
) -> tuple[str, str]:
    """A task: one attempt at a shard. Returns how it ended, and the message of a mistake."""
    os.chdir(cwd)
    if ray.get(board.begin.remote(number, ray.get_runtime_context().get_node_id())):
        return STOPPED, ""
    if Path(final).exists():
        return WHOLE, ""
    attempt = begin_attempt(Path(final))
    try:
        status = run_command(step.command(number, str(attempt)), _Reporter(board, number))
    except Interrupted:
        return STOPPED, ""
    except EngineLost:
        raise
    except NeuroexplainError as error:
        return MISTAKE, str(error)
    if status:
        return MISTAKE, f"the command ended with status {status}"
    keep_attempt(attempt, Path(final))
    return WHOLE, ""


class _Reporter:
    """Hands progress to the board once a second, and stops the command if the board says so or is gone."""

    def __init__(self, board: Any, number: int) -> None:
        self._board, self._number = board, number
        self._stage, self._reported_at = "", 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        is_new = progress.stage != self._stage or progress.note is not None
        is_last = progress.total is not None and progress.done >= progress.total
        if not is_new and not is_last and now - self._reported_at < REPORT_EVERY:
            return
        self._stage, self._reported_at = progress.stage, now
        try:
            stops = ray.get(self._board.report.remote(self._number, progress), timeout=30)
        except ray.exceptions.GetTimeoutError:
            return
        except ray.exceptions.RayError as error:  # the driver is gone
            raise Interrupted from error
        if stops:
            raise Interrupted


def _fits(node: dict[str, Any], options: dict[str, Any]) -> bool:
    resources = node["Resources"]
    return bool(node["Alive"]) and all(
        resources.get(name, 0) >= n
        for name, n in (("CPU", options["num_cpus"]), ("GPU", options["num_gpus"]))
    )


def _reason(death: Exception) -> str:
    """Why a task died, in a line."""
    if isinstance(death, ray.exceptions.RayTaskError):
        return str(death).strip().splitlines()[-1]
    kinds = {
        ray.exceptions.WorkerCrashedError: "its process died",
        ray.exceptions.NodeDiedError: "its machine died",
        ray.exceptions.OutOfMemoryError: "its machine ran out of memory",
    }
    name = next((text for kind, text in kinds.items() if isinstance(death, kind)), None)
    return name or str(death).strip().splitlines()[0]
