"""The examples run, and what they print is what their comments say."""

import importlib.util
import math
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sgld(capsys):
    sgld, steps, chains = load("sgld"), 40, 2
    runs = sgld.main(["--steps", str(steps), "--chains", str(chains)])
    printed = capsys.readouterr().out
    assert "LLC" in printed
    dimensions = int(printed.split()[0].replace(",", ""))
    walk = sgld.leash(dimensions, steps)
    free, held = ([run["dead"] for run in runs[name]] for name in ("all noise", "projected"))
    # A chi with that many degrees of freedom is within 5/sqrt(2 dimensions) of its root mean square. That the
    # directions turn adds the square of what is left with the projection.
    assert all(
        abs(f / walk - 1) <= 5 / math.sqrt(2 * dimensions) + (h / f) ** 2 for f, h in zip(free, held, strict=True)
    )
    assert max(held) < 0.3 * walk
    for plain, projected in zip(runs["all noise"], runs["projected"], strict=True):
        assert projected["distance"] < plain["distance"]
        assert abs(projected["llc"] / plain["llc"] - 1) < 0.1  # paired chains: the random numbers are the same
