"""`neuroexplain launch`: a command on many machines."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroexplain.cli.app import app
from neuroexplain.cli.defaults import read_defaults
from neuroexplain.cli.engine_options import engines_of
from neuroexplain.cli.options import scorer_names
from neuroexplain.cli.progress import draw, listening, say
from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress

if TYPE_CHECKING:
    from neuroexplain.config import CollectConfig
    from neuroexplain.launching.plan import Plan
    from neuroexplain.runs import Run

LAUNCHED = ("collect", "explain")
GIVEN_BY_LAUNCH = ("shard", "part", "only_tokenize", "keep_tokens", "dry_run")  # options of these commands
# Options of both `explain` and `score` that say nothing about controls, or are given anyway.
NOT_OF_CONTROLS = (
    *("units", "db", "scorer", "simulator", "score_records", "bills", "control", "null"),
    *("shard", "part", "allow_failed"),
)
SLURM, RAY = "Slurm", "Ray"

Where = Annotated[str, typer.Argument(help="slurm or ray.")]
Words = Annotated[
    list[str],
    typer.Argument(metavar="-- COMMAND ...", help="collect or explain with its options, after two hyphens."),
]
Shards = Annotated[
    int | None,
    typer.Option(help="Parts of the work; by default 8, with ray as many as there are GPUs.", min=1),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        help="GPUs of each part; by default 1 where a part runs a model by itself. With ray 0 if the cluster "
        "has none.",
        min=0,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be run, and do nothing.")]
Submit = Annotated[bool, typer.Option("--submit", help="Submit the jobs.", rich_help_panel=SLURM)]
SbatchOptions = Annotated[
    str,
    typer.Option(
        "--sbatch", help="Options for sbatch in one string, like '--partition=gpu'.", rich_help_panel=SLURM
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A cluster's address; by default RAY_ADDRESS, or the one that runs here, else this machine.",
        rich_help_panel=RAY,
    ),
]


@app.command(
    epilog="Example:  neuroexplain launch slurm --shards 16 --submit -- collect --model ./llama "
    "--dataset 'texts/*.jsonl' --batch-size 64 --db /shared/x.db"
)
def launch(
    where: Where,
    words: Words,
    shards: Shards = None,
    gpus_per_shard: Gpus = None,
    dry_run: DryRun = False,
    submit: Submit = False,
    sbatch: SbatchOptions = "",
    address: Address = None,
) -> None:
    """Collect or explain on many machines that share a folder: parts of the work, joined at the end.

    slurm: scripts for an array of jobs and the jobs that join their parts. ray: the parts are tasks of a Ray
    cluster, restarted elsewhere when a machine dies. The same command goes on where one was stopped.
    """
    if where not in ("slurm", "ray"):
        raise NeuroexplainError(f"There is no {where!r} to launch on: there are slurm and ray.")
    job = _parse(where, words)
    finished = None if dry_run else job.find_finished_run()
    if finished is not None:
        say(f"Nothing to do: run {finished.id} in {job.db} was collected with these options.")
        return
    if where == "slurm":
        plan = job.plan(shards or 8, gpus_per_shard)
        _write_scripts(job, plan, sbatch, submit=submit, dry_run=dry_run)
    else:
        _run_on_ray(job, shards, gpus_per_shard, address, dry_run=dry_run)


@dataclass(frozen=True)
class Job:
    """The command that is launched, parsed as if it was typed alone."""

    words: tuple[str, ...]
    context: typer.Context

    @property
    def db(self) -> str:
        db: str = self.context.params["db"]
        return db if "://" in db else str(Path(db).absolute())

    @property
    def folder(self) -> Path:
        """Where scripts and parts lie: beside the database, else in the working folder."""
        from neuroexplain.launching.plan import folder_name

        beside = Path(self.db) if "://" not in self.db else Path.cwd() / "neuroexplain"
        return beside.with_name(f"{beside.name}.{folder_name(self.words)}")

    @property
    def runs_model(self) -> bool:
        """Whether each part runs a model by itself, rather than asking a server."""
        options = self.context.params
        return self.words[0] == "collect" or any(
            options[name] is not None for name in ("local", "vllm", "simulator_local")
        )

    def plan(self, n_shards: int, gpus: int | None) -> "Plan":
        """The steps. Raises NeuroexplainError if the command cannot be done in parts."""
        from neuroexplain.launching.plan import plan_collect, plan_explain

        n_gpus = int(self.runs_model) if gpus is None else gpus
        folder = self.folder / f"parts-{n_shards}"
        own = self.words[1:]
        if self.words[0] == "collect":
            self._collect_config(f"1/{n_shards}")
            return plan_collect(own, self.db, folder, n_shards, n_gpus)
        return plan_explain(own, self._control_words(), self.db, folder, n_shards, n_gpus)

    def find_finished_run(self) -> "Run | None":
        """The run that is collected already; None if it is not, or if nothing is to be collected.

        A database that exists is opened to write, once: in a shared folder it is without a log afterwards, so
        that many machines can read it.
        """
        from neuroexplain.store.engine import open_store

        if "://" not in self.db and not Path(self.db).exists():
            return None
        with open_store(self.db) as store:
            if self.words[0] != "collect":
                return None
            from neuroexplain.collecting.run import find_finished_run

            return find_finished_run(store, self._collect_config(None))

    def _collect_config(self, shard: str | None) -> "CollectConfig":
        from neuroexplain.cli.collect import collect_config

        options = {**self.context.params, "shard": shard}
        return collect_config(**{k: v for k, v in options.items() if k not in ("db", "only_tokenize")})

    def _control_words(self) -> list[str] | None:
        """The options of `score --controls` after this `explain`; None if one machine would make none."""
        from neuroexplain.scorers.base import SCORERS

        options = self.context.params
        engines_of(self.context)  # raises for options that do not go together
        if options["no_score"]:
            return None
        names = scorer_names(self.context)
        if not (options["control"] or options["null"]):
            names = tuple(name for name in names if not SCORERS.load(name, "--scorer").asks_per_record)
        if not names:
            return None
        words = [f"--scorer={','.join(names)}"]
        score: Any = typer.main.get_group(app).commands["score"]
        for option in score.params:
            value = options.get(option.name)
            if option.name in NOT_OF_CONTROLS or value is None or value == option.default:
                continue
            words.append(option.opts[0] if value is True else f"{option.opts[0]}={value}")
        return words


def _parse(where: str, words: list[str]) -> Job:
    """The command after the two hyphens, with the defaults of neuroexplain.toml."""
    name, *arguments = words
    if name not in LAUNCHED:
        raise NeuroexplainError(
            f"{name!r} cannot be launched. Write  neuroexplain launch {where} -- collect ...  "
            f"or  neuroexplain launch {where} -- explain ..."
        )
    if "--" in arguments:
        raise NeuroexplainError(f"Two hyphens stand before {name} alone: leave out those after it.")
    commands: Any = typer.main.get_group(app).commands
    defaults = read_defaults(app).get(name, {})
    context = commands[name].make_context(f"neuroexplain {name}", list(arguments), default_map=defaults)
    for option in GIVEN_BY_LAUNCH:
        if context.params.get(option):
            raise NeuroexplainError(
                f"--{option.replace('_', '-')} is not for launch, which makes the parts itself. Leave it out."
            )
    return Job(tuple(words), context)


def find_program() -> tuple[str, ...]:
    """The words that start this neuroexplain, on a machine that shares its folder too."""
    script = Path(sys.executable).with_name("neuroexplain")
    return (str(script),) if script.exists() else (sys.executable, "-m", "neuroexplain.cli.main")


def _write_scripts(job: Job, plan: "Plan", sbatch: str, *, submit: bool, dry_run: bool) -> None:
    """Write, and submit if that is asked for, the scripts of Slurm jobs; or print them."""
    from neuroexplain.launching.slurm import render_scripts
    from neuroexplain.llm.vllm import split_words

    typed = f"neuroexplain launch slurm -- {shlex.join(job.words)}"
    options = split_words(sbatch, "--sbatch") if sbatch else []
    scripts = render_scripts(plan, find_program(), str(job.folder), str(Path.cwd()), options, typed)
    if dry_run:
        for name, text in scripts.items():
            print(f"### {name}\n{text}")
        return
    if submit and shutil.which("sbatch") is None:
        raise NeuroexplainError(
            "There is no sbatch on this machine. Write the scripts without --submit, and submit them where "
            f"Slurm is:  bash {shlex.quote(str(job.folder / 'submit.sh'))}"
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts.items():
        (job.folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    say(f"Wrote {', '.join(scripts)} to {job.folder}.")
    if not submit:
        say(f"Submit them:  bash {shlex.quote(str(job.folder / 'submit.sh'))}")
        return
    done = subprocess.run(
        ["bash", str(job.folder / "submit.sh")], check=False, capture_output=True, text=True, env=os.environ
    )
    say(done.stdout.rstrip())
    if done.returncode:
        raise NeuroexplainError(f"sbatch refused: {done.stderr.strip()}")
    say(f"What the jobs print comes to {job.folder}.")


def _run_on_ray(
    job: Job, shards: int | None, gpus: int | None, address: str | None, *, dry_run: bool
) -> None:
    """Run the steps, the shards of each at the same time; what joins them runs here."""
    from neuroexplain.launching.on_ray import connect, run_step
    from neuroexplain.runtime.interrupt import stopping

    if dry_run:
        plan = job.plan(shards or 8, gpus)
        for step in plan.steps:
            numbers = range(1, (step.n_shards or 0) + 1)
            commands = [step.command(n, plan.file(step, n)) for n in numbers] or [step.words]
            for command in commands:
                print(shlex.join(("neuroexplain", *command)))
        return
    with connect(address) as n_gpus:
        stopping.install()  # Ray installs a handler of its own
        own_gpus = (int(job.runs_model) if n_gpus else 0) if gpus is None else gpus
        if own_gpus > n_gpus:
            raise NeuroexplainError(
                f"The cluster has {n_gpus} GPUs, and each part is to have {own_gpus}. "
                "Without GPUs:  --gpus-per-shard 0"
            )
        plan = job.plan(shards or (n_gpus // own_gpus if own_gpus else 8), own_gpus)
        plan.folder.mkdir(parents=True, exist_ok=True)
        for step in plan.steps:
            if step.n_shards is None:
                run_here(step.words)
            else:
                draw(run_step(plan, step, run_here, str(Path.cwd())), gently=True)
    shutil.rmtree(plan.folder)
    with suppress(OSError):
        job.folder.rmdir()  # scripts for Slurm may lie there


def run_here(words: Sequence[str], listener: Callable[[Progress], None] | None = None) -> int:
    """Run a command in this process and return its exit status. The listener gets its progress.

    Raises what the command raises: NeuroexplainError for a mistake.
    """
    import neuroexplain.cli.main  # noqa: F401  (a worker has imported this file alone: all commands register)

    with ExitStack() as stack:
        if listener is not None:
            stack.enter_context(listening(listener))
        status = app(list(words), standalone_mode=False, default_map=read_defaults(app))
    return int(status or 0)
