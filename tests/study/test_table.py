"""The table: one row a task, the same to the last bit whatever order and time it was computed in."""

import csv
import json

import pytest

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.results.saved import record_of
from deadreckon.results.schema import json_schema
from deadreckon.results.sweep import failure_lines
from deadreckon.study.plan import VERBS, Planned
from deadreckon.study.run import run_all
from deadreckon.study.store import Store
from deadreckon.study.table import FIGURES, table, to_csv, to_parquet

PLANS = [
    Planned("read", "random:pythia-160m", options={"tau": 1e-5}),
    Planned("census", "random:pythia-160m"),
    Planned("classify", "random:llama-3.1-8b"),
    Planned("read", "/nowhere/checkpoint-3", step=3),
]


@pytest.fixture
def folder(tmp_path):
    run_all(PLANS, Store(tmp_path / "a"))
    return tmp_path / "a"


def test_one_row_a_task_with_every_column(folder):
    found = table(folder)
    assert [(row["model"], row["verb"], row["status"]) for row in found.rows] == [
        ("/nowhere/checkpoint-3", "read", "failed"),
        ("random:llama-3.1-8b", "classify", "done"),
        ("random:pythia-160m", "census", "done"),
        ("random:pythia-160m", "read", "done"),
    ]
    assert all(list(row) == found.columns for row in found.rows)
    failed, classified, counted, read = found.rows
    assert failed["why"] == "/nowhere/checkpoint-3: no such file or directory"
    assert failed["step"] == 3
    assert classified["results.0.kind"] == "rmsnorm"
    assert (read["kernel_dim"], read["dead_count"], read["options.tau"], read["tau"]) == (1, 1, 1e-5, 1e-5)
    assert counted["parameters"] > counted["dead_dimensions"] > 0
    assert counted["kernel_dim"] is None
    assert record_of(json.loads(found.to_json())) == found


def test_without_timings_tables_of_the_same_tasks_are_equal(folder, tmp_path):
    run_all(reversed(PLANS), Store(tmp_path / "b"))
    one, other = table(folder, timings=False), table(tmp_path / "b", timings=False)
    assert one == other
    assert to_csv(one) == to_csv(other)
    assert table(folder).rows[0]["seconds"] != table(tmp_path / "b").rows[0]["seconds"]


def test_further_figures_by_their_paths(folder):
    more = ["predicted_eigenvalues.0", "evidence.0.says", "norms.length", "revision", "transfer", "direction"]
    read = table(folder, more=more).rows[-1]
    assert [read[path] for path in more[1:5]] == ["layernorm", 1, None, None]
    assert abs(read["predicted_eigenvalues.0"]) < 1e-12
    assert json.loads(read["direction"])["participation_ratio"] == read["direction.participation_ratio"]


@pytest.mark.parametrize("path", ["nothing", "evidence.9", "kind.0", "direction.top.0.wieght", "norms.-2"])
def test_a_figure_that_no_task_has_is_refused(folder, path):
    with pytest.raises(UsageError, match="no task has a figure"):
        table(folder, more=[path])


def test_csv_reads_back(folder):
    found = table(folder)
    rows = list(csv.DictReader(to_csv(found).decode().splitlines()))
    assert [row["model"] for row in rows] == [row["model"] for row in found.rows]
    assert float(rows[-1]["direction.participation_ratio"]) == found.rows[-1]["direction.participation_ratio"]
    assert rows[0]["kernel_dim"] == ""


def test_parquet_reads_back_with_types(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = table(folder)
    (tmp_path / "t.parquet").write_bytes(to_parquet(found))
    back = parquet.read_table(tmp_path / "t.parquet")
    assert back.to_pylist() == found.rows
    types = {name: str(back.schema.field(name).type) for name in ("step", "seconds", "model", "options.tau")}
    assert types == {"step": "int64", "seconds": "double", "model": "string", "options.tau": "double"}


def test_parquet_without_pyarrow_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UnreachableError, match=r"pip install 'deadreckon\[table\]'"):
        to_parquet(table(folder))


def _leads_to(schema, parts, path):
    """The JSON types at a path of a record, from its schema."""
    options = [{**part, **schema["$defs"].get(part.get("$ref", "").rpartition("/")[2], {})} for part in parts]
    if not path:
        return {kind for part in options for kind in [part.get("type")] if kind}
    head, rest = path[0], path[1:]
    found = []
    for part in options:
        if head == "length" and part.get("type") == "array":
            return {"integer"}
        if head.lstrip("-").isdecimal() and part.get("type") == "array":
            found.append(part["items"])
        elif head in part.get("properties", {}):
            found.append(part["properties"][head])
    flat = [one for part in found for one in part.get("anyOf", [part])]
    return _leads_to(schema, flat, rest) if flat else set()


@pytest.mark.parametrize("verb", VERBS)
def test_figures_lead_to_scalars_of_each_verb(verb):
    """A path that no record has would be an empty column for ever."""
    schema = json_schema(VERBS[verb])
    for path in FIGURES[verb]:
        kinds = _leads_to(schema, [{"$ref": schema["$ref"]}], path.split("."))
        assert kinds - {"null"}, path
        assert not kinds & {"array", "object"}, path


def test_failures_for_one_reason_are_one_line():
    lines = failure_lines([("read", "a", None, "x"), ("census", "a", None, "x"), ("read", "a", "s1", "y")])
    assert lines == ["failed: read, census a: x", "failed: read a, s1: y"]
