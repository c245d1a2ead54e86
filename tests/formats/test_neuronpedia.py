"""The folders for Neuronpedia fit its schema and importer of August 2026."""

import gzip
import json
from dataclasses import replace

import pytest

from neuroexplain.formats.neuronpedia import CREATOR, export_neuronpedia, sampled_intervals
from neuroexplain.lookup import load_page
from neuroexplain.stable_hash import stable_hash
from neuroexplain.store.engine import open_store
from neuroexplain.store.runs import load_run
from neuroexplain.store.units import list_explained_ids

# The columns of its tables that these rows fill. Those in NOT_NULL reject a null even if they have a default.
COLUMNS = {
    "features": "modelId layer index creatorId maxActApprox frac_nonzero pos_str pos_values neg_str "
    "neg_values freq_hist_data_bar_heights freq_hist_data_bar_values",
    "activations": "id modelId layer index creatorId tokens values maxValue maxValueTokenIndex minValue "
    "dataSource binMin binMax binContains",
    "explanations": "id modelId layer index authorId description typeName explanationModelName",
}
NOT_NULL = {
    "features": "modelId layer index frac_nonzero",
    "activations": "id modelId layer index creatorId maxValue maxValueTokenIndex minValue",
    "explanations": "id modelId layer index authorId description",
}


@pytest.fixture(scope="module")
def exported(hostile, tmp_path_factory):
    folder = tmp_path_factory.mktemp("neuronpedia") / "out"
    with open_store(str(hostile / "x.db"), read_only=True) as store:
        run = load_run(store)
        neurons = list_explained_ids(store, run.id)
        list(export_neuronpedia(store, run, neurons, folder))
        yield folder, [load_page(store, run, n) for n in neurons]


def rows(folder, table):
    files = sorted(folder.glob(f"model/*/{table}/batch-*.jsonl.gz"))
    return [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]


@pytest.mark.parametrize("table", COLUMNS)
def test_every_line_has_exactly_the_columns_of_its_table(exported, table):
    table_rows = rows(exported[0], table)
    assert table_rows
    for row in table_rows:
        assert " ".join(row) == COLUMNS[table]
        assert all(row[name] is not None for name in NOT_NULL[table].split())
        assert isinstance(row["index"], str)


def test_each_layer_is_a_source_with_what_its_rows_refer_to(exported):
    folder, _ = exported
    sources = sorted(path.name for path in (folder / "model").iterdir())
    assert sources == ["0-mlp-act", "1-mlp-act"]
    for name in sources:
        descriptions = {
            kind: json.loads((folder / "model" / name / f"{kind}.jsonl").read_text())
            for kind in ("release", "model", "sourceset", "source")
        }
        assert (
            descriptions["model"]["id"]
            == descriptions["source"]["modelId"]
            == descriptions["sourceset"]["modelId"]
            == "model"
        )
        assert descriptions["source"]["id"] == name
        assert descriptions["source"]["setName"] == descriptions["sourceset"]["name"] == "mlp-act"
        assert descriptions["sourceset"]["releaseName"] == descriptions["release"]["name"]
        assert {row["creatorId"] for row in descriptions.values()} == {CREATOR}
        assert descriptions["model"]["neuronsPerLayer"] == 24
    for table in COLUMNS:
        assert {row["layer"] for row in rows(folder, table)} <= set(sources)
    config = {
        name: [json.loads(x)["name"] for x in (folder / "config" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("explanation_type", "explanation_model_type")
    }
    assert {row["typeName"] for row in rows(folder, "explanations")} == set(config["explanation_type"])
    assert {row["explanationModelName"] for row in rows(folder, "explanations")} == set(
        config["explanation_model_type"]
    )


def test_activations_are_the_top_records_with_the_mark_of_the_strongest(exported):
    folder, pages = exported
    activations = [row for row in rows(folder, "activations") if row["dataSource"] != "sampled"]
    expected = [(page, x) for page in pages for x in page.unit.exemplars if x.kind in ("top", "bottom")]
    assert len(activations) == len(expected) == len({row["id"] for row in activations})
    for row, (page, x) in zip(activations, expected, strict=True):
        assert row["values"] == x.activations.tolist()
        assert row["tokens"] == [text.replace("\0", "\ufffd") for text in page.texts(x)]
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"])
        assert (row["binMin"], row["binContains"]) == (-1, -1)
        assert row["binMax"] == max(
            float(y.activations.max()) for y in page.unit.exemplars if y.kind == "top"
        )


def test_sampled_records_have_intervals_with_the_share_of_the_corpus_tokens_in_them(exported):
    folder, pages = exported
    activations = rows(folder, "activations")
    for page in pages:
        own = [
            row
            for row in activations
            if (row["layer"], row["index"]) == (f"{page.unit.id.layer}-mlp-act", str(page.unit.id.index))
            and row["dataSource"] == "sampled"
        ]
        records = {f"sampled-{x.rank}": x for x in page.unit.exemplars if x.kind == "sampled"}
        assert {"-".join(row["id"].rsplit("-", 2)[1:]) for row in own} == set(records)
        intervals = list(dict.fromkeys((row["binMin"], row["binMax"], row["binContains"]) for row in own))
        assert len(intervals) >= 2
        assert [low for low, _, _ in intervals[:-1]] == [high for _, high, _ in intervals[1:]]
        for number, (low, high, share) in enumerate(intervals):
            n_tokens = n_inside = 0.0
            segments = set()
            for x in page.unit.exemplars:
                if x.kind in ("random", "sampled") and x.segment not in segments:
                    segments.add(x.segment)
                    half = 32 * (stable_hash(page.run.seed, "half", x.segment) % 2)
                    for value in x.activations[half : half + 32].tolist():
                        n_tokens += 1 / page.probability(x)
                        is_last = number == 0 and value == high
                        n_inside += (low <= value < high or is_last) / page.probability(x)
            assert share == pytest.approx(n_inside / n_tokens, abs=1e-9)
            inside = [row for row in own if row["binMin"] == low]
            assert all(low <= row["maxValue"] <= high for row in inside)
            assert min(row["maxValue"] for row in inside) == low


def test_the_negative_side_has_the_mirrored_intervals(exported):
    page = exported[1][0]
    mirrored = [
        replace(
            x,
            kind={"top": "bottom"}.get(x.kind, x.kind),
            activation=-x.activation,
            activations=-x.activations,
            side=None if x.side is None else "negative",
        )
        for x in page.unit.exemplars
    ]
    other = replace(
        page,
        unit=replace(page.unit, exemplars=tuple(mirrored)),
        probabilities={(key, "negative"): p for (key, _), p in page.probabilities.items()},
    )
    own, negative = sampled_intervals(page, "positive"), sampled_intervals(other, "negative")
    assert [(-a.high, -a.low, a.share) for a, _ in negative] == [(a.low, a.high, a.share) for a, _ in own]
    assert [[x.rank for x in group] for _, group in negative] == [[x.rank for x in group] for _, group in own]
