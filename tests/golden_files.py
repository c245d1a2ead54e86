"""What the golden files should hold, made anew: the schema, prompts filled for one neuron, and every
command's help.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from typer.main import get_command
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.evidence import Exemplar, VocabularyEntry
from neuroexplain.explaining.explainers import EXPLAINERS, narrower_messages
from neuroexplain.explaining.rendering import Mistake, render_mistakes
from neuroexplain.launching.plan import plan_collect, plan_explain
from neuroexplain.launching.slurm import render_scripts
from neuroexplain.llm.engine import Message
from neuroexplain.llm.prompts import load_prompt
from neuroexplain.scorers._questions import TextQuestions, WordQuestions
from neuroexplain.scorers.detection import SCORER as DETECTION
from neuroexplain.scorers.digits import DigitsSimulator
from neuroexplain.scorers.fuzzing import SCORER as FUZZING
from neuroexplain.scorers.intruder import round_text
from neuroexplain.scoring.intruders import IntruderRound
from neuroexplain.scoring.windows import MarkedWindow
from neuroexplain.store.engine import open_store
from neuroexplain.units import UnitId
from tests.fakes import WORDS, tiny_tokenizer

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
TOKENS = {i: VocabularyEntry(i, f" {word}", False) for i, word in enumerate(WORDS)}


class TokenizerOnly:
    """What building a prompt needs of an engine."""

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["no", "yes"])  # as in those of real models


def golden_files() -> dict[Path, str]:
    """Every golden file with the text that it should hold."""
    files = {ROOT / "db" / "schema.sql": schema()}
    for name, text in filled_prompts().items():
        files[GOLDEN / "prompts" / f"{name}.txt"] = text
    for name, text in helps().items():
        files[GOLDEN / "help" / f"{name}.txt"] = text
    for name, text in slurm_scripts().items():
        files[GOLDEN / "slurm" / name] = text
    return files


def slurm_scripts() -> dict[str, str]:
    """The scripts of two launched commands, whose words have spaces, quotes and line breaks."""
    db, cwd = "/shared/my runs/x.db", "/shared/my runs"
    words = [
        "--model",
        "./llama",
        "--dataset",
        "it's *.jsonl",
        "--text-column",
        "two\nlines",
        "--batch-size",
        "64",
    ]
    collect = plan_collect(words, db, Path("/shared/my runs/x.db.collect-1/parts-16"), 16, 1)
    words = ["--layer", "15", "--server", "http://gpu:8000/v1", "--control"]
    controls = ["--scorer", "combined", "--server", "http://gpu:8000/v1"]
    explain = plan_explain(words, controls, db, Path("/shared/my runs/x.db.explain-1/parts-4"), 4, 0)
    scripts = {}
    for command, plan in (("collect", collect), ("explain", explain)):
        folder = str(plan.folder.parent)
        typed = f"neuroexplain launch slurm -- {command} ..."
        options = ["--partition=gpu", "--comment=two words"]
        texts = render_scripts(plan, ["/opt/neuroexplain/bin/neuroexplain"], folder, cwd, options, typed)
        scripts |= {f"{command}-{name}": text for name, text in texts.items()}
    return scripts


def schema() -> str:
    """The statements that the migrations add up to on SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "new.db")
        open_store(file, create=True).close()
        rows = sqlite3.connect(file).execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'explanations_fts_%' "
            "OR type = 'trigger' ORDER BY name"
        )
        return "".join(f"{sql};\n" for (sql,) in rows)


def record(rank: int) -> Exemplar:
    """64 words of which `geese` fires, and the peak, token 32, most."""
    ids = np.array([(3 * rank + 5 * i) % len(WORDS) for i in range(64)], np.uint32)
    ids[32] = WORDS.index("geese")
    acts = np.where(ids == WORDS.index("geese"), 1.0 - rank / 20, -0.1).astype(np.float32)
    acts[32] = 2.0 - rank / 10
    return Exemplar(UnitId(3, 17), "top", rank, rank, 0, 0, 0, float(acts[32]), ids, acts)


def judged_prompts() -> dict[str, str]:
    """What judges are asked of a window whose token `geese` fires."""
    window = tuple(record(0).token_ids[20:52].tolist())
    fires = tuple(place for place, token_id in enumerate(window) if WORDS[token_id] == "geese")
    trial = MarkedWindow("random", 0, "report", 20, window, fires)
    prompts = {}
    for judge in (DETECTION, FUZZING):
        questions = TextQuestions(TokenizerOnly(), load_prompt(judge.prompt_name))  # type: ignore[arg-type]
        (prompt,) = questions.build_prompts("geese", [judge.text_of(trial, TOKENS)])
        prompts[judge.name] = TokenizerOnly.tokenizer.decode(prompt)
    own = IntruderRound("random", 0, "report", 20, window, (trial,) * 4, replace(trial, marked=(3,)), 2)
    questions = TextQuestions(TokenizerOnly(), load_prompt("judge/intruder"), [[0]] * 5)  # type: ignore[arg-type]
    (prompt,) = questions.build_prompts("", [round_text(own, TOKENS)])
    prompts["intruder"] = TokenizerOnly.tokenizer.decode(prompt)
    return prompts


def filled_prompts() -> dict[str, str]:
    """Every prompt as an LLM reads it."""
    records = [record(rank) for rank in (0, 1, 4)]
    prompts = {}
    for explainer in EXPLAINERS.values():
        if explainer.is_bank:  # no LLM reads its prompt file
            continue
        prompt = explainer.load_prompt()
        prompts[explainer.name] = (
            explainer.render(records, TOKENS)
            if prompt is None
            else shown(explainer.messages(prompt, records, TOKENS))
        )
    prompts["narrower"] = shown(narrower_messages(load_prompt("explain/narrower"), "nouns", "geese, gulls"))
    mistakes = render_mistakes([Mistake(record(2), 20, [0, 3, 10, 0], [0, 10, 1, 0])], TOKENS)
    pairs = EXPLAINERS["pairs"]
    prompt, revision = pairs.load_prompt(), load_prompt("explain/revise")
    assert prompt is not None
    prompts["revise"] = shown(
        pairs.revision_messages(prompt, revision, records[:1], TOKENS, "animals", mistakes)[-2:]
    )
    digits = DigitsSimulator(TokenizerOnly())  # type: ignore[arg-type]
    ids, _ = digits.build_prompt("geese", record(3).token_ids[8:12].tolist(), TOKENS)
    prompts["digits"] = TokenizerOnly.tokenizer.decode(ids)
    questions = WordQuestions(TokenizerOnly(), load_prompt("simulate/words"))  # type: ignore[arg-type]
    (prompt,) = questions.build_prompts("geese", ["gander"])
    prompts["words"] = TokenizerOnly.tokenizer.decode(prompt)
    prompts |= judged_prompts()
    return prompts


def shown(messages: list[Message]) -> str:
    return "\n".join(f"### {m.role}\n{m.content}" for m in messages) + "\n"


def helps() -> dict[str, str]:
    """`--help` of every command, 100 columns wide, without colours."""
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    os.environ.pop("NEUROEXPLAIN_DB", None)
    helps = {}
    for name in ("", *sorted(get_command(app).commands)):  # type: ignore[attr-defined]
        text = runner.invoke(app, [name, "--help"] if name else ["--help"], prog_name="neuroexplain").output
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        helps[name or "neuroexplain"] = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    return helps
