"""Starting vLLM: what is typed, and an older one that does not know the newest option. The real one is in tests/vllm."""

import stat

import httpx
import pytest

from neuroexplain.errors import EngineError
from neuroexplain.llm.vllm import OFFERS, find_command, serve_vllm

FAKE = f"""#!/usr/bin/env python3
import http.server, sys
if {{refuses}} and "{OFFERS}" in sys.argv:
    sys.exit("vllm: error: unrecognized arguments: {OFFERS}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(" ".join(sys.argv[1:]).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("refuses", [False, True])
def test_distributions_at_chosen_rows_are_offered_where_vllm_knows_them(tmp_path, refuses):
    fake = tmp_path / "vllm"
    fake.write_text(FAKE.format(refuses=refuses))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    told = []
    with serve_vllm("model", ("--dtype", "float32"), f"{fake} serve", told.append) as url:
        typed = httpx.get(url).text
    assert typed.startswith("serve model --host 127.0.0.1 --port")
    assert "--dtype float32" in typed
    assert (OFFERS in typed) is not refuses
    assert len(told) == 1 + refuses
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_what_cannot_start_says_so(tmp_path):
    with pytest.raises(EngineError, match="NEUROEXPLAIN_VLLM"), serve_vllm("model", (), str(tmp_path / "none"), print):
        pass
    with pytest.raises(EngineError, match="empty"):
        find_command(" ", "model")
    with pytest.raises(EngineError, match="There is no vLLM"):
        find_command(None, "model", {"PATH": ""})
