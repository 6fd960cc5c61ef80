"""Saved results: read back as what they were, and refused with the reason where they cannot be."""

import dataclasses
import json

import pytest

import deadreckon
from deadreckon.errors import InputError, UnreachableError
from deadreckon.results.saved import load_record, record_of
from deadreckon.results.task import Task


@pytest.fixture(scope="module")
def reading():
    return deadreckon.read("random:pythia-160m")


def test_a_saved_record_comes_back_equal_and_of_its_own_class(tmp_path, reading):
    file = tmp_path / "r.json"
    file.write_text(reading.to_json())
    assert load_record(file) == reading
    task = Task(
        model=reading.model, key="k", verb="read", revision=None, step=3, options={"tau": 1e-6}, status="done", why="",
        result=reading.to_dict(), seconds=0.1,
    )  # fmt: skip
    assert record_of(task.to_dict()) == task
    assert record_of(task.result) == reading


def test_a_newer_schema_is_refused_with_the_version_to_install(reading):
    newer = {**reading.to_dict(), "schema": "deadreckon.read/99", "deadreckon": "9.9.9"}
    with pytest.raises(InputError, match=r"deadreckon 9\.9\.9, install"):
        record_of(newer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no schema"),
        ('{"schema": "other/1"}', "no result of deadreckon"),
        ('{"schema": "deadreckon.read/0"}', "no longer"),
        ('{"schema": "deadreckon.read/1"}', "missing"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_record(file)
    assert str(file) in str(caught.value)


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        load_record(tmp_path / "b.json")
    with pytest.raises(UnreachableError, match="No such file"):
        load_record(tmp_path / "none.json")
    with pytest.raises(UnreachableError, match="directory"):
        load_record(tmp_path)


def test_an_edited_record_names_the_key(reading):
    broken = json.loads(json.dumps(dataclasses.asdict(reading)))
    broken["hidden_size"] = "many"
    with pytest.raises(InputError, match="hidden_size"):
        record_of(broken)
