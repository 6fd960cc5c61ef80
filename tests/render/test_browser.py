"""Reports in headless Chromium: charts are drawn, nothing is asked for, and hostile names stay names."""

import io

import pytest
from made_records import everything, measurement

from deadreckon.render.markup import visible
from deadreckon.render.report import report

pytest.importorskip("altair", reason="the report's packages are not installed")
pytest.importorskip("vl_convert", reason="the report's packages are not installed")

# Each tries to run one line of its own: as markup, as a script's end, as an attribute, as an expression, as a link.
HOSTILE = [
    "</script><script>window.hacked=1</script>",
    "</title></style></noscript><img src=x onerror=window.hacked=1>",
    "\"'><svg onload=window.hacked=1><b x='",
    "<!--<script>--><iframe srcdoc='<script>parent.hacked=1</script>'>",
    "javascript:window.hacked=1//data:text/html,<script>window.hacked=1</script>",
    "{{constructor.constructor('window.hacked=1')()}}${window.hacked=1}`+(window.hacked=1)+`",
    "datum.model']; window.hacked = 1; //\\'); window.hacked = 1; //",
    "https://example.org/x.png\u202egnp.\u2028window.hacked=1\x00\ud800",
]


@pytest.fixture(scope="module")
def made():
    return report(*everything(), title="Everything")


@pytest.fixture(scope="module")
def page(made):
    return made.to_html()


def brightness(shown):
    """Mean brightness of what is seen, 0 to 255."""
    from PIL import Image, ImageStat

    return ImageStat.Stat(Image.open(io.BytesIO(shown.screenshot())).convert("L")).mean[0]


def drawn(shown):
    """Chart -> number of marks that are seen in it."""
    marks = ".mark-symbol path, .mark-rect path, .mark-line path, .mark-rule line, .mark-bar path"
    count = f"chart => [chart.id.slice(6), chart.querySelectorAll('{marks}').length]"
    return shown.evaluate(f"Object.fromEntries([...document.querySelectorAll('.chart')].map({count}))")


WIDTHS = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"color_scheme": "dark"},
        {"viewport": {"width": 400, "height": 800}},
        {
            "viewport": {"width": 400, "height": 800},
            "color_scheme": "dark",
            "device_scale_factor": 2,
            "has_touch": True,
        },
    ],
    ids=["light", "dark", "narrow", "narrow-dark"],
)


@WIDTHS
def test_all_charts_are_drawn_without_a_request_or_a_complaint(opened, made, page, settings):
    shown = opened(page, **settings)
    assert shown.asked == []
    assert shown.complaints == []
    marks = drawn(shown)
    assert set(marks) == {figure.name for figure in made.figures}
    assert min(marks.values()) >= 3, marks
    width = settings.get("viewport", {"width": 1200})["width"]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    # Each chart fits its place, and nothing but tables, which scroll by themselves, is wider than the page.
    wide = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg") &&
      e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert shown.evaluate(wide) == []
    assert (brightness(shown) < 90) == (settings.get("color_scheme") == "dark")
    if settings.get("color_scheme") == "dark":
        shown.emulate_media(color_scheme="light")  # charts follow without being drawn again
        colour = "getComputedStyle(document.querySelector('.mark-symbol path')).stroke"
        light = shown.evaluate(colour)
        shown.emulate_media(color_scheme="dark")
        assert shown.evaluate(colour) != light


def test_on_paper_it_is_light_open_and_whole(opened, page):
    shown = opened(page, color_scheme="dark")
    shown.emulate_media(media="print", color_scheme="dark")
    assert brightness(shown) > 200
    assert shown.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    pdf = shown.pdf(format="A4")
    assert pdf.startswith(b"%PDF-")
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not shown.evaluate("[...document.querySelectorAll('details')].some(one => one.open)")
    shown.set_viewport_size({"width": 718, "height": 1000})  # A4 between its margins
    assert shown.evaluate("document.documentElement.scrollWidth") <= 718


def test_words_and_tables_are_there_without_scripts(opened, page):
    shown = opened(page, java_script_enabled=False)
    assert shown.complaints == []
    text = shown.locator("body").inner_text()
    assert "Charts need JavaScript" in text
    assert "In 5 of 5 measurements" in text
    assert "no such revision" in text
    assert shown.locator(".chart").first.is_hidden()


def test_a_mark_tells_its_values_and_shift_and_wheel_zoom(opened):
    shown = opened(report(measurement("org/a model")).to_html())
    # The kernel's eigenvalue as computed: at its floor, so an open circle in the shaded rank.
    first = shown.locator("#chart-spectrum-0 .mark-symbol path[fill-opacity='0']").first
    first.scroll_into_view_if_needed()
    first.hover(force=True)
    tip = shown.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert "as computed" in tip.inner_text()
    assert "1.00e-14" in tip.inner_text()
    labels = (
        "[...document.querySelectorAll('#chart-spectrum-0 .role-axis-label text')].map(t => t.textContent).join(' ')"
    )
    before = shown.evaluate(labels)
    assert "10⁻" in before
    box = shown.locator("#chart-spectrum-0 svg").bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.mouse.wheel(0, -200)  # without Shift it scrolls the page
    shown.wait_for_timeout(200)
    assert shown.evaluate(labels) == before
    box = shown.locator("#chart-spectrum-0 svg").bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.keyboard.down("Shift")
    shown.mouse.wheel(0, -400)
    shown.keyboard.up("Shift")
    shown.wait_for_timeout(200)
    assert shown.evaluate(labels) != before
    assert shown.complaints == []


@pytest.mark.parametrize("guarded", [True, False], ids=["by the policy too", "by escaping alone"])
def test_hostile_names_stay_names(opened, guarded):
    given = {}

    def name(original):
        """Another of them for each name and text, and not the same in both runs."""
        hostile = HOSTILE[(len(given) + 3 * guarded) % len(HOSTILE)]
        return given.setdefault(original, f"{original} {hostile}")

    made = report(*everything(name), title=name("Title"), command=name("deadreckon report"))
    shown = opened(made.to_html(), bypass_csp=not guarded)
    # Tooltips are made as the mouse goes over marks.
    for chart in ("alignment", "fisher-0", "stream-0"):
        for mark in shown.locator(f"#chart-{chart} .mark-symbol path").all()[:4]:
            mark.scroll_into_view_if_needed()
            mark.hover(force=True)
    shown.wait_for_timeout(50)
    assert shown.evaluate("window.hacked") is None
    assert shown.asked == []
    assert shown.complaints == []  # a script that was kept from running would be one
    assert shown.evaluate("document.querySelectorAll('script').length") == 3
    foreign = "document.querySelectorAll('img, iframe, object, embed, image, [onload], [onerror], body svg b').length"
    assert shown.evaluate(foreign) == 0
    links = shown.evaluate("[...document.querySelectorAll('a, [*|href]')].map(a => a.getAttribute('href') || '#')")
    assert all(link.startswith("#") for link in links)
    assert len(drawn(shown)) == len(made.figures)
    assert min(drawn(shown).values()) >= 3
    assert shown.evaluate("document.documentElement.scrollWidth") <= 1200
    text = shown.evaluate("document.body.textContent")
    assert [one for one in given.values() if visible(one) not in text] == []


def test_the_hostile_names_would_run_if_they_were_not_escaped(opened):
    """A negative control: set as markup, without the policy, they run."""
    ran = 0
    for hostile in HOSTILE[:4]:
        shown = opened(
            f"<!doctype html><html data-drawn><meta charset=utf-8><title>t</title><noscript></noscript>{hostile}</html>"
        )
        shown.wait_for_timeout(100)
        ran += shown.evaluate("window.hacked") == 1
    assert ran == 4
