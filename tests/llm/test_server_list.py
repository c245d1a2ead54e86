"""Lists of servers: what is read, and what is refused with its place."""

import pytest

from neuroexplain.errors import EngineError
from neuroexplain.llm.server_list import ServerList


def test_urls_are_made_whole_and_taken_once_in_their_order(tmp_path):
    assert ServerList.parse(" gpu-2:8000 ,http://gpu-1/v1/models,http://gpu-2:8000/v1/,").urls == [
        "http://gpu-2:8000/v1",
        "http://gpu-1/v1",
    ]
    file = tmp_path / "servers.txt"
    file.write_bytes(b"\xef\xbb\xbf# two\r\n\r\nhttp://gpu-2:8000  # the second\r\ngpu-1\r\n")
    assert ServerList.read(file).urls == ["http://gpu-2:8000/v1", "http://gpu-1/v1"]


def test_only_a_typed_url_alone_stays_alone(tmp_path):
    (tmp_path / "servers.txt").write_text("gpu-1\n")
    assert ServerList.parse("gpu-1").only_url == "http://gpu-1/v1"
    assert ServerList.parse("gpu-1,gpu-2").only_url is None
    assert ServerList.read(tmp_path / "servers.txt").only_url is None


@pytest.mark.parametrize("line", ["ftp://gpu-1", "http://gpu-1:x", "http://[::1", "two words", "a\x1b[1m"])
def test_what_is_no_url_is_refused_with_its_line(tmp_path, line):
    file = tmp_path / "servers.txt"
    file.write_text(f"gpu-1\n{line}\n")
    with pytest.raises(EngineError, match=r"servers\.txt, line 2: .* is no URL"):
        ServerList.read(file)


def test_a_key_in_a_url_is_refused_and_not_shown(tmp_path):
    file = tmp_path / "servers.txt"
    file.write_text("http://me:secret@gpu-1\n")
    for read in (lambda: ServerList.read(file), lambda: ServerList.parse("gpu-1,http://me:secret@gpu-1")):
        with pytest.raises(EngineError, match="NEUROEXPLAIN_API_KEY") as refused:
            read()
        assert "secret" not in str(refused.value)


def test_a_file_that_holds_no_list_says_so(tmp_path):
    with pytest.raises(EngineError, match="Cannot read the list of servers"):
        ServerList.read(tmp_path / "none.txt")
    for content in (b"# nothing\n", b""):
        (tmp_path / "empty.txt").write_bytes(content)
        with pytest.raises(EngineError, match="lists no server"):
            ServerList.read(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="Cannot read"):
        ServerList.read(tmp_path / "binary.txt")
    (tmp_path / "large.txt").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(EngineError, match="larger than"):
        ServerList.read(tmp_path / "large.txt")


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path):
    file = tmp_path / "servers.txt"
    file.write_text("gpu-1\n")
    servers = ServerList.read(file)
    assert not servers.changed()
    file.write_text("gpu-1\ngpu-2\n")
    assert servers.changed()
    servers.read_again()
    assert (servers.urls, servers.changed()) == (["http://gpu-1/v1", "http://gpu-2/v1"], False)
    file.write_text("")
    assert servers.changed()
    with pytest.raises(EngineError, match="lists no server"):
        servers.read_again()
    assert (len(servers.urls), servers.changed()) == (2, False)
    file.unlink()
    assert not servers.changed()
