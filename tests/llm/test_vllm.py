"""Starting vLLM, played by a script. The real one is in tests/vllm."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from neuroexplain.errors import EngineError, EngineLost
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.vllm import SCALE_OUT, find_command, serve_vllm

FAKE = f"""#!/usr/bin/env python3
import http.server, sys
if {{refuses}} and "{SCALE_OUT}" in sys.argv:
    sys.exit("vllm: error: unrecognized arguments: {SCALE_OUT}")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        listed = b'{{{{"data": [{{{{"id": "m"}}}}]}}}}'
        self.wfile.write(listed if self.path == "/v1/models" else " ".join(sys.argv[1:]).encode())
print("the last line of its log", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


# What a run does with a server, for tests that end it.
RUN = """
import sys, time
from neuroexplain.runtime.interrupt import Interrupted, stopping
from neuroexplain.llm.vllm import serve_vllm
stopping.install()
try:
    with serve_vllm("model", (), sys.argv[1] + " serve", lambda told: print(told, flush=True)):
        print("serving", flush=True)
        time.sleep(60)
except Interrupted:
    sys.exit(stopping.status)
"""


def make_fake(folder, *, refuses=False, more=""):
    fake = folder / "vllm"
    fake.write_text(
        FAKE.format(refuses=refuses).replace(
            "import http.server, sys\n", f"import http.server, sys\n{more}\n"
        )
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return fake


def tells_pid(folder):
    return f"import os; open({str(folder / 'pid')!r}, 'w').write(str(os.getpid()))"


@pytest.mark.parametrize("refuses", [False, True])
def test_distributions_at_chosen_rows_are_offered_where_vllm_knows_them(tmp_path, refuses):
    fake = make_fake(tmp_path, refuses=refuses)
    told = []
    with serve_vllm("model", ("--dtype", "float32"), f"{fake} serve", told.append) as serving:
        url = serving.url
        typed = httpx.get(url).text
    assert typed.startswith("serve model --host 127.0.0.1 --port")
    assert "--dtype float32" in typed
    assert (SCALE_OUT in typed) is not refuses
    assert len([line for line in told if line.startswith("Starting")]) == 1 + refuses
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_what_cannot_start_says_so(tmp_path):
    with (
        pytest.raises(EngineError, match="NEUROEXPLAIN_VLLM"),
        serve_vllm("model", (), str(tmp_path / "none"), print),
    ):
        pass
    with pytest.raises(EngineError, match="empty"):
        find_command(" ", "model")
    with pytest.raises(EngineError, match="There is no vLLM"):
        find_command(None, "model", {"PATH": ""})
    with pytest.raises(EngineError, match='NEUROEXPLAIN_VLLM, "x\'y": No closing quotation'):
        find_command("x'y", "model")


@pytest.mark.parametrize("given", ["--port", "--host=0.0.0.0"])
def test_what_we_choose_ourselves_is_not_taken_from_the_arguments(given):
    with (
        pytest.raises(EngineError, match=f"holds {given}"),
        serve_vllm("model", (given, "1"), "vllm serve", print),
    ):
        pass


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_run_stops_the_server(tmp_path, how, stubborn):
    """A server that does not listen is killed when the signal comes again."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""
    command = [sys.executable, "-c", RUN, str(make_fake(tmp_path, more=f"{tells_pid(tmp_path)}; {deaf}"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        while (line := run.stdout.readline()) != "serving\n":
            assert line, "the run ended before it served"
        run.send_signal(how)
        assert run.stdout.readline() == "Stopping vLLM ...\n"
        if stubborn:
            time.sleep(0.5)
            run.send_signal(how)
        assert run.wait(15) == 128 + how
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_run_that_is_killed_leaves_no_server(tmp_path):
    command = [sys.executable, "-c", RUN, str(make_fake(tmp_path, more=tells_pid(tmp_path)))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        while (line := run.stdout.readline()) != "serving\n":
            assert line, "the run ended before it served"
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
        run.kill()
    deadline = time.monotonic() + 15
    while is_running(pid):
        assert time.monotonic() < deadline, "the server still runs"
        time.sleep(0.1)


def is_running(pid):
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_that_died_is_not_waited_for(tmp_path):
    with serve_vllm("model", (), f"{make_fake(tmp_path, more=tells_pid(tmp_path))} serve", print) as serving:
        engine = ServerEngine(serving.url, exit_report=serving.exit_report)
        assert serving.exit_report() is None
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        with pytest.raises(
            EngineLost,
            match=r"(?s)vLLM ended with status -9.*the last line of its log.*Finished results are kept",
        ):
            engine._transport.post("/v1/completions", {}, None)
        with pytest.raises(EngineError, match="vLLM ended with status -9"):
            ServerEngine(serving.url, exit_report=serving.exit_report)
        engine.close()
