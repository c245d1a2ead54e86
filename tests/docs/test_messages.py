"""The messages on the troubleshooting page are those of the code: what is there, without what differs."""

import ast
import re

from neuroexplain.evidence import Status
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
DIFFERS = "…"  # on the page, and here for each value that is put into a text


def texts_of_the_code():
    """All texts of the sources."""
    for file in sorted((ROOT / "neuroexplain").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else DIFFERS for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def occurs(message, text):
    """Whether the text has all of the message's pieces, and in between nothing but what differs."""
    pieces = [re.escape(piece) for piece in message.split(DIFFERS)]
    pattern = "".join(pieces[:1] + [f"{DIFFERS}+{piece}" for piece in pieces[1:]])
    return re.search(pattern, text) is not None


def test_every_message_of_the_page_is_one_of_the_code():
    texts = list(texts_of_the_code())
    assert len(MESSAGES) > 25
    assert [message for message in MESSAGES if not any(occurs(message, text) for text in texts)] == []


def test_no_message_is_there_twice():
    assert len(set(MESSAGES)) == len(MESSAGES)


def test_every_status_of_a_failure_is_explained():
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows == {status.value for status in Status} - {Status.OK, Status.NOT_CHOSEN}
