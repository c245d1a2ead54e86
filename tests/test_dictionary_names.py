"""A latent's dictionary is named wherever the latent is shown, without the folders above it."""

import json

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from neuroexplain.cli.main import app
from neuroexplain.formats.site import FORMAT as SITE
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.units import Source, UnitId
from neuroexplain.web.app import make_app
from neuroexplain.web.urls import UrlBuilder


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        (
            "google/gemma-scope-2b-pt-res/layer_*/width_16k?sha256=1",
            "google/gemma-scope-2b-pt-res/layer_*/width_16k",
        ),
        ("/home/jane/saes/layers.3/?sha256=1", "saes/layers.3"),
        ("./a?b?input_scale=0.5&sha256=1", "./a?b"),
        ("of a plugin", "of a plugin"),
        (None, None),
    ],
)
def test_the_name_is_as_it_was_given_without_the_machines_folders(encoder, name):
    assert Source(0, "sae", None, "output", 4, "float32", encoder=encoder).dictionary == name


def test_it_is_on_the_page_in_the_terminal_in_json_and_in_the_site(latents, tmp_path):
    db, name = str(latents / "x.db"), f"{latents.name}/saes"

    def typed(*words):
        result = CliRunner().invoke(app, [*words, "--db", db])
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    assert f"its dictionary: {name}: 3.0 latents are active" in typed("show", "1:2")
    assert f"layer 1, {name}: 3.0 latents are active" in typed("runs")
    shown = json.loads(typed("show", "1:2", "--json"))
    assert shown["source"]["dictionary"] == shown["run"]["sources"][0]["dictionary"] == name
    with open_store(db, read_only=True) as store:
        run, client = load_run(store), TestClient(make_app(store))
        pages = [client.get(UrlBuilder(None).unit(UnitId(1, 2))).text, client.get("/").text]
        list(SITE.write(store, run, [UnitId(1, 2)], tmp_path / "site"))
    files = [tmp_path / "site" / "index.html", *(tmp_path / "site" / "data" / "neurons").iterdir()]
    pages += [file.read_text() for file in files]
    assert len(pages) == 4
    for page in pages:
        assert f"{name}: 3.0 latents are active" in page
