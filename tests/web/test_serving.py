"""`neuroexplain serve` as a process: it ends when it is told to, whatever its readers do."""

import re
import signal
import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_though_readers_wait_and_nobody_reads_its_log(hostile, stop_signal):
    command = [
        sys.executable,
        "-m",
        "neuroexplain.cli.main",
        "serve",
        "--db",
        str(hostile / "x.db"),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        port = int(re.search(r":(\d+)/", server.stderr.readline())[1])
        readers = []
        for n in range(400):
            reader = socket.create_connection(("127.0.0.1", port), timeout=30)
            reader.sendall(f"GET /{n % 2}/{n % 24}?show=random HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            readers.append(reader)
        for reader in readers[::2]:
            reader.close()
        server.send_signal(stop_signal)
        try:
            assert server.wait(60) == 0
        finally:
            server.kill()
        for reader in readers:
            reader.close()
