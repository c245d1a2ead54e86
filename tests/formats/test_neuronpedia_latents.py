"""Latents leave for Neuronpedia under the names that their dictionaries have there."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from neuroexplain.formats.neuronpedia import export_neuronpedia, find_set_name, source_id
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import list_explained_ids, load_unit
from neuroexplain.units import Source, UnitId


def source(name, width=16_384, kind="sae"):
    encoder = f"{name}?sha256=0123456789abcdef"
    return Source(12, kind, "layers.12", "output", width, "float32", encoder=encoder)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("google/gemma-scope-2b-pt-res/layer_*/width_16k/average_l0_7*", 16_384, "gemmascope-res-16k"),
        ("google/gemma-scope-9b-it-res/layer_9/width_131k/average_l0_13", 131_072, "gemmascope-res-131k"),
        ("/data/gemma-scope-2b-pt-att", 65_536, "gemmascope-att-65k"),
        ("google/gemma-scope-2b-pt-mlp", 1_048_576, "gemmascope-mlp-1m"),
        ("google/gemma-scope-2b-pt-transcoders", 16_384, "gemmascope-transcoder-16k"),
        ("fnlp/Llama3_1-8B-Base-LXR-8x", 32_768, "llamascope-res-32k"),
        ("fnlp/Llama3_1-8B-Base-L15R-32x", 131_072, "llamascope-res-131k"),
        ("fnlp/Llama3_1-8B-Base-LXM-8x", 32_768, None),
        ("./Llama-3-8B-mine", 32_768, None),
    ],
)
def test_published_dictionaries_have_neuronpedias_names(name, width, expected):
    assert find_set_name(source(name, width)) == expected


def test_other_names_are_made_of_the_kind_and_the_folder(latents):
    with open_store(str(latents / "x.db"), read_only=True) as store:
        run = load_run(store)

    def named(kind, *sources):
        return source_id(replace(run, sources=sources), 12)

    assert named("sae", source("/home/me/My SAEs/<b>../layers.12/")) == "12-sae-b-layers-12"
    assert named("sae", source("jane/SAE_v1.5", kind="transcoder")) == "12-transcoder-jane-sae_v1-5"
    assert named("heads", Source(12, "heads", "layers.12", "input", 16, "float32")) == "12-heads"
    assert source_id(run, 3, "res-jb") == "3-res-jb"


def test_latents_are_exported_under_the_name_of_their_set(latents, tmp_path):
    with open_store(str(latents / "x.db"), read_only=True) as store:
        run = load_run(store)
        units = list_explained_ids(store, run.id)
        nearest = {unit: load_unit(store, run, unit).nearest for unit in units}
        list(export_neuronpedia(store, run, units, tmp_path / "out", "res-x"))
    folders = sorted(path for path in (tmp_path / "out" / "model").iterdir())
    assert [folder.name for folder in folders] == ["0-res-x", "1-res-x"]
    for folder in folders:
        described = {x: json.loads((folder / f"{x}.jsonl").read_text()) for x in ("source", "sourceset")}
        assert described["source"]["id"] == folder.name
        assert described["source"]["setName"] == described["sourceset"]["name"] == "res-x"
        assert described["sourceset"]["description"].startswith("sae latents (")
        for file in folder.glob("*/batch-*.jsonl.gz"):
            for line in gzip.decompress(file.read_bytes()).splitlines():
                row = json.loads(line)
                assert row["layer"] == folder.name
                if file.parent.name == "features":
                    unit = UnitId(int(folder.name[0]), int(row["index"]))
                    pairs = zip(row["topkCosSimIndices"], row["topkCosSimValues"], strict=True)
                    assert tuple(pairs) == nearest[unit] != ()
                assert "id" not in row or row["id"].startswith(f"model-{folder.name}-{row['index']}-")


def export(latents, *words):
    command = [sys.executable, "-m", "neuroexplain.cli.main", "export", "neuronpedia", *words]
    done = subprocess.run(
        [*command, "--db", "x.db"], cwd=latents, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_name_that_is_not_known_is_told_with_the_option(latents, tmp_path):
    status, text = export(latents, str(tmp_path / "a"))
    assert status == 0
    assert "--source-set" in text
    assert str(latents) not in text.replace(str(tmp_path), "")  # of a folder only the last two parts
    status, text = export(latents, str(tmp_path / "b"), "--source-set", "res-x")
    assert status == 0
    assert "as 0-res-x to 1-res-x" in text
    assert "--source-set" not in text


@pytest.mark.parametrize("name", ["12-gemmascope-res-16k", "Res", "../x", "a b", "", "x/y", "x\n"])
def test_what_is_no_name_of_a_set_is_refused_before_anything_is_written(latents, tmp_path, name):
    status, text = export(latents, str(tmp_path / "c"), "--source-set", name)
    assert status == 2
    assert "no name of a source set" in text
    assert not (tmp_path / "c").exists()
