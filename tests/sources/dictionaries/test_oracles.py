"""Folders that other libraries saved, and what those computed: scripts/record_dictionary_oracles.py."""

import json
from pathlib import Path

import pytest
import torch

from neuroexplain.sources._choice import Choice
from neuroexplain.sources._encoding import encode, predict
from neuroexplain.sources.dictionaries._open import find_members, read_member

ORACLES = Path(__file__).parent / "oracles"
RECORDED = json.loads((ORACLES / "outputs.json").read_text())
FACTOR = 0.4  # that the library folded into the one dictionary that needs it


@pytest.mark.parametrize("at_once", [2, 6])
@pytest.mark.parametrize("name", RECORDED["outputs"])
def test_latents_and_predictions_are_those_of_the_library(name, at_once):
    kind = "transcoder" if "transcoder" in name or name.endswith("_skip") else "sae"
    choice = Choice(str(ORACLES / name), input_scale=FACTOR if "factor" in name else None)
    members = find_members(choice, kind)
    assert list(members) == [1]
    assert members[1].entry.model == "tiny"
    dictionary = read_member(members[1], choice)
    values = torch.tensor(RECORDED["inputs"])[None]
    latents, predicted = (torch.tensor(part) for part in RECORDED["outputs"][name])
    ours = torch.cat([acts for _, acts in encode(dictionary, values, at_once)], dim=-1)[0]
    torch.testing.assert_close(ours, latents, rtol=1e-5, atol=1e-5)
    assert 0 < (ours > 0).float().mean() < 1
    torch.testing.assert_close(predict(dictionary, values, at_once)[0], predicted, rtol=1e-5, atol=1e-5)


def test_every_folder_of_the_oracles_has_outputs():
    folders = {path.name for path in ORACLES.iterdir() if path.is_dir()}
    assert folders == set(RECORDED["outputs"])
    assert {name.split("_")[0] for name in folders} == {"sae", "sparsify", "dictionary"}
