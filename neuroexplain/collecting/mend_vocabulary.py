"""Write the vocabulary of finished runs anew, where an earlier version stored texts without their spaces."""

from __future__ import annotations

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runs import Run
from neuroexplain.store.engine import Store
from neuroexplain.store.runs import list_runs
from neuroexplain.store.save_collected import save_vocabulary
from neuroexplain.subject.tokenizer import load_tokenizer, tokenizer_sha256, vocabulary_entries


def mend_vocabularies(store: Store, name: str, *, trust_remote_code: bool = False) -> list[Run]:
    """Store the bytes and texts of all tokens, for each run of this tokenizer. Returns those runs.

    Raises NeuroexplainError if the tokenizer cannot be loaded, or if no run was read with it.
    """
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    sha256 = tokenizer_sha256(tokenizer)
    runs = list_runs(store)
    matching = [run for run in runs if run.tokenizer_sha256 == sha256]
    if not matching:
        subjects = ", ".join(dict.fromkeys(run.subject for run in runs)) or "none"
        raise NeuroexplainError(
            f"No run of {store.name} was read with the tokenizer {name}: it holds runs of {subjects}. "
            "Give the tokenizer of one of them."
        )
    entries = vocabulary_entries(tokenizer)
    for run in matching:
        save_vocabulary(store, run.id, entries)
    return matching
