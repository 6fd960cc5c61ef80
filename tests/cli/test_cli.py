"""The command line as a user meets it: outputs, files, exit codes, one clear line for every failure."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deadreckon.cli import main as cli
from deadreckon.results.reading import Classifications, Reading


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "deadreckon", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_read_json_is_one_document_with_the_documented_keys(called, minilm):
    code, out, err = called("read", minilm, "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert (data["kind"], data["kernel_dim"], data["dead_count"], data["hidden_size"]) == ("layernorm", 1, 3, 384)
    assert data["final_norm"] == "encoder.layer.5.output.LayerNorm.weight"
    assert {c["index"] for c in data["direction"]["top"][:2]} == {223, 127}
    assert np.isfinite(data["direction"]["participation_ratio"])
    assert data["bytes_read"] < 100_000
    assert {"gain_offset", "beta_projection", "evidence", "seconds", "norms"} <= set(data)
    assert Reading.from_dict(data).norms[0].role == "final"


def test_read_of_an_rmsnorm_finds_no_kernel(called, smollm2):
    code, out, _ = called("read", smollm2, "--json")
    data = json.loads(out)
    assert (code, data["kind"], data["kernel_dim"], data["dead_count"]) == (0, "rmsnorm", 0, 0)
    assert data["direction"] is None


def test_read_all_lists_every_norm_final_first(called, minilm):
    _, out, _ = called("read", minilm, "--norm", "all", "--json")
    norms = json.loads(out)["norms"]
    assert len(norms) == 13
    assert [n["role"] for n in norms] == ["final"] + ["block"] * 12
    assert {n["dead_count"] for n in norms[1:]} == {1}


def test_table_names_the_norm_and_its_dead_direction(called, minilm):
    code, out, err = called("read", minilm)
    assert (code, err) == (0, "")
    assert "layernorm" in out
    assert "dead direction" in out
    assert "bytes read" in out


def test_out_and_save_write_whole_files(called, minilm, tmp_path):
    from safetensors.numpy import load_file

    out, save = tmp_path / "reading.json", tmp_path / "vectors.safetensors"
    code, _, _ = called("read", minilm, "-o", out, "--save", save)
    assert code == 0
    assert json.loads(out.read_text())["dead_count"] == 3
    basis = load_file(save)["encoder.layer.5.output.LayerNorm.predicted_dead"]
    assert basis.shape == (384, 3)
    assert np.abs(basis.T @ basis - np.eye(3)).max() <= 1e-12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reading.json", "vectors.safetensors"]


def test_unwritable_place_leaves_nothing_behind(called, minilm, tmp_path):
    code, _, err = called("read", minilm, "-o", tmp_path / "no" / "such" / "place.json")
    assert code == 3
    assert "place.json" in err
    assert list(tmp_path.iterdir()) == []


def test_classify_many(called, minilm, smollm2):
    code, out, _ = called("classify", minilm, smollm2, "random:opt-350m", "--json")
    results = Classifications.from_dict(json.loads(out)).results
    assert code == 0
    assert [r.kind for r in results] == ["layernorm", "rmsnorm", "none"]
    assert all(not r.contradictions for r in results)


def test_measure_json_and_exit_code(called, minilm):
    code, out, err = called("measure", minilm, "--tokens", 1600, "--json", "--quiet")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert data["protocol"]["status"] == "ok"
    assert data["tokens"] == 1600
    assert data["subspace_alignment"] >= 1 - 1e-9
    expected = (
        "tokens distinct_inputs alignment subspace_alignment largest_principal_angle lambda_dead lambda_dead_float64 "
    )
    expected += "lambda_min lambda_2 lambda_mean lambda_max depth_decades dead_counts algebraic_dead learned_dead "
    expected += "effective_rank participation_ratio schur_ratio schur_reference protocol twins gap"
    assert set(expected.split()) <= set(data)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("read", "./no/such/model"), 3, "no such file"),
        (("read", "random:no-such-model"), 2, "no-such-model"),
        (("read", "demo:nothing"), 2, "minilm"),
        (("read", ""), 2, "empty"),
        (("read", "random:opt-350m"), 2, "un-normed"),
        (("read", "demo:minilm", "--norm", "nothing"), 2, "nothing"),
        (("read", "demo:minilm", "--kind", "batchnorm"), 2, "layernorm"),
        (("read", "demo:minilm", "--tau", "3"), 2, "tau"),
        (("measure", "demo:minilm", "--tokens", "300"), 2, "N - 1 <= d"),
        (("measure", "demo:minilm", "--device", "cuda:77"), 2, "cuda:77"),
        (("measure", "demo:minilm", "--dtype", "int8"), 2, "int8"),
        (("measure", "demo:minilm", "--norm", "nowhere"), 2, "nowhere"),
        (("measure", "demo:minilm", "--text", "/no/such/text"), 3, "text"),
        (("read",), 2, "MODEL"),
        (("read", "demo:minilm", "--nonsense"), 2, "--nonsense"),
        (("fly",), 2, "fly"),
    ],
)
def test_bad_requests_get_one_line_and_a_fitting_code(called, minilm, arguments, code, says):
    found, out, err = called(*arguments)
    assert found == code
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    if says != "MODEL" and found != 2:
        assert len(err.strip().splitlines()) == 1


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="no such file"):
        cli.main(["--debug", "read", "./no/such/model"])


def test_internal_errors_have_their_own_code(called, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("deadreckon.cli.read.read_model", broken)
    code, _, err = called("read", "demo:minilm")
    assert code == 70
    assert "ZeroDivisionError: oops" in err
    assert "--debug" in err


def test_interrupt_has_its_own_code(called, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("deadreckon.cli.read.read_model", interrupted)
    assert called("read", "demo:minilm")[0] == 130


def test_a_closed_pipe_is_not_an_error(minilm):
    command = f"{sys.executable} -m deadreckon read {minilm} --norm all --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "{")


def test_version_and_help_of_the_whole_program():
    assert run("--version").stdout.startswith("deadreckon, version ")
    shown = run("--help")
    assert shown.returncode == 0
    assert "Exit codes" in shown.stdout


def test_measuring_without_torch_says_what_to_install(minilm, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = run("measure", minilm, PYTHONPATH=paths)
    assert done.returncode == 3
    assert "deadreckon[measure]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
