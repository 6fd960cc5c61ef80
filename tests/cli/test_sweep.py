"""``deadreckon sweep`` and ``table`` as they are called."""

import json
import os
import subprocess
import sys

import pytest

import deadreckon
from deadreckon.errors import UsageError

SPEC = "models: [random:pythia-160m, random:llama-3.1-8b]\nverbs: [read, census]\n"


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "study.yaml").write_text(SPEC)
    return tmp_path / "study.yaml"


def test_a_sweep_and_its_table(called, spec, tmp_path):
    code, out, err = called("sweep", spec)
    assert (code, err) == (0, "")
    assert f"next: deadreckon table {tmp_path / 'study'}".replace("\n", "") in out.replace("\n", "")
    code, out, _ = called("sweep", spec, "--json", "--out", tmp_path / "sweep.json")
    swept = json.loads(out)
    assert swept == json.loads((tmp_path / "sweep.json").read_text())
    assert (swept["schema"], swept["tasks"], swept["computed"], swept["found"]) == ("deadreckon.sweep/1", 4, 0, 4)
    code, out, err = called("table", tmp_path / "study")
    assert (code, err) == (0, "")
    assert "read: 2 tasks" in out
    assert "llama-3.1-8b" in out
    assert "rmsnorm" in out
    assert called("table", tmp_path / "study", "--csv", "-")[1].count("\n") == 5
    code, out, _ = called("table", tmp_path / "study", "--json", "--no-timings", "--csv", tmp_path / "t.csv")
    assert "seconds" not in json.loads(out)["columns"]
    assert (tmp_path / "t.csv").read_text().count("\n") == 5


def test_an_unknown_model_fails_by_itself_and_the_exit_code_is_1(called, tmp_path):
    spec = tmp_path / "s.yaml"
    spec.write_text(f"models: [random:pythia-160m, random:none, {tmp_path}/gone]\nverbs: [read]\n")
    code, out, _ = called("sweep", spec, "--json")
    swept = json.loads(out)
    assert (code, swept["computed"], swept["failed"]) == (1, 3, 2)
    assert [failure["model"] for failure in swept["failures"]] == ["random:none", f"{tmp_path}/gone"]
    code, out, _ = called("sweep", spec)
    flat = " ".join(out.split())
    assert code == 1
    assert "failed: read random:none: random:none is not" in flat or "failed: read random:none:" in flat
    assert "computed / found │ 2 / 1" in flat  # failures are tried again
    code, out, _ = called("table", tmp_path / "s")
    assert code == 0
    assert f"{tmp_path}/gone: no such file or directory".replace("\n", "") in out.replace("\n", "")


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        ("models: [a]\nverbs: [raed]", [], 2, "s.yaml, line 2: verbs[0]: 'raed' is not known; did you mean read?"),
        (SPEC, ["--shard", "3/2"], 2, "write i/n"),
        (SPEC, ["--engine", "slurm"], 2, "no such engine; there are in-process, ray"),
        (SPEC, ["--workers", "2"], 2, "workers is for the engine ray"),
        (SPEC, ["--engine", "ray", "--workers", "2", "--address", "auto"], 2, "leave them out"),
        (SPEC, ["--folder", "/proc/self/store"], 3, "name a writable folder"),
    ],
)
def test_bad_input_is_one_line(called, tmp_path, text, arguments, code, message):
    (tmp_path / "s.yaml").write_text(text)
    got, out, err = called("sweep", tmp_path / "s.yaml", *arguments)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_of_a_newer_version_is_refused(called, spec, tmp_path):
    called("sweep", spec)
    task = next((tmp_path / "study" / "tasks").glob("*.json"))
    task.write_text(task.read_text().replace('"deadreckon.task/1"', '"deadreckon.task/2"'))
    for command in (["sweep", spec], ["table", tmp_path / "study"]):
        code, _, err = called(*command)
        assert code == 2
        assert "install that or a newer one" in err


def test_shards_of_one_sweep_share_its_folder(called, spec, tmp_path):
    for shard in ("1/3", "2/3", "3/3"):
        assert called("sweep", spec, "--shard", shard, "--quiet")[0] == 0
    _, out, _ = called("sweep", spec, "--json")
    assert (json.loads(out)["found"], json.loads(out)["computed"]) == (4, 0)


def test_no_table(called, tmp_path):
    code, _, err = called("table", tmp_path)
    assert code == 3
    assert "deadreckon sweep" in err


def test_from_python(tmp_path):
    with pytest.raises(UsageError, match="has no folder by itself"):
        deadreckon.sweep({"models": ["random:pythia-160m"], "verbs": ["read"]})
    seen = []
    swept = deadreckon.sweep(
        {"models": ["random:pythia-160m"], "verbs": ["read"]}, tmp_path, progress=lambda *state: seen.append(state)
    )
    assert (swept.computed, swept.failed) == (1, 0)
    assert [(done, total, task.verb) for done, total, task in seen] == [(1, 1, "read")]
    assert [row["kind"] for row in deadreckon.table(tmp_path).rows] == ["layernorm"]


def test_killed_and_started_again_from_the_command_line(spec, tmp_path):
    """The command as a scheduler meets it: SIGKILL in the middle, the same command again, no task twice."""
    names = ", ".join(f"'random:pythia-160m#{i}'" for i in range(40))
    spec.write_text(f"models: [{names}]\nverbs: [census]\n")
    command = [sys.executable, "-m", "deadreckon", "sweep", str(spec), "--json"]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "study" / "tasks"
    while killed.poll() is None and (not folder.exists() or sum(1 for _ in os.scandir(folder)) < 5):
        pass
    killed.kill()
    killed.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.json")}
    swept = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert swept["found"] == len(done) >= 1
    assert swept["computed"] == 40 - len(done)
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
