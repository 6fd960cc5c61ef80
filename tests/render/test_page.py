"""The page: sections for what is there, nothing asked of any network, the same bytes for the same results."""

import base64
import hashlib
import html
import importlib.util
import random
import re

import pytest
from made_records import census, classifications, everything, fisher, measurement, reproduction, task, trace

from deadreckon.errors import UnreachableError, UsageError
from deadreckon.render import report as module
from deadreckon.render.charts.base import data
from deadreckon.render.colours import PAGE
from deadreckon.results.saved import record_of

pytest.importorskip("altair", reason="the report's packages are not installed")
pytest.importorskip("vl_convert", reason="the report's packages are not installed")
report = module.report


def markup(page):
    """The page without its scripts, data and style."""
    return re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)


def headings(page):
    return [html.unescape(found) for found in re.findall(r"<h2[^>]*>(.*?)</h2>", markup(page))]


@pytest.mark.parametrize(
    ("record", "titles"),
    [
        (measurement(), ["Claims", "Predicted and measured", "Spectra"]),
        (measurement(spectrum=None), ["Claims", "Predicted and measured"]),
        (measurement("demo:minilm", twins=1), ["Claims", "Predicted and measured", "Spectra", "What training changed"]),
        (trace(), ["Residual stream"]),
        (classifications("a"), ["LayerNorm or RMSNorm: the evidence"]),
        (fisher(), ["Claims", "Fisher information"]),
        (census(), ["Dead parameter dimensions"]),
        (reproduction(), ["Claims", "The paper's table"]),
        (task(None, why="no such revision"), ["Failed tasks"]),
    ],
)
def test_a_section_is_there_when_its_records_are(record, titles):
    assert headings(report(record).to_html()) == [*titles, "Provenance"]


def test_a_reproduction_shows_its_claims_models_and_failures():
    made = report(reproduction("refuted"))
    assert made.headline == (
        "On 2 models at random initialisation: 0 of 1 claim of the paper that could be tested confirmed, 1 refuted."
    )
    text = markup(made.to_html())
    for said in (
        "refuted",
        "not tested",
        "llama-3.1-8b",
        "out of memory",
        "block 3: a scalar",
        "deadreckon-reproduce-full",
    ):
        assert said in text
    assert [figure.name for figure in made.figures] == ["reproduction-0"]


def test_checkpoints_make_a_trajectory_and_one_spectrum_a_run():
    run = [task(measurement("org/run", effective_rank=40.0 - k), step=k) for k in (0, 1, 2, 4, 512)]
    made = report(*run)
    assert "Over training" in headings(made.to_html())
    names = [figure.name for figure in made.figures]
    assert [figure.title for figure in made.figures if figure.name.startswith("spectrum")] == ["run, step 512"]
    assert sum(name.startswith("trajectory") for name in names) >= 4
    assert len(set(names)) == len(names)
    assert "Over training" not in headings(report(run[0]).to_html())  # one step is no trajectory


def test_the_headline_says_what_was_found():
    said = report(*everything()).headline
    assert "In 5 of 5 measurements" in said
    assert "RMSNorm leaves no such direction: in demo:smollm2 there is" in said
    assert "loses a direction in random:pythia-160m (block 3)" in said
    assert "1 task failed" in said


def test_a_collapse_is_named_in_words_chart_and_table():
    made = report(trace(collapsed=True))
    page = made.to_html()
    assert "At block 3, collapsed: branch cancellation." in page
    assert "collapsed at block 3" in str(made.figures[0].spec(PAGE))


@pytest.mark.parametrize("figure", report(*everything()).figures, ids=lambda figure: figure.name)
def test_every_chart_is_valid_vega_lite(figure):
    assert figure.chart(colours=PAGE).to_dict(validate=True)["$schema"].startswith("https://vega.github.io/schema/")


def test_the_policy_allows_the_pages_own_scripts_and_no_request():
    page = report(*everything()).to_html()
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    assert not re.search(r"unsafe|http|data:|\*", policy)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert len(scripts) == 2
    assert sorted(rules["script-src"].split()) == sorted(hashes)
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")
    assert not re.search(
        r"<(link|img|iframe|object|embed|base|form)\b|\ssrc=|\sstyle=|\son\w+=|href=\"(?!#)", markup(page)
    )


def test_the_library_is_there_once_and_only_with_charts():
    once = report(measurement()).to_html()
    twice = report(measurement(), measurement("other")).to_html()
    assert len(twice) - len(once) < 40_000
    assert len(report(task(None, why="gone")).to_html()) < 40_000


def test_fourteen_models_measured_twice_and_traced_stay_below_two_megabytes():
    from deadreckon.forward.conclude import kept_ranks
    from deadreckon.results.measurement import Eigenvalues

    def kept(size):
        ranks = kept_ranks(size)
        values = [1.2345678901234e-3 * rank for rank in ranks]
        return Eigenvalues(ranks=ranks, native=values, float64=values, native_floor=values, float64_floor=1e-15)

    records = [
        measurement(f"random:model-{k}", size=4096, spectrum=kept(4096), affine=affine)
        for k in range(14)
        for affine in (None, "lognormal:0.5")
    ]
    traces = [trace(f"random:model-{k}", blocks=60) for k in range(14)]
    kinds = [classifications(*(f"random:model-{k}" for k in range(14)))]
    assert len(report(*records, *traces, *kinds).to_html().encode()) < 2_000_000


def test_the_same_results_make_the_same_page():
    assert report(*everything()).to_html() == report(*everything()).to_html()


def test_words_and_tables_need_no_script():
    bare = markup(report(*everything()).to_html())
    for said in (
        "1.000000",
        "confirmed",
        "collapsed",
        "no such revision",
        "ab" * 32,
        "deadreckon 0.1.0",
        "torch 2.13.0",
    ):
        assert said in bare
    assert bare.count("<caption>") == bare.count("<table")
    assert bare.count('class="chart"') == bare.count('role="img" aria-label="Chart. ')


def test_contrast_is_that_of_readable_text():
    from deadreckon.render.colours import DARK, LIGHT

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colours in (LIGHT, DARK):
        for name in ("ink", "muted", "measured", "dead", "holds"):  # of text (WCAG AA)
            assert min(contrast(getattr(colours, name), on) for on in (colours.paper, colours.panel)) >= 4.5, name
        for colour in (*colours.series, colours.floor):  # of marks
            assert contrast(colour, colours.paper) >= 3, colour
        assert len(set(colours.series)) == len(colours.series)


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_its_packages_it_says_what_to_install(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(UnreachableError, match=r"pip install 'deadreckon\[report\]'"):
        report(measurement())


def test_images_are_made_by_the_same_charts(tmp_path):
    made = report(measurement("a/../b<c>"), trace(collapsed=True))
    files = made.save_images(tmp_path / "images")
    assert len(files) == len(made.figures)
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in files)
    assert all(path.parent == tmp_path / "images" and re.fullmatch(r"[a-z0-9-]+\.png", path.name) for path in files)
    svg = [path.read_text() for path in made.save_images(tmp_path / "svg", "svg")]
    assert any("collapsed at block 3" in text for text in svg)
    assert not any("var(--" in text or "<c>" in text for text in svg)
    with pytest.raises(UsageError, match="png or svg"):
        made.save_images(tmp_path, "gif")
    with pytest.raises(UnreachableError, match="folder"):
        made.save_images(files[0])


def test_saving_is_whole_or_not_at_all(tmp_path):
    path = report(census()).save(tmp_path / "r.html")
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    with pytest.raises(UnreachableError, match="name a writable place"):
        report(census()).save(tmp_path / "nowhere" / "r.html")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


EXTREMES = [0.0, -1.0, -1e-30, 5e-324, 1e-300, 1e-17, 1e300, 1.7976931348623157e308, 1.0]


def shaken(value, rng):
    """A record's dictionary with any of its numbers set to an extreme, and any list or text emptied."""
    if isinstance(value, dict):
        return {key: shaken(part, rng) for key, part in value.items()}
    if isinstance(value, list):
        return [] if rng.random() < 0.05 else [shaken(part, rng) for part in value]
    if isinstance(value, float):
        return rng.choice(EXTREMES) if rng.random() < 0.2 else value
    return "" if isinstance(value, str) and not value.startswith("deadreckon.") and rng.random() < 0.05 else value


@pytest.mark.parametrize("seed", range(6))
def test_extreme_numbers_and_missing_parts_make_a_page_or_a_clear_error(seed):
    rng = random.Random(seed)
    records = [record_of(shaken(record.to_dict(), rng)) for record in everything()]
    made = report(*records)
    made.to_html()
    for figure in made.figures:
        assert "NaN" not in str(figure.spec(PAGE))


def test_a_cosine_short_of_1_is_not_shown_as_1():
    (row,) = data([{"value": 0.9999961}]).to_dict()["values"]
    assert f"{row['value']:.6f}" == "0.999996"
