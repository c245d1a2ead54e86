"""Cut the demo's corpus from the Brown corpus:  python scripts/make_demo_corpus.py brown.jsonl.gz

Every second document, cut at the last sentence end before 2,500 characters: varied genres, about 600 KB of
text.
"""

import gzip
import json
import sys
from pathlib import Path

LONGEST = 2_500
OUT = Path(__file__).parent.parent / "neuroexplain" / "demo" / "corpus.jsonl.gz"

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as opened:
    documents = [json.loads(line) for line in opened][::2]
lines = []
for document in documents:
    text = document["text"][:LONGEST]
    text = text[: text.rfind(". ") + 1] or text
    lines.append(
        json.dumps({"id": document["id"], "genre": document["genre"], "text": text}, ensure_ascii=False)
        + "\n"
    )
OUT.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
print(f"{len(lines)} documents, {OUT.stat().st_size:,} bytes")
