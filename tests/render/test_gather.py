"""Results are found in files, folders, stores and hands; what is damaged or newer is refused by name."""

import json
import os
from dataclasses import replace

import pytest
from made_records import census, measurement, task, trace

from deadreckon.errors import InputError, UnreachableError, UsageError
from deadreckon.render.gather import gather
from deadreckon.render.runs import drawn
from deadreckon.results.census import Census
from deadreckon.results.measurement import Demonstration, Measurement
from deadreckon.results.trace import Trace


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(record.to_json())
    return path


def test_files_folders_stores_and_records(tmp_path):
    one = write(tmp_path / "one.json", measurement())
    write(tmp_path / "plain" / "b.json", trace())
    write(tmp_path / "plain" / "a.json", census())
    write(tmp_path / "store" / "tasks" / "k1.json", task(measurement("org/run"), step=5, key="k1"))
    write(tmp_path / "store" / "tasks" / "k2.json", task(None, "org/run", 6, "no such revision", key="k2"))
    (tmp_path / "store" / "tasks" / "k1.safetensors").write_bytes(b"x")
    found = gather([one, tmp_path / "plain", str(tmp_path / "store"), measurement("in hand")])
    assert [type(entry.record) for entry in found.entries] == [Measurement, Census, Trace, Measurement, Measurement]
    assert [entry.step for entry in found.entries] == [None, None, None, 5, None]
    assert [(f.model, f.step, f.why) for f in found.failed] == [("org/run", 6, "no such revision")]
    assert [source.name.rsplit("/")[-1] for source in found.sources[:5]] == [
        "one.json",
        "a.json",
        "b.json",
        "k1.json",
        "k2.json",
    ]
    assert all(len(source.sha256) == 64 for source in found.sources[:5])
    assert found.sources[5].sha256 is None
    assert [e.record.model for e in found.of(Measurement)] == ["random:pythia-160m", "org/run", "in hand"]


def test_a_file_named_twice_counts_once(tmp_path):
    path = write(tmp_path / "one.json", measurement())
    assert len(gather([path, tmp_path, path]).entries) == 1


def test_a_demonstration_is_taken_apart():
    shown = Demonstration(model="a, b", readings=[], measurements=[measurement("a"), measurement("b")])
    assert [e.record.model for e in gather([shown]).entries] == ["a", "b"]


def test_other_json_in_a_folder_is_passed_over_and_named(tmp_path):
    write(tmp_path / "one.json", measurement())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / ".hidden.json").write_text("{")
    found = gather([tmp_path])
    assert len(found.entries) == 1
    assert found.passed_over == [str(tmp_path / "config.json")]
    with pytest.raises(InputError, match="no schema"):
        gather([tmp_path / "config.json"])  # named by itself it was meant


@pytest.mark.parametrize(
    "text", ["{", '{"schema": "deadreckon.measure/1"}', '{"schema": "deadreckon.measure/99", "deadreckon": "9.9"}']
)
def test_what_is_damaged_or_newer_is_refused_in_folders_too(tmp_path, text):
    write(tmp_path / "one.json", measurement())
    (tmp_path / "two.json").write_text(text)
    with pytest.raises(InputError, match=r"two\.json"):
        gather([tmp_path])


def test_a_newer_result_inside_a_task_is_refused_with_the_version_to_install(tmp_path):
    newer = task(measurement()).to_dict()
    newer["result"] |= {"schema": "deadreckon.measure/7", "deadreckon": "8.0.0"}
    path = tmp_path / "k.json"
    path.write_text(json.dumps(newer))
    with pytest.raises(InputError, match=r"k\.json.*deadreckon 8\.0\.0, install"):
        gather([path])


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="no result there"):
        gather([tmp_path])
    with pytest.raises(UnreachableError, match="No such file"):
        gather([tmp_path / "nothing.json"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(UnreachableError, match="locked"):
        gather([locked])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lambda_mean", float("nan"), r"measure/1\.lambda_mean is nan"),
        ("alignment", float("inf"), "alignment is inf"),
        ("hidden_size", 0, "hidden_size is 0"),
        ("tokens", -3, "tokens is -3"),
    ],
)
def test_numbers_that_no_verb_writes_are_refused_with_their_path(tmp_path, key, value, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**measurement().to_dict(), key: value}))
    with pytest.raises(InputError, match=r"r\.json: .*" + message):
        gather([path])


def test_a_store_is_in_the_order_of_its_models_and_charts_take_one_of_each(tmp_path):
    """File names of a store are hashes; a table of many models, seeds and gains has more results than charts."""
    drawn_as = [("b", "lognormal:0.5", 0), ("a", None, 1), ("b", None, 0), ("a", None, 0), ("a", "lognormal:0.5", 0)]
    for k, (model, affine, seed) in enumerate(drawn_as):
        record = replace(measurement(model), affine=affine, seed=seed)
        write(tmp_path / "tasks" / f"k{k}.json", task(record, key=f"k{k}"))
    found = gather([tmp_path]).of(Measurement)
    order = [(e.record.model, e.record.affine, e.record.seed) for e in found]
    plain, redrawn = None, "lognormal:0.5"
    assert order == [("a", plain, 0), ("a", plain, 1), ("a", redrawn, 0), ("b", plain, 0), ("b", redrawn, 0)]
    named = list(zip("01234", found, strict=True))
    assert [name for name, _ in drawn(named, 5)] == ["0", "1", "2", "3", "4"]
    assert [name for name, _ in drawn(named, 4)] == ["0", "3"]
    assert [name for name, _ in drawn(named[2:4], 1)] == ["2"]
    assert [name for name, _ in drawn(list(reversed(named)), 4)] == ["3", "1"]
