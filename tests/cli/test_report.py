"""``deadreckon report``: one page from saved results, and one clear line where that cannot be."""

import json
import os

import pytest
from made_records import everything, measurement, task

from deadreckon.results.measurement import Demonstration

pytest.importorskip("altair", reason="the report's packages are not installed")
pytest.importorskip("vl_convert", reason="the report's packages are not installed")


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store" / "tasks"
    folder.mkdir(parents=True)
    for k, record in enumerate(everything()):
        (folder / f"{k:02d}.json").write_text(record.to_json())
    return folder.parent


def test_a_store_becomes_a_page(called, store, tmp_path):
    page = tmp_path / "r.html"
    code, out, err = called("report", store, "-o", page, "--title", "Our runs")
    assert (code, err) == (0, "")
    assert out.startswith("In 5 of 5 measurements")
    assert out.endswith(f"report: {page}\n")
    text = page.read_text(encoding="utf-8")
    assert "<title>Our runs</title>" in text
    assert f"deadreckon report {store}" in text


def test_charts_become_images(called, store, tmp_path):
    images = tmp_path / "images"
    places = (store / "tasks" / "04.json", store / "tasks" / "06.json", "-o", tmp_path / "r.html")
    code, out, _ = called("report", *places, "--png", images, "--svg", images)
    assert code == 0
    assert f"charts: 2 images in {images}\n" in out
    name = "01-census-exactly-dead-parameter-dimensions-by-family"
    assert sorted(path.name for path in images.iterdir()) == [f"{name}.png", f"{name}.svg"]


def test_the_default_is_a_file_here(called, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = called("report", store / "tasks" / "00.json", "--quiet")
    assert (code, out) == (0, "")
    assert (tmp_path / "deadreckon-report.html").exists()


def test_a_verbs_own_output_becomes_a_page(called, tmp_path):
    assert called("read", "random:pythia-160m", "-o", tmp_path / "a.json")[0] == 0
    code, out, _ = called("report", tmp_path, "-o", tmp_path / "r.html")
    assert code == 0
    assert "name 1 dead direction; nothing was run" in out


def refused(called, *arguments):
    code, out, err = called("report", *arguments)
    assert out == ""
    assert err.startswith("deadreckon: ")
    assert err.count("\n") == 1
    return code, err


def test_what_cannot_be_shown_is_refused_in_a_line(called, tmp_path):
    page = tmp_path / "r.html"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(called, empty, "-o", page) == (
        2,
        f"deadreckon: {empty}: no result there; name files that --out wrote, or their folder\n",
    )
    code, err = refused(called, tmp_path / "nothing.json", "-o", page)
    assert (code, "No such file" in err) == (3, True)
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps({**measurement().to_dict(), "schema": "deadreckon.measure/9", "deadreckon": "9.9.9"}))
    code, err = refused(called, newer, "-o", page)
    assert (code, "deadreckon 9.9.9, install" in err) == (2, True)
    damaged = tmp_path / "damaged.json"
    damaged.write_text(measurement().to_json()[:-50])
    code, err = refused(called, damaged, "-o", page)
    assert (code, "not JSON" in err) == (2, True)
    tampered = tmp_path / "tampered.json"
    broken = task(measurement()).to_dict()
    broken["result"]["tokens"] = "many"
    tampered.write_text(json.dumps(broken))
    code, err = refused(called, tampered, "-o", page)
    assert (code, "tampered.json" in err, "tokens" in err) == (2, True, True)
    assert not page.exists()


def test_a_page_that_cannot_be_written_leaves_nothing_behind(called, store, tmp_path):
    code, err = refused(called, store, "-o", tmp_path / "nowhere" / "r.html")
    assert (code, "nothing was written there" in err) == (3, True)
    code, err = refused(called, store, "-o", store)
    assert code == 3
    (tmp_path / "file").write_text("")
    code, _, err = called("report", store, "-o", tmp_path / "r.html", "--png", tmp_path / "file", "--quiet")
    assert (code, "name a folder that can be made" in err) == (3, True)
    assert not list(tmp_path.rglob(".*"))


def test_what_was_there_is_replaced_whole(called, store, tmp_path):
    page = tmp_path / "r.html"
    page.write_text("old")
    os.chmod(page, 0o644)
    assert called("report", store, "-o", page, "-q")[0] == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.fixture
def demonstrated(monkeypatch, minilm, smollm2):
    """The demo without its minutes of measuring."""
    import deadreckon
    from deadreckon.verbs import demo

    shown = Demonstration(
        model="demo:minilm, demo:smollm2",
        readings=[deadreckon.read("demo:minilm"), deadreckon.read("demo:smollm2")],
        measurements=[measurement("demo:minilm", dead=3, twins=1), measurement("demo:smollm2", "rmsnorm", twins=1)],
    )
    monkeypatch.setattr(demo, "demo", lambda **_: shown)
    return shown


def test_the_demo_ends_with_a_report_and_says_where_it_is(called, demonstrated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = called("demo", "-o", "demo.json")
    assert code == 0
    assert out.endswith("\nreport: deadreckon-report.html\n")
    page = (tmp_path / "deadreckon-report.html").read_text(encoding="utf-8")
    for title in (
        "Claims",
        "Spectra",
        "What training changed",
        "Read from the parameters",
        "Dead parameter dimensions",
    ):
        assert f">{title}</h2>" in page
    assert json.loads((tmp_path / "demo.json").read_text())["schema"] == "deadreckon.demo/1"


def test_the_demos_json_stays_alone_on_stdout(called, demonstrated, tmp_path):
    code, out, err = called("demo", "--json", "--report", tmp_path / "r.html")
    assert code == 0
    assert json.loads(out) == demonstrated.to_dict()
    assert f"report: {tmp_path / 'r.html'}" in err


def test_the_demo_does_without_a_report(called, demonstrated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert called("demo", "--report", "")[0] == 0
    monkeypatch.setattr("deadreckon.render.report.find_spec", lambda name: None)
    code, out, err = called("demo")
    assert code == 0
    assert "report:" not in out
    assert "pip install 'deadreckon[report]'" in err
    assert not list(tmp_path.iterdir())
