"""A real vLLM serving SmolLM2. `make test-vllm` sets both up; without them these tests are left out of `make test`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuroexplain.errors import EngineError
from neuroexplain.llm.engine import Message
from neuroexplain.llm.local import LocalEngine
from neuroexplain.llm.server import ServerEngine
from neuroexplain.llm.simulator import DigitsSimulator
from neuroexplain.llm.vllm import serve_vllm
from neuroexplain.types import VocabularyEntry
from tests.fakes import tiny_subject, words

pytestmark = pytest.mark.vllm

ENVIRONMENT = Path(__file__).parent.parent.parent / ".venv-vllm"
COMMAND = f"{ENVIRONMENT}/bin/python -m vllm.entrypoints.openai.api_server"
MODEL = str(ENVIRONMENT / "smollm2")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ARGUMENTS = ("--dtype", "float32", "--max-model-len", "4096")


@pytest.fixture(scope="module")
def url():
    with serve_vllm(MODEL, ARGUMENTS, COMMAND, print) as found:
        yield found


def test_the_server_answers_as_the_local_engine_does(url):
    server, local = ServerEngine(url), LocalEngine(MODEL, dtype="float32")
    asked = [Message("user", "Name the capital of France in one word.")]
    assert server.generate(asked, max_tokens=8, temperature=0.0, seed=0).text == (
        local.generate(asked, max_tokens=8, temperature=0.0, seed=0).text
    )


def test_levels_from_the_server_are_the_exact_ones_but_for_the_cut(url):
    vocabulary = {i: VocabularyEntry(i, text, False) for i, text in enumerate([" she", " bought", "\t", " two", "<start>"])}
    served = DigitsSimulator(ServerEngine(url)).simulate("buying and selling", range(5), vocabulary)
    exact = DigitsSimulator(LocalEngine(MODEL, dtype="float32")).simulate("buying and selling", range(5), vocabulary)
    assert served.digit_mass is not None
    assert exact.digit_mass is not None
    assert np.all(served.digit_mass <= exact.digit_mass + 1e-3)
    for level, mass, true, whole in zip(served.levels, served.digit_mass, exact.levels, exact.digit_mass, strict=True):
        if mass > whole - 1e-3:  # nothing was cut
            assert level == pytest.approx(true, abs=0.02)


def test_a_wrong_name_lists_what_is_served(url):
    with pytest.raises(EngineError, match=r"it serves .*smollm2"):
        ServerEngine(url, "gpt-none")


def test_a_server_that_does_not_come_up_shows_its_log(tmp_path):
    with (
        pytest.raises(EngineError, match=r"(?s)vLLM ended with status.*log:\n.*"),
        serve_vllm(str(tmp_path), (), COMMAND, print),
    ):
        pass


def test_explain_with_vllm_is_one_command(tmp_path):
    tiny_subject(tmp_path / "model")
    texts = [words(600, seed=n) for n in range(12)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def run(*typed):
        command = [sys.executable, "-m", "neuroexplain.cli.main", *typed, "--db", "x.db"]
        environment = {**os.environ, "NEUROEXPLAIN_VLLM": COMMAND}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    assert run("collect", "--model", "model", "--dataset", "text.jsonl").returncode == 0
    done = run("explain", "--neurons", "0:3", "--vllm", MODEL, "--vllm-args", " ".join(ARGUMENTS))
    assert done.returncode == 0, done.stderr
    page = json.loads(run("show", "0:3", "--json").stdout)
    explanation = page["explanations"][0]
    assert (explanation["explainer"], explanation["status"]) == ("pairs", "ok")
    assert {s["simulator"] for s in explanation["scores"]} == {"digits"}
    assert all(len(s["digit_mass"]) == 32 for s in explanation["simulations"])
    assert run("verify").returncode == 0
    left = subprocess.run(["pgrep", "-f", f"api_server --model {MODEL}.*{tmp_path.name}"], capture_output=True, check=False)
    assert left.stdout == b""
