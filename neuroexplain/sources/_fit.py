"""Whether a dictionary belongs to a model: the size of what it reads, and the name it was made for."""

from __future__ import annotations

import re

from neuroexplain.errors import NeuroexplainError
from neuroexplain.sources.dictionaries._open import Member
from neuroexplain.sources.dictionaries.base import Dictionary
from neuroexplain.subject.model import Subject
from neuroexplain.subject.sites import Site, width_at

SAME_MODELS = {"gpt2-small": "gpt2"}  # TransformerLens's names and the hub's


def check_fit(
    subject: Subject, member: Member, dictionary: Dictionary, site: Site, *, any_model: bool
) -> None:
    """Raise NeuroexplainError, naming both, if the dictionary was made for another model than the subject.

    any_model: whether the names may differ, for models that were trained further; the size never may.
    """
    width, model = width_at(subject, site), member.entry.model
    made_for = f" was made for {model} and" if model is not None else ""
    if dictionary.d_in != width:
        raise NeuroexplainError(
            f"{member.place}{made_for} reads {dictionary.d_in:,} numbers at {member.entry.site}, where "
            f"{subject.name} has {width:,}. It is a dictionary of another model, or of another place:  --site"
        )
    if model is None or any_model or plain_name(model) == plain_name(subject.name):
        return
    raise NeuroexplainError(
        f"{member.place} was made for the model {model}, and --model is {subject.name}. If that is the same "
        "model under another name, or was trained further from it:  --force-model"
    )


def plain_name(model: str) -> str:
    """A model's name without its owner and spelling: `meta-llama/Meta-Llama-3-8B` is `llama-3-8b`."""
    name = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower().removesuffix("-hf").removeprefix("meta-")
    return SAME_MODELS.get(name, name)
