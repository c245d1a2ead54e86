"""Steps -> the scripts of Slurm jobs (pure): a script a step, and one that submits them in their order.

Options stand on sbatch's command line and not in #SBATCH lines, which cannot hold every path. Each job begins
in the folder where `neuroexplain launch` was typed, so relative paths mean the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from neuroexplain.launching.plan import Plan, Step

TASK = '"$SLURM_ARRAY_TASK_ID"'


def render_scripts(
    plan: Plan, program: Sequence[str], folder: str, cwd: str, options: Sequence[str], typed: str
) -> dict[str, str]:
    """The texts of the scripts by file name; `submit.sh` submits the others, which lie in `folder`.

    program: the words that start neuroexplain. options: further words for sbatch, of every job. typed: the
    command that these scripts are for.
    """
    is_last = {step.name: step is plan.steps[-1] for step in plan.steps}
    scripts = {
        f"{step.name}.sh": _job(plan, step, program, cwd, clean_up=is_last[step.name]) for step in plan.steps
    }
    return scripts | {"submit.sh": _submit(plan, folder, options, typed)}


def _job(plan: Plan, step: Step, program: Sequence[str], cwd: str, *, clean_up: bool) -> str:
    lines = ["#!/bin/bash", f"# {_purpose(step)}", "set -euo pipefail", f"cd {shlex.quote(cwd)}"]
    words = [shlex.quote(word) for word in (*program, *step.words)]
    if step.n_shards is not None:
        before, after = plan.file(step, "/").split("/.db")[0], ".db"
        words += ["--shard", f"{TASK}/{step.n_shards}"]
        words += [step.file_option, f"{shlex.quote(before)}{TASK}{after}"]
    lines.append(" ".join(words) if clean_up else "exec " + " ".join(words))
    if clean_up:
        lines.append("# What the parts held is in the database now.")
        lines.append(f"rm -r -- {shlex.quote(str(plan.folder))}")
    return "\n".join(lines) + "\n"


def _purpose(step: Step) -> str:
    if step.n_shards is None:
        return "By hand:  bash this file"
    return f"By hand, the first of {step.n_shards}:  SLURM_ARRAY_TASK_ID=1 bash this file"


def _submit(plan: Plan, folder: str, options: Sequence[str], typed: str) -> str:
    """Every job waits for the one before; if that fails, it is cancelled."""
    comment = " ".join(typed.split("\n"))
    lines = ["#!/bin/bash", f"# {comment}", "set -euo pipefail", f"cd {shlex.quote(folder)}"]
    before = ""
    for step in plan.steps:
        words = ["sbatch", "--parsable", f"--job-name=neuroexplain-{step.name}"]
        if step.n_shards is not None:
            words += [f"--array=1-{step.n_shards}", "--requeue", "--output=%x-%A-%a.txt"]
        else:
            words.append("--output=%x-%j.txt")
        if step.gpus:
            words.append(f"--gres=gpu:{step.gpus}")
        if before:
            words += [f'--dependency="afterok:${before}"', "--kill-on-invalid-dep=yes"]
        words += [shlex.quote(option) for option in options]
        before = step.name.replace("-", "_")
        lines.append(f"{before}=$({' '.join(words)} {step.name}.sh)")
        lines.append(f'echo "{step.name}: job ${before}"')
    return "\n".join(lines) + "\n"
