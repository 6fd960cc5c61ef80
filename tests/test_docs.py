"""The documentation says what the program does: generated parts are current, examples run, commands parse."""

import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deadreckon.cli.main import cli
from deadreckon.results.measurement import Measurement
from deadreckon.results.schema import RECORDS
from deadreckon.verbs.read import read

ROOT = Path(__file__).resolve().parent.parent
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.M | re.S)

sys.path.insert(0, str(ROOT / "scripts"))  # as when the script runs by itself
spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "scripts" / "docs_reference.py")
docs_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_reference)


@pytest.fixture
def copy(tmp_path):
    """The documentation, up to date, in a place where it can be damaged."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for path, text in docs_reference.update(tmp_path, fast=True).items():
        path.write_text(text, encoding="utf-8")
    return tmp_path


def damage(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_generated_parts_are_current():
    assert not docs_reference.update(fast=True), "run scripts/docs_reference.py"


@pytest.mark.parametrize(
    ("page", "old", "new"),
    [
        ("cli.md", "--gain-offset FLOAT", "--gain-offest FLOAT"),
        ("cli.md", "`pythia-160m`", "`pythia-161m`"),
        ("json.md", "| N/d |", "| N |"),
        ("index.md", "$ deadreckon measure demo:minilm", "$ deadreckon measure demo:other"),
        ("schemas/measure-1.json", '"schur_ratio"', '"shur_ratio"'),
    ],
)
def test_a_stale_page_is_noticed_and_restored(copy, page, old, new, monkeypatch):
    run, forward = docs_reference.run, "a forward pass was asked for"
    monkeypatch.setattr(docs_reference, "run", lambda c: (forward, 0) if c.endswith("--twin 1") else run(c))
    path = copy / "docs" / page
    before = path.read_text(encoding="utf-8")
    damage(path, old, new)
    stale = docs_reference.update(copy, fast=True)
    assert set(stale) == {path}
    assert stale[path] == before or forward in stale[path]


def test_an_output_is_compared_but_for_the_time_it_took(minilm, copy):
    page = copy / "docs" / "index.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"in \d+ ms", "in 12345 ms", text), encoding="utf-8")
    assert not docs_reference.update(copy, fast=True)
    damage(page, "layernorm │ 384", "layernorm │ 385")
    assert set(docs_reference.update(copy, fast=True)) == {page}


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```pycon" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_examples_run(page, tmp_path, minilm, smollm2):
    """In an interpreter of their own: what they register must not reach other tests."""
    examples = [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language == "pycon"]
    (tmp_path / "examples.txt").write_text("\n".join(examples), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "doctest", "examples.txt"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def commands(page):
    """Arguments of the ``deadreckon`` commands in a page's code blocks."""
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        prompt = {"console": "$ ", "bash": "", "sh": ""}.get(language)
        for line in code.splitlines() if prompt is not None else ():
            if line.strip().startswith(f"{prompt}deadreckon "):
                words = shlex.split(line.strip().removeprefix(prompt).partition(" #")[0])
                end = next((i for i, word in enumerate(words) if word in {"|", ">", "&&"}), len(words))
                yield words[1:end]


def parse(words):
    """Raise click's own error where the program would refuse to start."""
    with click.Context(cli, info_name="deadreckon", **cli.context_settings) as context:
        command = cli if words[0].startswith("-") else cli.get_command(context, words[0])
        if command is None:
            raise click.UsageError(f"no verb {words[0]}")
        with contextlib.suppress(click.exceptions.Exit):  # --help and --version end here
            command.make_context(words[0], words[0 if command is cli else 1 :], parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_shown_parse(page):
    for words in commands(page):
        parse(words)


def test_commands_are_found_and_a_wrong_one_does_not_parse():
    shown = [words for page in PAGES for words in commands(page)]
    assert {words[0] for words in shown} >= {"read", "measure", "classify"}
    for wrong in (["read", "--nonsense", "x"], ["reed", "x"], ["measure", "x", "--tokens", "many"], ["classify"]):
        with pytest.raises(click.UsageError):
            parse(wrong)


def test_schemas_describe_what_is_written():
    jsonschema = pytest.importorskip("jsonschema")
    files = {name: json.loads(text) for name, text in docs_reference.schemas().items()}
    assert len(files) == len(RECORDS) + 1  # and the specification of a sweep
    for schema in files.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    reading = read([0.5, 1.0, 2.0], kind="layernorm").to_dict()
    jsonschema.validate(reading, files["read-1.json"])
    for wrong in ({"schema": Measurement.kind_of_record}, {"kernel_dim": "one"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**reading, **wrong}, files["read-1.json"])


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
