"""``deadreckon probe``: the user's own code, from files and packages, and one clear line for what is wrong with it."""

import json
import sys

import pytest
from safetensors.numpy import load_file

CODE = """
import torch
from torch import nn

print("imported")


class Mine(nn.Module):
    def __init__(self, size, eps=1e-5, centred=True, mode="a"):
        super().__init__()
        self.weight, self.eps, self.centred = nn.Parameter(torch.rand(size) + 0.5), eps, centred
        assert mode == "a", mode

    def forward(self, x):
        print("run")
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


class Named(Mine):
    def __init__(self, *, width):
        super().__init__(width)


class Outer:
    class Inner(Mine):
        pass


class Leaves(nn.Module):
    def __init__(self, size):
        raise SystemExit(0)


instance = Mine(20)
number = 3


def function(x):
    return x
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe_own").mkdir()
    (tmp_path / "probe_own" / "__init__.py").write_text("")
    (tmp_path / "probe_own" / "norms.py").write_text(CODE)
    (tmp_path / "loose.py").write_text("from probe_own.norms import Mine as Theirs\n" + CODE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "wrong.py").write_text("class (:\n")
    (tmp_path / "needs.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "exits.py").write_text("raise SystemExit('bye')\n")
    before = dict(sys.modules), sys.path.copy()
    yield tmp_path
    for name in set(sys.modules) - set(before[0]):
        if name.startswith(("probe_own", "deadreckon_user_", "broken", "wrong", "needs", "exits", "loose")):
            del sys.modules[name]
    assert sys.path == before[1]


@pytest.mark.parametrize("where", ["probe_own.norms", "loose.py", "./loose.py", "loose"])
def test_code_of_the_user_is_found_and_keeps_its_output_to_itself(called, code, where):
    exit_code, out, _ = called("probe", f"{where}:Mine", "--json")
    data = json.loads(out)
    assert exit_code == 0
    assert (data["schema"], data["model"], data["hidden_size"]) == ("deadreckon.probe/1", f"{where}:Mine", 64)
    assert (data["kernel_dim"], data["inherent_dim"], data["verdict"]) == (1, 1, "inherent")


def test_arguments_reach_the_class(called, code):
    words = ("probe", "loose.py:Mine", "--hidden-size", "24", "--arg", "centred=False", "-a", "mode=a", "--json")
    data = json.loads(called(*words)[1])
    assert (data["hidden_size"], data["kernel_dim"], data["verdict"]) == (24, 0, "none")


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("loose.py:Named", "-a", "width=12"), 12),
        (("loose.py:Outer.Inner", "-d", "12"), 12),
        (("loose.py:instance",), 20),
        (("torch.nn:GroupNorm", "-a", "num_groups=4", "-a", "num_channels=12"), 12),
    ],
)
def test_how_the_layer_is_built(called, code, words, size):
    exit_code, out, _ = called("probe", *words, "--json")
    assert (exit_code, json.loads(out)["hidden_size"]) == (0, size)


def test_a_person_reads_the_verdict(called, code):
    exit_code, out, err = called("probe", "torch.nn:LayerNorm", "-d", "16")
    assert (exit_code, err) == (0, "")
    assert "brings inherent singular structure" in out
    assert "1/weight over all coordinates" in out
    out = called("probe", "torch.nn:BatchNorm1d", "-d", "16", "--training")[1]
    assert "brings none" in out
    assert "training mode" in out


def test_the_kernel_is_saved(called, code):
    saved = code / "kernel.safetensors"
    assert called("probe", "torch.nn:GroupNorm", "-a", "num_groups=3", "-a", "num_channels=12", "--save", saved)[0] == 0
    assert load_file(saved)["kernel"].shape == (12, 3)


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (("loose.py",), 2, "no class is named"),
        (("no/such.py:Mine",), 3, "no such file"),
        (("no_such_package.norms:Mine",), 3, "there is no module no_such_package.norms here"),
        (("probe_own.other:Mine",), 3, "there is no module probe_own.other"),
        (("not a module:Mine",), 2, "neither a Python module's name"),
        (("needs:Mine",), 3, "imports a_package_that_nobody_has"),
        (("broken.py:Mine",), 2, "ZeroDivisionError"),
        (("wrong.py:Mine",), 2, "SyntaxError"),
        (("exits:Mine",), 2, "SystemExit: bye"),
        (("loose.py:Yours",), 2, "has no Yours; its layers are Leaves, Mine, Named"),
        (("loose.py:function",), 2, "no torch.nn.Module class"),
        (("loose.py:number",), 2, "no torch.nn.Module class"),
        (("loose.py:Leaves",), 2, "SystemExit"),
        (("loose.py:Mine", "-a", "mode=b"), 2, "Mine(64, mode='b') fails: AssertionError: b"),
        (("loose.py:Mine", "-a", "colour=red"), 2, "unexpected keyword argument 'colour'"),
        (("loose.py:Mine", "-a", "centred"), 2, "write KEY=VALUE"),
        (("loose.py:Mine", "-a", "eps=1", "-a", "eps=2"), 2, "twice"),
        (("torch.nn:Linear", "-a", "out_features=3"), 2, "keeps the shape"),
        (("torch.nn:Dropout", "-a", "p=0.5", "--training"), 2, "answers the same tokens differently"),
        (("torch.nn:LayerNorm", "-d", "1"), 2, "not in the range"),
    ],
)
def test_what_is_wrong_is_one_line(called, code, words, exit_code, says):
    got, out, err = called("probe", *words)
    assert (got, out) == (exit_code, "")
    lines = [line for line in err.splitlines() if line not in {"imported", "run"}]
    assert says in " ".join(lines)
    assert "Traceback" not in err
