"""Documents as tokens: one EOS, chats by the tokenizer's template, and what was skipped is said."""

import json

import numpy as np
import pytest

from neuroexplain.config import CollectConfig
from neuroexplain.corpus.tokenizing import tokenize, write_tokens
from tests.fakes import tiny_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} says {{ m.content }} {% endfor %}"
CHAT = [{"role": "user", "content": "the river"}, {"role": "assistant", "content": "the mill"}]


def decoded(tokenizer, config, folder):
    """(the corpus as text, the notes)."""
    notes = []
    writing = write_tokens(config, tokenizer, folder / "x.tokens")
    while True:
        try:
            progress = next(writing)
        except StopIteration as end:
            stream = end.value
            break
        notes += [progress.note] if progress.note else []
    ids = stream.rows(np.arange(stream.n_segments))
    return tokenizer.decode(ids.ravel().tolist()), notes


def test_a_document_ends_with_one_eos():
    from tokenizers.processors import TemplateProcessing

    plain, adding = tiny_tokenizer(), tiny_tokenizer()
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", adding.eos_token_id)]
    )
    assert adding("the river").input_ids[-1] == adding.eos_token_id
    own, others = (next(tokenize(["the river"], tokenizer)) for tokenizer in (plain, adding))
    assert own.tolist() == others.tolist()
    assert own.tolist().count(plain.eos_token_id) == 1


@pytest.mark.parametrize("template", [None, TEMPLATE, "{{ raise_exception('roles must alternate') }}"])
def test_chats_are_rendered_by_the_template_or_joined(tmp_path, template):
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = template
    (tmp_path / "x.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 100)
    config = CollectConfig(model="m", dataset=(str(tmp_path / "x.jsonl"),))
    text, notes = decoded(tokenizer, config, tmp_path)
    expected = (
        "user says the river assistant says the mill " if template == TEMPLATE else "user: the river\n\n"
    )
    assert text.startswith(f"<s>{expected}")  # one BOS, though the template has it too
    note = next(note for note in notes if "chats" in note)
    assert note.startswith("Rendered 100 chats by " + ("joining" if template is None else "the tokenizer's"))


def test_skipped_rows_and_files_are_said(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"text": None}, *[{"text": "the river ran past the mill"}] * 100]
    (tmp_path / "data" / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data" / "README.md").write_text("about")
    config = CollectConfig(model="m", dataset=(str(tmp_path / "data"),))
    _, notes = decoded(tiny_tokenizer(), config, tmp_path)
    assert any("Skipped 1 rows without a text; 100 have one." in note for note in notes)
    assert any("Left out 1 files of the named folders" in note and "README.md" in note for note in notes)
