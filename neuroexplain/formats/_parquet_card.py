"""The card of a Parquet export: README.md, as the Hugging Face hub and people read it (pure).

Names of models, corpora and explainers come from the database, so they are quoted for YAML and for Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neuroexplain.errors import NeuroexplainError
from neuroexplain.formatting import (
    corpus_name,
    explained_by,
    headline_name,
    number,
    percent,
    printable,
    short_name,
)
from neuroexplain.runs import Run
from neuroexplain.score_words import SCORE_NAMES
from neuroexplain.status_words import status_words
from neuroexplain.store.score_summaries import ScoreSummary

PLACE = "FOLDER"  # stands for the data set in a card; `with_name` replaces it when the folder is uploaded
ABOUT = {  # what each table holds
    "neurons": "a unit a row: status (`ok`, or `dead`: it never fires), statistics, and the tokens that it "
    "promotes and suppresses",
    "exemplars": "a record a row: 64 tokens with the unit's activation at each, and where they stand",
    "samples": "what the probabilities of sampled records follow from",
    "background": "activations above 0 in the background, of units that have some",
    "background_segments": "the segments of the background, random ones of `report`",
    "hard": "records of units' look-alikes in `report`, with the unit's own activations there",
    "explanations": "an explanation a row: its text (with its rule and examples, if it is made of these), "
    "explainer, model, prompt, status and reason",
    "scores": "a score a row: value, interval, control, status and reason, joined by `explanation_id`",
    "predictions": "what a scorer predicted from an explanation, with what the scores are computed from",
    "rule_scores": "as `scores`, of an explanation's rule alone",
    "rule_predictions": "as `predictions`, from an explanation's rule alone",
    "segments": "the token ids of 128 tokens of the corpus, and their split",
    "vocabulary": "the subject's tokens by id",
    "prompts": "what explainers and scorers were told, by hash",
}
LICENSE = re.compile("[a-z0-9][a-z0-9.+-]{0,63}")  # an identifier as the hub knows them


@dataclass(frozen=True, slots=True)
class Holdings:
    """What an export holds, in numbers."""

    n_rows: Mapping[str, int]  # by table, without tables that have none
    units: Mapping[str, int]  # by status
    explanations: Sequence[tuple[str, str, str, int]]  # explainer, model, status and their number
    scores: Sequence[ScoreSummary]


def make_card(run: Run, holdings: Holdings) -> str:
    """README.md without a license, which is the user's to choose."""
    parts = [
        _front_matter(run, holdings),
        f"# Neurons of {as_markdown(short_name(run.subject))}",
        _origin(run, holdings),
        "## Tables",
        _tables(holdings),
        "## How to read it",
        _reading(holdings),
        "## Explanations",
        _explanations(holdings),
        "## Scores",
        _scores(run, holdings),
        "## How it was made",
        _making(run),
        "## Licence and citation",
        _citation(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def check_license(license_id: str) -> None:
    """Raises NeuroexplainError if this cannot be an identifier of the hub."""
    if LICENSE.fullmatch(license_id) is None:
        raise NeuroexplainError(
            f"--license {license_id!r} is no identifier of a license. The hub knows mit, cc-by-4.0, "
            "llama3, other and more: https://huggingface.co/docs/hub/repositories-licenses"
        )


def with_license(card: str, license_id: str) -> str:
    """The card with this license in its front matter, in place of another one.

    Raises NeuroexplainError if the card, which a person may have edited, has no front matter.
    """
    opening, separator, rest = card.partition("---\n")
    front, end, text = rest.partition("\n---\n")
    if opening or not separator or not end:
        raise NeuroexplainError(
            "The folder's README.md does not begin with lines between `---`, which --license would go to. "
            "Export to a new folder, or write the license there."
        )
    lines = [line for line in front.split("\n") if not line.startswith("license:")]
    return "\n".join(["---", f"license: {license_id}", *lines, "---", text])


def with_name(card: str, name: str) -> str:
    """The card with the data set's name on the hub in the commands that read it."""
    return card.replace(f'"{PLACE}"', json.dumps(name)).replace(f"hf download {PLACE}", f"hf download {name}")


def as_yaml(text: str) -> str:
    """A double-quoted YAML text on one line."""
    quoted = json.dumps(printable(text), ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in quoted)


def as_markdown(text: str) -> str:
    """Text that Markdown shows as it is: no markup, HTML, link, mention or cell of a table."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#!|&~$@:^=\"])", r"\\\1", printable(text))
    return escaped.replace("www.", r"www\.")


def _front_matter(run: Run, holdings: Holdings) -> str:
    configs = [
        f"- config_name: {name}\n  data_files: {name}/*.parquet"
        + ("\n  default: true" if name == "exemplars" else "")
        for name in holdings.n_rows
    ]
    name = as_yaml("Neurons of " + short_name(run.subject))
    tags = ["interpretability", "neurons", "neuroexplain"]
    lines = [f"pretty_name: {name}", "tags:", *(f"- {tag}" for tag in tags), "configs:", *configs]
    return "\n".join(["---", *lines, "---"])


def _origin(run: Run, holdings: Holdings) -> str:
    corpus = corpus_name(run)
    n_explanations = sum(n for *_, status, n in holdings.explanations if status == "ok")
    text = f" of {as_markdown(corpus)}" if corpus else ""
    return (
        f"What {sum(holdings.units.values()):,} {as_markdown(run.noun)} of "
        f"{as_markdown(short_name(run.subject))} fire on, with {n_explanations:,} explanations of them in "
        f"words: {len(run.layers)} of {run.n_layers} layers (`{_code(run.activation)}`), from "
        f"{run.n_tokens:,} tokens in {run.n_documents:,} documents{text}. Each unit has at most {run.top_k} "
        f"of its strongest records, {run.n_random} random and {run.n_sampled} sampled ones, with one "
        "activation for each token. Written by neuroexplain."
    )


def _tables(holdings: Holdings) -> str:
    rows = [f"| `{name}` | {n:,} | {ABOUT[name]} |" for name, n in holdings.n_rows.items()]
    return "\n".join(
        ["Each table is a configuration.", "", "| table | rows | holds |", "|---|---|---|", *rows]
    )


def _reading(holdings: Holdings) -> str:
    table = "explanations" if "explanations" in holdings.n_rows else "exemplars"
    return (
        f'```python\nfrom datasets import load_dataset\n\n{table} = load_dataset("{PLACE}", "{table}", '
        'split="train")\n```\n\n'
        "All of it as a database, to query, to view and to go on with:\n\n"
        f"```\nhf download {PLACE} --repo-type dataset --local-dir neurons\n"
        "neuroexplain import parquet neurons --db neurons.db\n"
        "neuroexplain serve --db neurons.db\n```\n\n"
        "The hashes in `run.json` are checked by the import."
    )


def _explanations(holdings: Holdings) -> str:
    if not holdings.explanations:
        return "No unit has been explained."
    rows = [
        f"| {as_markdown(explained_by(explainer, model))} | {as_markdown(status_words(status))} | {n:,} |"
        for explainer, model, status, n in holdings.explanations
    ]
    return "\n".join(["| by | status | explanations |", "|---|---|---|", *rows])


def _scores(run: Run, holdings: Holdings) -> str:
    keys = [(run.headline.metric, subset) for subset in run.headline.subsets]
    names = [SCORE_NAMES[key] for key in keys if key in SCORE_NAMES]
    meaning = names[0][1] if names else "A correlation of predicted and true activations."
    subsets = " or ".join(f"`{subset}`" for subset in run.headline.subsets)
    text = (
        f"The score that stands for an explanation is the {headline_name(run.headline)} (`metric` "
        f"`{run.headline.metric}`, `subset` {subsets}, `split` `report`). {meaning} A scorer reads the "
        "explanation and predicts the activation at each token; the score says how well an explanation "
        "predicts, as that scorer reads it. `control` is the score of another unit's explanation on the same "
        "records: a good score is well above it. A score that is undefined has no value, and a status and a "
        "reason: it is not 0. The best of many are overrated, since chance helped them up: sort by `ci_low`. "
        f"{_split_text(run)}"
    )
    if not holdings.scores:
        return text + "\n\nNothing has been scored."
    rows = ["| by | scored by | layers | scores | undefined | mean | above control |", "|" + "---|" * 7]
    groups: dict[tuple[str, str], list[ScoreSummary]] = {}
    for summary in holdings.scores:
        by = explained_by(summary.explainer, summary.model)
        scorer = explained_by(summary.scorer, summary.scorer_model)
        groups.setdefault((by, scorer), []).append(summary)
    for (by, scorer), group in groups.items():
        rows.append(f"| {as_markdown(by)} | {as_markdown(scorer)} | {_group_cells(group)} |")
    return text + "\n\n" + "\n".join(rows)


def _group_cells(group: Sequence[ScoreSummary]) -> str:
    """The scores of several layers in numbers."""
    n, n_compared = sum(s.n_scored for s in group), sum(s.n_compared for s in group)
    mean = sum(s.n_scored * s.mean for s in group if s.mean is not None) / n if n else None
    share = sum(s.n_above_control for s in group) / n_compared if n_compared else None
    n_undefined = sum(s.n_undefined for s in group)
    n_layers = len({s.layer for s in group})
    return f"{n_layers} | {n:,} | {n_undefined:,} | {number(mean)} | {percent(share)}"


def _split_text(run: Run) -> str:
    """Which records may be shown to an explainer, and which are scored."""
    if run.split_rule == "ranks":
        return (
            "Records whose rank modulo 4 is 0 or 1 may be shown to an explainer; scores use those of rank 3 "
            "modulo 4."
        )
    text = (
        "The table `segments` has each segment's split. Records of `explain` may be shown to an explainer; "
        "scores use those of `report`."
    )
    if run.n_sampled:
        text += (
            f" {run.n_sampled} records of each side are sampled, with a probability proportional to their "
            "`size`; the table `samples` has the thresholds."
        )
    return text


def _making(run: Run) -> str:
    facts = {
        "model": run.subject if not run.subject.startswith("/") else run.subject.rsplit("/", 1)[-1],
        "its revision": run.subject_revision or "",
        "precision": run.dtype,
        "corpus": corpus_name(run),
        "seed": str(run.seed),
        "collected": (run.finished_at or "")[:10],
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    lines = [f"- {name}: {as_markdown(value)}" for name, value in facts.items() if value]
    return "\n".join([*lines, "- all options: `run.json`"])


def _citation(run: Run) -> str:
    return (
        "The text of the records comes from the corpus that the run read, under the licence of that corpus; "
        f"what was read of {as_markdown(short_name(run.subject))} is subject to that model's licence.\n\n"
        "Cite this data set by its address and commit, and neuroexplain by its version. Explaining neurons "
        "by an LLM and scoring by simulation is due to Bills et al. (2023), *Language models can explain "
        "neurons in language models*; why scores are of the whole corpus, Oikarinen et al. (2025), arXiv "
        "2506.05774."
    )


def _code(text: str) -> str:
    """Text between single backticks."""
    return printable(text).replace("`", "'")
