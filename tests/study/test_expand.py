"""A specification written out: models, revisions, steps, seeds and data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deadreckon.errors import InputError, UsageError
from deadreckon.study.expand import expand
from deadreckon.study.spec import load_spec
from deadreckon.study.steps import fill_steps, step_of
from deadreckon.study.sweep import _share


def planned(models, verbs=("read",), **more):
    return expand(*load_spec({"models": models, "verbs": verbs if isinstance(verbs, dict) else list(verbs), **more}))


def points(*models):
    return [(plan.model, plan.revision, plan.step) for plan in planned(list(models))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run/checkpoint-1000", "run/checkpoint-200", "run/runs", "other/final"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    return tmp_path


def test_steps_of_pythia():
    written = [0, 1, 2, 4, "...", 512, 1000, 2000, "…", 143000]
    assert fill_steps(written) == [0, *(2**n for n in range(10)), *range(1000, 144000, 1000)]
    assert len(fill_steps(written)) == 154


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([0, 1, 2, 4, "...", 143000], "1, 2, 4, ..., 143000 does not come out"),
        ([1, 2, "...", 8], "by adding and by multiplying: write one more"),
        ([1, "...", 8], "stands between numbers"),
        ([1, 2, "..."], "stands between numbers"),
        ([1, 2, "...", 2], "does not come out"),
        ([2, 1, "...", 0], "does not come out"),
        ([0, "many"], "'many' is neither a step nor"),
        ([-1], "-1 is no step"),
    ],
)
def test_steps_that_do_not_come_out(steps, message):
    with pytest.raises(ValueError, match=message):
        fill_steps(steps)


@given(st.integers(0, 50), st.integers(1, 9), st.integers(3, 30))
def test_dots_stand_for_what_was_left_out(start, by, count):
    even = [start + by * n for n in range(count)]
    if count > 3:
        assert fill_steps([*even[:3], "...", even[-1]]) == even
    powers = [(start + 1) * (by + 1) ** n for n in range(min(count, 12))]
    if len(powers) > 3:
        assert fill_steps([*powers[:3], "...", powers[-1]]) == powers


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500), ("step1000", 1000), ("global_step12", 12), ("500", 500), ("iter_0000100", 100),
        ("epoch-3", 3), ("stage1-step1000-tokens5B", 1000), ("step1000-tokens4B", 1000),
        ("main", None), ("llama-7b", None), ("gpt-2", None), ("v1.0", None), ("steps", None),
    ],
)  # fmt: skip
def test_steps_in_names(name, step):
    assert step_of(name) == step


def test_models_revisions_and_steps(here):
    assert points("demo:minilm", "org/name") == [("demo:minilm", None, None), ("org/name", None, None)]
    assert points({"model": "org/name", "revisions": ["step1000", "main", 7]}) == [
        ("org/name", "step1000", 1000),
        ("org/name", "main", None),
        ("org/name", "7", 7),
    ]
    assert points({"model": "org/name", "steps": [0, 8], "template": "s-{step}"}) == [
        ("org/name", "s-0", 0),
        ("org/name", "s-8", 8),
    ]
    by_step = [("run", "checkpoint-200", 200), ("run", "checkpoint-1000", 1000)]
    assert points({"checkpoints": "run"}) == points("run/check*") == by_step
    assert points({"model": "run", "steps": [200, 1000], "template": "checkpoint-{step}"}) == by_step
    assert points("*/*") == [("other/final", None, None), *by_step, ("run/runs", None, None)]
    assert points("run/check*", {"checkpoints": "run"}) == by_step  # each once


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nothing*", r"models\[0\]: nothing\*: 0 files"),
        ({"checkpoints": "other"}, r"models\[0\].checkpoints: other: holds no folder whose name ends in a step"),
        ({"checkpoints": "nowhere"}, "no such folder"),
        ({"model": "demo:minilm", "revisions": ["a"]}, r"models\[0\].revisions: demo:minilm: only models on the hub"),
        ({"model": "run/runs/config.json", "steps": [1]}, "only models on the hub and folders"),
        ({"model": "org/name", "steps": [1, "...", 3]}, r"models\[0\].steps: \.\.\. stands between"),
        ("foo:bar", r"models\[0\]: foo:bar"),
    ],
)
def test_models_that_cannot_be_meant(here, entry, message):
    with pytest.raises(InputError, match=message):
        points(entry)


def test_seeds_and_data_are_for_the_verbs_that_take_them():
    plans = planned(["demo:minilm"], ["measure", "read"], seeds=[0, 1], data=["auto", "random", {"text": ["a.txt"]}])
    assert [(plan.verb, plan.options) for plan in plans] == [
        ("measure", {}),
        ("measure", {"data": "random"}),
        ("measure", {"text": ["a.txt"]}),
        ("measure", {"seed": 1}),
        ("measure", {"seed": 1, "data": "random"}),
        ("measure", {"seed": 1, "text": ["a.txt"]}),
        ("read", {}),
    ]


def test_a_model_with_a_seed_of_its_own_is_measured_once():
    assert [plan.options for plan in planned(["random:pythia-160m#7"], ["measure"], seeds=[0, 1])] == [{}]


def test_options_at_their_defaults_make_the_same_task():
    (one,), (other,) = planned(["a"], {"measure": {"tau": 1e-6, "twin": 0}}), planned(["a"], ["measure"])
    assert one.key == other.key


def test_resources_are_those_of_the_verb_or_of_all():
    one, other = planned(["a"], {"read": None, "measure": {"resources": {"gpus": 1}}}, resources={"cpus": 2})
    assert (one.resources.cpus, one.resources.gpus) == (2, 0)
    assert (other.resources.cpus, other.resources.gpus) == (1, 1)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_part_the_tasks(count, shards):
    plans = [object() for _ in range(count)]
    parts = [_share(plans, f"{i}/{shards}") for i in range(1, shards + 1)]
    assert sorted(map(id, plans)) == sorted(id(plan) for part in parts for plan in part)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none(shard):
    with pytest.raises(UsageError, match="write i/n"):
        _share([], shard)
