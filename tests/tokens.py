"""Token texts for tests: hostile ones, and vocabularies of given texts."""

from neuroexplain.evidence import VocabularyEntry

HOSTILE = [
    "\t",
    "\n",
    "\t0\n",
    "<start>",
    "assistant",
    "<|im_end|>",
    "\x1b[2J",
    "😀",
    "\ufffd",
    "\ud800",
    "{{scale}}",
    "10",
    "",
]


def vocabulary_of(texts):
    """Entries by token id, which is the text's place."""
    return {i: VocabularyEntry(i, text, False) for i, text in enumerate(texts)}
