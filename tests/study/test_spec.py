"""The specification: what it may hold, and errors that name line and field."""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import jsonschema
import msgspec
import pytest

from deadreckon.errors import InputError, UnreachableError
from deadreckon.study.document import load_document
from deadreckon.study.options import OPTIONS
from deadreckon.study.plan import VERBS
from deadreckon.study.spec import load_spec, spec_schema

GOOD = """\
models:
  - demo:minilm
  - model: EleutherAI/pythia-70m
    steps: [0, 1, 2, 4, ..., 512, 1000, 2000, ..., 143000]
  - checkpoints: runs/mine
verbs:
  read:
  measure: [{tokens: 4096, tau: 1e-5}, {tokens: 4096, solver: bottom, resources: {gpus: 0.5, memory: 8GB}}]
seeds: [0, 1]
data: [random, text: [a.txt]]
resources: {cpus: 2}
"""


def spec_of(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    return load_spec(tmp_path / "s.yaml")


def test_a_specification(tmp_path):
    spec, document = spec_of(tmp_path, GOOD)
    assert [(verb, options.given()) for verb, _, options in spec.calls()] == [
        ("read", {}),
        ("measure", {"tokens": 4096, "tau": 1e-5}),
        ("measure", {"tokens": 4096, "solver": "bottom"}),
    ]
    assert spec.calls()[2][2].resources.gpus == 0.5
    assert spec.data[1].text == ["a.txt"]
    assert document.lines["verbs", "measure", 1, "solver"] == 8
    assert load_spec(document.data)[0] == spec  # the same without a file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a]\nverbs: {measure: {tua: 3}}", "line 2: verbs.measure.tua: no such field; did you mean tau?"),
        ("models: [a]\nverbs: {read: {twin: 3}}", "line 2: verbs.read.twin: no such field; there are resources, norm"),
        ("models: [a]\nverbs: {mesure: }", "line 2: verbs.mesure: no such field; did you mean measure?"),
        ("models: [a]\nverbs:\n- read\n- mesure", "line 4: verbs[1]: 'mesure' is not known; did you mean measure?"),
        ("models: []\nverbs: [read]", "line 1: models: expected a list of length >= 1"),
        ("verbs: [read]", "line 1: models is missing"),
        ("models:\n- b\n- modle: a\nverbs: [read]", "line 3: models[1].modle: no such field; did you mean model?"),
        ("models:\n- model: a\n  steps: 4\nverbs: [read]", "line 3: models[0].steps: expected a list"),
        (
            "models: [a]\nverbs:\n  measure:\n    tokens: 0",
            "line 4: verbs.measure.tokens: expected a whole number",
        ),
        (
            "models: [a]\nverbs:\n  fisher: [{draws: 9},\n   {draws: x}]",
            "line 4: verbs.fisher[1].draws: expected a",
        ),
        ("models: [a]\nverbs: [read]\nresources: {memory: much}", "line 3: resources.memory: 'much' is no size"),
        ("models: [a]\nverbs: {read: {resources: {gpu: 1}}}", "line 2: verbs.read.resources.gpu: no such field; did"),
        ("models: [a]\nverbs: {measure: {seed: 3}}\nseeds: [1]", "line 2: verbs.measure.seed: seeds are given for all"),
        ("models: [a]\nverbs: {trace: {text: [a]}}\ndata: [random]", "line 2: verbs.trace.text: data is given for all"),
        ("models: [a]\nverbs: [measure]\ndata: [txt]", "line 3: data[0]: 'txt' is not known; did you mean text?"),
        ("models: [a]\nverbs: [measure]\ndata: [{txt: [a]}]", "line 3: data[0].txt: no such field; did you mean text?"),
        ("models: [a]\nverbs: {}", "line 2: verbs: name at least one of read"),
        ("models:\n- revisions: [a]\nverbs: [read]", "line 2: models[0]: give model, or checkpoints"),
        ("models:\n- checkpoints: a\n  steps: [1]\nverbs: [read]", "line 2: models[0]: checkpoints takes all"),
        ("models:\n- {model: a, revisions: [b],\n   steps: [1]}\nverbs: [read]", "line 3: models[0].steps: give revis"),
        ("models:\n- {model: a, template: x}\nverbs: [read]", "line 2: models[0].template: write {step}"),
        ("models: [a\nverbs: [", "line 2: not YAML"),
        ("models: [a]\nverbs: [read]\nmodels: [b]", "line 3: not YAML: models is there twice"),
        ("models: &a [*a]\nverbs: [read]", "not YAML"),
        ("models: [\x01]", "not YAML"),
        ("1: 2", "line 1: not YAML: 1 is no name of a field"),
        ("", "a specification is a mapping"),
        ("[a]", "line 1: a specification is a mapping"),
    ],
)
def test_errors_name_line_and_field(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        spec_of(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "s.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_specification_that_cannot_be_read(tmp_path):
    with pytest.raises(UnreachableError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_spec(tmp_path / "b.yaml")


def test_anchors_and_merges_are_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("x: &x {tokens: 1}\ny: {<<: *x, tau: 2}\n")
    assert load_document(tmp_path / "a.yaml").data == {"x": {"tokens": 1}, "y": {"tokens": 1, "tau": 2}}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_the_options_of_its_function_with_the_same_defaults(verb):
    """All but those that no file can hold, and those that the sweep sets by itself."""
    function = getattr(import_module(f"deadreckon.verbs.{verb}"), verb)
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in {"model", "models", "batches", "tokenizer", "processor", "distribute", "progress"}
    }
    options = {name: value for name, value in msgspec.structs.asdict(OPTIONS[verb]()).items() if name != "resources"}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in parameters.items()} == options


def test_the_schema_for_editors_accepts_what_is_accepted_and_refuses_what_is_not(tmp_path):
    schema = spec_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema).is_valid
    assert check(spec_of(tmp_path, GOOD)[1].data)
    assert not check({"models": ["a"], "verbs": {"measure": {"tua": 1}}})
    assert not check({"models": ["a"], "verbs": ["mesure"]})
    assert not check({"verbs": ["read"]})
    undescribed = [
        (name, key)
        for name, definition in schema["$defs"].items()
        for key, value in definition["properties"].items()
        if "description" not in value
    ]
    assert undescribed == []
    assert json.loads(json.dumps(schema)) == schema


def test_the_examples_of_the_documentation_are_specifications(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    assert examples
    for example in examples:
        assert spec_of(tmp_path, example)[0].models
