"""Every command and every Python block of the README and of the pages runs, one after the other."""

import gzip
import os
import re
import shutil
import signal
import stat
import subprocess
import sys

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from neuroexplain.demo.embedded_model import embedded_model
from neuroexplain.subject.load import load_causal_lm
from tests.docs.answering_server import answering
from tests.docs.pages import ROOT, SERVER_PAGES, list_pages, read_blocks, substitute
from tests.fakes import tiny_subject
from tests.hub_server import Hub

SERVED = "Qwen/Qwen2.5-32B-Instruct"
BLOCKS = [block for page in list_pages() for block in read_blocks(page)]


def make_folder(folder):
    """Where a reader works: a tiny model, a text, and the commands `neuroexplain` and `vllm`."""
    tiny_subject(folder / "tiny", d_mlp=6)
    corpus = gzip.decompress((ROOT / "neuroexplain" / "demo" / "corpus.jsonl.gz").read_bytes())
    (folder / "text.jsonl").write_bytes(b"\n".join(corpus.splitlines()[:300]))
    (folder / "bin").mkdir()
    for name, module in (("neuroexplain", "neuroexplain.cli.main"), ("vllm", "tests.docs.vllm")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    own = {name: value for name, value in os.environ.items() if not name.startswith("NEUROEXPLAIN_")}
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return own | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def save_served_models(folder):
    """`smollm2`, and `random`, a model of one narrow layer with the same tokens."""
    model, tokenizer, _ = load_causal_lm(embedded_model(), "float32", "cpu")
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    narrow = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=model.config.vocab_size, num_key_value_heads=1, **narrow)
    for name, saved in (("smollm2", plain), ("random", LlamaForCausalLM(config))):
        saved.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.mark.timeout(1800)
def test_every_command_that_a_tiny_model_can_run(tmp_path):
    environment = make_folder(tmp_path)
    blocks = [block for block in BLOCKS if block.page not in SERVER_PAGES]
    hub = Hub()
    try:
        environment["HUB"] = " ".join(f"{name}={value}" for name, value in hub.environment(tmp_path).items())
        assert run_blocks(blocks, tmp_path, environment) == []
    finally:
        hub.close()
    assert "jane/neurons" in hub.data_sets


@pytest.mark.model
@pytest.mark.timeout(1800)
def test_every_command_of_the_pages_with_a_server(tmp_path):
    environment = make_folder(tmp_path)
    save_served_models(tmp_path)
    blocks = [block for block in BLOCKS if block.page in SERVER_PAGES]
    with answering(tmp_path / "smollm2", tmp_path / "random", SERVED) as url:
        environment |= {"ANSWERING_SERVER": url, "NEUROEXPLAIN_SERVER": url}
        assert run_blocks(blocks, tmp_path, environment) == []


def run_blocks(blocks, folder, environment):
    """What went wrong, a text a command. The commands follow each other as the pages do."""
    failures, page, kept = [], None, set(folder.iterdir())
    for block in blocks:
        if block.not_run is not None:
            continue
        if block.page != page:
            page = block.page
            remove_all_but_databases(folder, kept)
        if block.language == "toml":
            (folder / "neuroexplain.toml").write_text(block.text)
        for command in [block.text] if block.language == "python" else block.commands:
            spent = sum(os.times()[:4])
            failure = run(substitute(command, block.page), block.language, folder, environment)
            spent = sum(os.times()[:4]) - spent
            place = f"{block.page}:{block.line}  {command.strip()}"
            print(f"{spent:5.1f} s  {place[:110]}{' FAILED' if failure else ''}", flush=True)
            if failure:
                failures.append(f"{place}\n{failure}")
    return failures


def remove_all_but_databases(folder, kept):
    """So that a page begins as its reader does, who has the databases of the pages before."""
    for path in set(folder.iterdir()) - kept:
        if path.is_dir():
            shutil.rmtree(path)
        elif ".db" not in path.suffixes:
            path.unlink()


def run(command, language, folder, environment):
    """What went wrong with a command or Python block; empty if nothing did."""
    if "neuroexplain serve" in command:
        return run_viewer(command, folder, environment)
    argv = [sys.executable, "-c", command] if language == "python" else ["bash", "-c", command]
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return (
        "" if done.returncode == 0 else f"status {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}"
    )


def run_viewer(command, folder, environment):
    """Open the viewer's first page, then end it by Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = ""
    for line in process.stdout:
        printed += line
        if address := re.search(r"http://[\w.:\[\]]+/\S*", line):
            status = httpx.get(address[0]).status_code
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            return (
                "" if status == 200 and process.returncode in (0, 130) else f"{status} {process.returncode}"
            )
    return f"status {process.wait()}: {printed}"
