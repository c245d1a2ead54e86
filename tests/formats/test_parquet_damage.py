"""A damaged Parquet export is refused with the name of the file, and nothing of it stays in the store."""

import shutil
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuroexplain.errors import NeuroexplainError
from neuroexplain.formats._parquet_import import import_parquet
from neuroexplain.runs import Run
from neuroexplain.store.runs import list_runs
from neuroexplain.units import Source
from tests.fakes import made_check
from tests.formats.parquet_changes import change_run_json, change_table

SOURCE = asdict(Source(0, "mlp", None, "output", 24, "float32"))
TABLES = (
    "vocabulary",
    "segments",
    "neurons",
    "exemplars",
    "samples",
    "explanations",
    "predictions",
    "scores",
    "prompts",
)


@pytest.mark.parametrize("table", TABLES)
def test_a_file_that_is_missing_or_has_changed_is_named(back, folder, table):
    (first, *_) = sorted((folder / table).glob("*.parquet"))
    whole = first.read_bytes()
    for damage, message in (
        (lambda: first.write_bytes(whole[:-9] + b"x" + whole[-8:]), "changed since it was exported"),
        (lambda: first.rename(first.with_name("zzz.parquet")), "is missing"),
        (lambda: first.write_bytes(whole), r"zzz\.parquet is damaged: it does not belong"),
    ):
        damage()
        with pytest.raises(NeuroexplainError, match=f"{table}/.* is damaged: .*{message}|{message}"):
            list(import_parquet(back, folder))
        assert list_runs(back) == []


@pytest.mark.parametrize(
    "changed",
    [
        *(
            {name: None}
            for name in Run.__dataclass_fields__
            if name not in ("subject_revision", "finished_at")
        ),
        *Run.__dataclass_fields__,
        *({"layers": layers} for layers in ("abc", [], [0, 0], [0, 1, 2], [-1], [[0]], [True])),
        *({"sources": [{**SOURCE, "width": width}]} for width in (-1, 0, "x", 1.5, 1000, 1 << 62, 1 << 99)),
        *(
            {"sources": sources}
            for sources in ("x", [], [1], [SOURCE, SOURCE], [{**SOURCE, "side": "up"}], [{"layer": 0}])
        ),
        *({"format": 1, "d_mlp": d_mlp} for d_mlp in (-1, 0, "x", 1.5, 1000, 1 << 62, 1 << 99)),
        *(
            {"n_layers": 1 << 62, "layers": [5]},
            {"subject": ["x"]},
            {"dtype": "int4"},
            {"activation": ""},
            {"files": 3},
        ),
        *({"checks": checks} for checks in (3, [{}], [asdict(made_check()) | {"mean_margin": None}])),
        *(
            {"checks": [asdict(made_check()) | changed]}
            for changed in ({"n_explanations": 0}, {"n_won": 13}, {"n_won": -1}, {"n_neurons": 1 << 40})
        ),
        *({"config": {"segment_stride": stride}} for stride in ("x", 0, None)),
        *({"split_rule": rule} for rule in ("x", 3, "ranks")),
        *({"n_sampled": n} for n in (-1, 256, "x", 1 << 70)),
        {"n_random": 0},
        *({"barred_ids": ids} for ids in ("x", [-1], [1 << 24], [3, 3], ["x"])),
        *({"split_segments": visited} for visited in ("x", {}, {"explain": 3}, {"other": 3})),
        *({"split_segments": {"explain": 1, "select": 1, "report": n}} for n in (-1, 1 << 40, 1 << 70, "x")),
    ],
    ids=repr,
)
def test_an_impossible_run_json_is_refused(back, folder, changed):
    if isinstance(changed, str):
        change_run_json(folder, changed)  # is left out
    else:
        change_run_json(folder, **changed)
    with pytest.raises(NeuroexplainError, match="is damaged: "):
        list(import_parquet(back, folder))
    assert list_runs(back) == []


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "null",
        "[" * 100_000,
        "{",
        "",
        '{"format": 1, "subject": "\\ud800"}',
        '{"format": 1, "seed": NaN}',
        "\xff",
    ],
)
def test_a_run_json_of_something_else_is_refused(back, folder, text):
    (folder / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(NeuroexplainError, match=r"run\.json|another version"):
        list(import_parquet(back, folder))


def with_size(rows, size):
    """The rows with this size in place of the first sampled record's."""
    sizes = rows["size"].to_pylist()
    sizes[rows["kind"].to_pylist().index("sampled")] = size
    return rows.set_column(rows.schema.get_field_index("size"), "size", pa.array(sizes, pa.float32()))


@dataclass(frozen=True)
class SampledSize:
    """Gives the sampled records another size."""

    size: float | None

    def __call__(self, rows):
        return with_size(rows, self.size)


DAMAGES = (
    ("vocabulary", [{"text": None}, {"token_id": 1 << 24}, {"token_id": 7}, "text", "none", "gone"]),
    (
        "segments",
        [{"token_ids": [1, 2]}, {"token_ids": [-5] * 128}, {"token_ids": [None] * 128}, {"token_ids": None}],
    ),
    ("segments", [{"token_ids": [5] * 64}, {"segment": -1}, "token_ids", "gone", "cut"]),
    (
        "neurons",
        [
            {"neuron": 3},
            {"mean": None},
            {"promoted_ids": [1]},
            {"promoted_ids": [None] * 10},
            "mean",
            "promoted_ids",
        ],
    ),
    ("neurons", ["half", "gone", "backwards"]),
    (
        "exemplars",
        [
            {"neuron": 9999},
            {"neuron": -1},
            {"rank": -3},
            {"rank": 10**6},
            {"rank": 1},
            {"segments": 4_000_000},
        ],
    ),
    (
        "exemplars",
        [{"starts": 250}, {"kind": "weird"}, {"kind": None}, {"layer": 1}, {"activation": float("nan")}],
    ),
    ("exemplars", [{"activation": 1e39}, {"activations": [1.0] * 63 + [None]}, "activation", "activations"]),
    ("exemplars", ["none", "gone", "cut"]),
    (
        "explanations",
        [
            {"layer": 99},
            {"neuron": 9999},
            {"sampling": "{bad"},
            {"sampling": "[]"},
            {"sampling": "[" * 100_000},
        ],
    ),
    (
        "explanations",
        [
            {"text": None},
            {"explainer": None},
            {"prompt_sha256": "no"},
            {"status": None},
            "status",
            "explainer",
        ],
    ),
    ("explanations", ["half", "gone", "cut"]),
    (
        "predictions",
        [
            {"layer": 99},
            {"records": None},
            {"records": [None]},
            {"explanation_id": 9999},
            {"prompt_sha256": "no"},
        ],
    ),
    ("predictions", ["records", "half", "gone", "backwards", "cut"]),
    (
        "scores",
        [{"layer": 99}, {"neuron": -1}, {"explanation_id": 9999}, {"scorer": "other"}, {"status": None}],
    ),
    ("scores", ["value", "twice", "backwards", "cut"]),
    ("segments", [{"split": "x"}]),
    ("samples", [{"side": "x"}, {"split": "x"}, {"side": "negative"}, {"neuron": 3}, {"neuron": 9999}]),
    ("samples", [{"n_records": -1}, {"n_records": 10**6}, {"n_records": None}, {"layer": 9}]),
    ("samples", [{"threshold": x} for x in (-1.0, float("nan"), float("inf"), None)]),
    ("samples", ["threshold", "side", "half", "none", "gone", "twice", "backwards", "cut"]),
    (
        "exemplars",
        [SampledSize(x) for x in (0.0, -1.0, float("nan"), None, float("inf"))],
    ),
    ("predictions", [{"n_read": -1}, {"n_read": 0}, {"n_read": 256}]),
    ("prompts", [{"text": "other"}, "text", "gone"]),
)


@pytest.mark.parametrize(
    ("table", "damage"),
    [(table, damage) for table, damages in DAMAGES for damage in damages],
    ids=lambda value: str(value)[:40],
)
def test_damage_without_hashes_is_noticed_and_nothing_is_left(back, folder, table, damage):
    """As in an export of an earlier version, which has no hashes."""
    change_run_json(folder, "files")
    if damage == "gone":
        shutil.rmtree(folder / table)
    else:
        change_table(folder, table, damage)
    with pytest.raises(NeuroexplainError, match="is damaged: "):
        list(import_parquet(back, folder))
    assert list_runs(back) == []


@pytest.mark.parametrize(
    "changed",
    [
        *({"kind": kind} for kind in ("weird", None)),
        *({"rank": rank} for rank in (-1, 256, None)),
        *({"first": first} for first in (-1, 33, None)),
        *({"values": levels} for levels in (None, [1.0], [1e9] * 32)),
        *({"detail": mass} for mass in ([1.0], [2.0] * 32, [None] * 32)),
        {"control": [1.0]},
    ],
    ids=repr,
)
def test_an_impossible_predicted_record_is_refused(back, folder, changed):
    change_run_json(folder, "files")
    records = pq.read_table(folder / "predictions" / "layer-000.parquet")["records"][0].as_py()
    change_table(folder, "predictions", {"records": [records[0] | changed, *records[1:]]})
    with pytest.raises(NeuroexplainError, match=r"predictions/layer-000\.parquet is damaged: "):
        list(import_parquet(back, folder))
    assert list_runs(back) == []
