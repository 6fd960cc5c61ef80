"""Keys name tasks by content: equal for equal tasks, different where anything that decides the result is."""

import dataclasses
import json
import os

from hub_server import Repository
from hypothesis import given
from hypothesis import strategies as st

from deadreckon.study import plan
from deadreckon.study.plan import VERBS, Planned, stamped
from deadreckon.study.resources import Resources

_names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12)
_values = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False) | _names
_plans = st.builds(
    Planned,
    verb=st.sampled_from(sorted(VERBS)),
    model=_names,
    revision=st.none() | _names,
    step=st.none() | st.integers(0, 10**6),
    options=st.dictionaries(_names, _values | st.lists(_values, max_size=2), max_size=4),
    content=st.none() | _names,
)


def _canonical(planned):
    """What decides, such that equality of texts is equality of tasks; 1, 1.0 and true are three options."""
    return json.dumps(dataclasses.asdict(planned), sort_keys=True)


@given(_plans)
def test_equal_tasks_have_one_key_in_whatever_order_their_options_come(planned):
    turned = dict(reversed(list(planned.options.items())))
    assert dataclasses.replace(planned, options=turned, resources=Resources(gpus=0.5)).key == planned.key
    assert len(planned.key) == 40
    assert set(planned.key) <= set("0123456789abcdef")


@given(_plans, _plans)
def test_tasks_have_one_key_only_if_they_are_equal(one, other):
    assert (one.key == other.key) == (_canonical(one) == _canonical(other))


@given(_plans, st.data())
def test_any_change_makes_another_key(planned, data):
    name = data.draw(st.sampled_from(["verb", "model", "revision", "step", "options", "content"]))
    other = dataclasses.replace(planned, **{name: getattr(data.draw(_plans), name)})
    assert (other.key == planned.key) == (_canonical(other) == _canonical(planned))


def test_another_version_makes_another_key(monkeypatch):
    planned = Planned("read", "demo:minilm")
    before = planned.key
    monkeypatch.setattr(plan, "__version__", "9.9.9")
    assert planned.key != before
    monkeypatch.undo()
    monkeypatch.setattr(VERBS["read"], "kind_of_record", "deadreckon.read/2")
    assert planned.key != before


def test_a_revision_of_a_folder_is_a_folder_in_it_and_one_of_a_hub_model_follows_an_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert Planned("read", "runs/mine", "checkpoint-5").name == "runs/mine/checkpoint-5"
    assert Planned("read", "org/name", "step1000").name == "org/name@step1000"
    assert Planned("read", "demo:minilm").name == "demo:minilm"


def _model(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 2_000_000)
    return Planned("read", str(folder))


def _content(planned):
    return stamped([planned])[0].content


def test_content_follows_small_files_by_their_bytes_and_large_ones_by_size_and_time(tmp_path):
    planned = _model(tmp_path / "model")
    weights, config = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
    first = _content(planned)
    os.utime(config)  # touched, and the same
    (tmp_path / "model" / "events.log").write_text("not part of a model")
    assert _content(planned) == first
    config.write_text('{"a": 1}')
    second = _content(planned)
    assert second != first
    os.utime(weights, ns=(1, 1))
    third = _content(planned)
    assert third not in {first, second}
    other = dataclasses.replace(planned, model=str(weights))  # the file by itself
    before = _content(other)
    (tmp_path / "model" / "other.safetensors").write_bytes(b"1")
    assert _content(other) == before
    assert _content(planned) != third


def test_content_follows_the_data_that_a_task_is_given(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one")
    planned = dataclasses.replace(_model(tmp_path / "model"), verb="measure", options={"text": [str(text)]})
    first = _content(planned)
    text.write_text("two")
    assert _content(planned) != first


def test_a_model_of_the_hub_stands_for_its_commit(hub):
    hub.repositories["org/name"] = Repository({"config.json": b"{}"}, revisions=("main", "step1"))
    one, other, missing = stamped(
        [Planned("read", "org/name"), Planned("read", "org/name", "step1"), Planned("read", "no/such")]
    )
    assert one.content == other.content == f"commit:{hub.repositories['org/name'].commit}"
    assert missing.content == "unreachable"


def test_each_model_is_looked_at_once_and_equal_tasks_count_once(monkeypatch):
    looked = []
    monkeypatch.setattr(plan, "content_of", lambda name, files: looked.append(name) or "c")
    plans = [Planned(verb, model) for verb in ("read", "census", "read") for model in ("a", "b")]
    assert [(p.verb, p.model) for p in stamped(plans)] == [
        ("read", "a"),
        ("read", "b"),
        ("census", "a"),
        ("census", "b"),
    ]
    assert looked == ["a", "b"]
