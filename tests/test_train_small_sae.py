"""The script that trains small SAEs, on a tiny model: both of its folders hold the same latents."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuroexplain.sources._choice import Choice
from neuroexplain.sources._latents import encoder_of
from neuroexplain.sources.base import SOURCES, find_sources
from neuroexplain.subject.load import load_subject
from tests.fakes import tiny_subject, words

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_small_sae.py"
WIDTH, K = 48, 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the script's dictionaries, what it printed, and its model."""
    folder = tmp_path_factory.mktemp("trained")
    model = tiny_subject(folder / "model")
    texts = [json.dumps({"text": words(800, seed=n)}) for n in range(20)]
    (folder / "text.jsonl").write_text("\n".join(texts))
    command = [sys.executable, SCRIPT, folder / "saes", "--model", model, "--layer", "1", "--device", "cpu"]
    command += ["--dataset", folder / "text.jsonl", "--width", WIDTH, "--k", K, "--segments", 60]
    command += ["--steps", 450, "--batch", 128]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "saes", done, load_subject(str(model), "float32")


def opened(subject, folder):
    kind = SOURCES.load("sae").with_dictionary(Choice(str(folder)), any_model=False)
    return kind, find_sources(subject, kind, "sae", kind.layers())[1]


def test_both_folders_give_the_same_latents(trained):
    folder, _, subject = trained
    values = torch.randn(2, 128, 16)
    latents = []
    for name in ("sae_lens", "sparsify"):
        kind, source = opened(subject, folder / name)
        assert (source.module, source.side, source.width) == ("layers.1", "output", WIDTH)
        latents.append(torch.cat([acts for _, acts in kind.encode(subject, source, values)], dim=-1))
        assert torch.allclose(kind.write_vectors(subject, source).norm(dim=1), torch.ones(WIDTH), atol=1e-5)
    assert torch.equal(*latents)
    assert int((latents[0] > 0).sum(dim=-1).max()) == K


def test_it_is_the_dictionary_that_its_formula_says(trained):
    folder, _, subject = trained
    dictionary, _ = encoder_of(subject, opened(subject, folder / "sae_lens")[1])
    x = torch.randn(5, 16)
    z = (x - dictionary.output_bias) @ dictionary.encoder.T + dictionary.bias
    kept = z * (z >= z.topk(K, dim=1).values[:, -1:]) * (z > 0)
    kind, source = opened(subject, folder / "sparsify")
    own = torch.cat([acts for _, acts in kind.encode(subject, source, x[None])], dim=-1)[0]
    assert torch.allclose(own, kept, atol=1e-5)


def test_it_learns_and_prints_how_well(trained):
    _, done, _ = trained
    line = r"3\.0 latents are active at a token, (\d+)% at none of 4,096 tokens; (0\.\d+) of the variance"
    (silent, explained), again = re.findall(line, done.stdout)
    assert (silent, explained) == again
    assert int(silent) < 50
    assert float(explained) > 0.7
    before = float(re.search(r"step 200: (\S+) explained", done.stderr)[1])
    assert before > 0.5


def test_too_little_text_is_told(trained, tmp_path):
    (tmp_path / "text.txt").write_text("few words")
    model = trained[0].parent / "model"
    command = [sys.executable, SCRIPT, tmp_path / "out", "--model", model, "--dataset", tmp_path / "text.txt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "more than 64 are needed" in done.stderr
