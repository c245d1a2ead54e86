"""What people have: every form of file and folder gives the same documents."""

import bz2
import gzip
import json
import lzma
import shutil

import datasets
import pytest
import zstandard

from neuroexplain.corpus.documents import DocumentCounts, read_documents
from neuroexplain.corpus.files import find_files, left_out
from neuroexplain.errors import NeuroexplainError

TEXTS = ['first, "quoted" text', "second text: naïve 日本 🙂", "third\nof two lines"]
ROWS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def read(*names, column="text", counts=None, **options):
    return list(
        read_documents([str(name) for name in names], None, "train", column, None, counts=counts, **options)
    )


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows, separator=","):
    quoted = [[str(row["id"]), '"' + row["text"].replace('"', '""') + '"'] for row in rows]
    return "\n".join(separator.join(cells) for cells in [["id", "text"], *quoted]) + "\n"


FORMS = {
    "x.jsonl": as_lines(ROWS),
    "x.ndjson": as_lines(ROWS),
    "x.JSONL": as_lines(ROWS),
    "x.json": json.dumps(ROWS),
    "x.csv": as_csv(ROWS),
    "x.tsv": as_csv(ROWS, "\t"),
}


@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_documents(tmp_path, name, compression):
    data = FORMS[name].encode()
    file = tmp_path / (name + compression)
    file.write_bytes(COMPRESS[compression](data) if compression else data)
    assert read(file) == TEXTS


@pytest.mark.parametrize("name", ["x.txt", "x.TXT", "x.txt.gz", "x.Txt.ZST", "x.text"])
def test_a_text_file_is_one_document(tmp_path, name):
    data = b"one\ntwo\n"
    compression = next((ending for ending in COMPRESS if name.lower().endswith(ending)), None)
    (tmp_path / name).write_bytes(data if compression is None else COMPRESS[compression](data))
    assert read(tmp_path / name) == ["one\ntwo\n"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.csv"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, name, encoding):
    text = TEXTS[1] if name == "x.txt" else as_lines(ROWS) if name == "x.jsonl" else as_csv(ROWS)
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read(tmp_path / name) == ([TEXTS[1]] if name == "x.txt" else TEXTS)


def test_bytes_that_are_no_utf_8_are_counted(tmp_path):
    (tmp_path / "x.txt").write_bytes("café and naïve \ufffd".encode() + " é".encode("latin-1"))
    counts = DocumentCounts()
    assert read(tmp_path / "x.txt", counts=counts) == ["café and naïve \ufffd \ufffd"]
    assert (counts.n_read, counts.n_undecodable) == (1, 1)
    assert "not UTF-8" in counts.notes()[0]


def test_utf_16_without_a_mark_is_an_error(tmp_path):
    (tmp_path / "x.txt").write_bytes("text".encode("utf-16-le"))
    with pytest.raises(NeuroexplainError, match=r"NUL bytes.*iconv"):
        read(tmp_path / "x.txt")


@pytest.mark.parametrize("rows", [[{"text": None}, *ROWS, {"text": None}], [*ROWS, {"id": 9}]])
def test_rows_without_a_text_are_skipped_and_counted(tmp_path, rows):
    (tmp_path / "x.jsonl").write_text(as_lines(rows))
    counts = DocumentCounts()
    assert read(tmp_path / "x.jsonl", counts=counts) == TEXTS
    assert (counts.n_read, counts.n_without_text) == (3, len(rows) - 3)
    assert f"Skipped {len(rows) - 3} rows" in counts.notes()[0]


def test_nothing_but_rows_without_a_text_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").write_text(as_lines([{"text": None}] * 3))
    with pytest.raises(NeuroexplainError, match="None of the 3 rows"):
        read(tmp_path / "x.jsonl")


def test_an_empty_text_is_a_document(tmp_path):
    (tmp_path / "x.jsonl").write_text(as_lines([{"text": ""}, {"text": "a"}]))
    assert read(tmp_path / "x.jsonl") == ["", "a"]


def test_nested_columns_are_named_with_dots(tmp_path):
    (tmp_path / "x.jsonl").write_text(as_lines([{"data": {"text": text}} for text in TEXTS]))
    assert read(tmp_path / "x.jsonl", column="data.text") == TEXTS
    with pytest.raises(NeuroexplainError, match=r"has data \(nested: data\.text\).*--text-column data\.text"):
        read(tmp_path / "x.jsonl")


def test_rows_under_a_key_are_named_with_a_dot(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"version": "1", "data": ROWS}))
    assert read(tmp_path / "x.json", column="data.text") == TEXTS
    with pytest.raises(NeuroexplainError, match=r"--text-column data\."):
        read(tmp_path / "x.json")


def test_a_column_with_a_dot_in_its_name_is_read_as_it_is(tmp_path):
    (tmp_path / "x.jsonl").write_text(as_lines([{"data.text": text} for text in TEXTS]))
    assert read(tmp_path / "x.jsonl", column="data.text") == TEXTS


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}],
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}],
    ],
)
def test_chats_are_rendered(tmp_path, rows):
    (tmp_path / "x.jsonl").write_text(as_lines(rows))
    counts = DocumentCounts()
    assert read(tmp_path / "x.jsonl", counts=counts) == ["user: Hi\n\nassistant: Yes?"]
    assert counts.n_chats == 1
    shout = lambda messages: "|".join(message["content"].upper() for message in messages)  # noqa: E731
    (column,) = rows[0]
    assert read(tmp_path / "x.jsonl", column=column, render_chat=shout) == ["HI|YES?"]


def test_a_column_of_another_type_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").write_text(as_lines([{"text": 7}]))
    with pytest.raises(NeuroexplainError, match="row 0: column 'text' holds int, not text"):
        read(tmp_path / "x.jsonl")


@pytest.mark.parametrize("path", ["saved", "saved/train"])
def test_a_folder_of_save_to_disk_is_read(tmp_path, path):
    rows = datasets.Dataset.from_list(ROWS)
    others = datasets.Dataset.from_list([{"id": 9, "text": "other"}])
    datasets.DatasetDict({"train": rows, "test": others}).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / path) == TEXTS
    assert [file.suffix for file in find_files([str(tmp_path / "saved")], "test")] == [".arrow"]
    with pytest.raises(NeuroexplainError, match="has no split 'dev'; it has train, test"):
        find_files([str(tmp_path / "saved")], "dev")


def test_metadata_beside_parquet_and_hidden_files_are_left_out(tmp_path):
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir(parents=True)
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "data" / "train.parquet"))
    (tmp_path / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (tmp_path / "statistics.json").write_text('{"rows": 3}')
    (tmp_path / "README.md").write_text("# Data")
    (tmp_path / "data" / "._train.parquet").write_bytes(b"junk")
    shutil.copy(
        tmp_path / "data" / "train.parquet", tmp_path / "data" / ".ipynb_checkpoints" / "train.parquet"
    )
    assert read(tmp_path) == TEXTS
    assert len(left_out([str(tmp_path)])) == 5


def test_json_alone_in_a_folder_is_text(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read(tmp_path) == TEXTS


def test_a_git_lfs_pointer_is_named(tmp_path):
    (tmp_path / "x.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(NeuroexplainError, match=r"pointer of Git LFS.*git lfs pull"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.zst", "x.txt.xz", "x.csv.bz2"])
def test_broken_compression_is_one_message(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is not compressed at all")
    with pytest.raises(NeuroexplainError, match="Cannot read"):
        read(tmp_path / name)
