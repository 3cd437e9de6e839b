"""What a person sees of the pages in headless Chromium: no complaint, no request, tables that sort, room on a phone."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from browser import CHROMIUM, browser
from test_page import HOSTILE, OWN, REPORTS, RESULTS, report, row

from fastgd.bench.curves_page import page as curves_page
from fastgd.bench.page import html

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
matplotlib_image = pytest.importorskip("matplotlib.image")

WIDTHS = (1200, 360)
SORTED = report(
    row("roof", 2e-3, max_ulp=None),
    row(OWN, 10e-3),
    row("torch-fused", 900e-6),
    row("optax", skipped="not installed: " + "a long reason why this could not be measured, " * 3),
    row("numpy-inplace", 1.1, max_ulp=1e7),
    row("numexpr", 20e-3),
)
MANY = report(
    *(
        row(peer, t * n * 1e-9, rule=rule, dtype=dtype, n=n)
        for rule in ("adamw", "sgd")
        for dtype in ("float32", "float64")
        for n in (64, 4096, 1 << 20, 1 << 26)
        for peer, t in (("roof", 0.9), (OWN, 1.0), ("torch-fused", 1.5), ("numpy-textbook", 9.0))
    ),
    *(row(peer, rule=f"rule{k}") for k in range(14) for peer in ("roof", OWN)),
)
HELD = report(*(row(peer, rule=HOSTILE, regime=HOSTILE) for peer in (OWN, HOSTILE)), cpu=HOSTILE * 4)
PAGES = {name: html(made) for name, made in (REPORTS | {"sorted": SORTED, "many": MANY, "hostile": HELD}).items()}
PAGES["curves"] = curves_page(json.loads((RESULTS / "curves.json").read_text()))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, text in PAGES.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture
def opened(chromium, files):
    with chromium.page(files["sorted"]) as page:
        yield page


def picture(png):
    """Red, green and blue from 0 to 255."""
    return np.rint(255 * matplotlib_image.imread(io.BytesIO(png))[..., :3]).astype(np.int64)


def test_the_browser_tells_what_is_wrong_with_a_page(chromium, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<img src='missing.png'><script>console.log('said'); throw Error('thrown')</script><p style='width: 999px'>wide"
    )
    with chromium.page(tmp_path / "bad.html", 360) as page:
        assert {address.rsplit("/")[-1] for address in page.requests} == {"missing.png"}
        assert len(page.complaints) == 3  # what was said, what was thrown, what is missing
        assert page.run("document.documentElement.scrollWidth") > 360


def test_a_script_that_is_not_ours_does_not_run(chromium, tmp_path):
    text = PAGES["sorted"].replace("</main>", "<script>window.hit = 1</script><img src='x.png' /></main>")
    (tmp_path / "worse.html").write_text(text, encoding="utf-8")
    with chromium.page(tmp_path / "worse.html") as page:
        assert page.run("window.hit") is None
        assert len(page.complaints) == 2  # the policy refuses both


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_is_seen_in_light_and_dark_without_a_complaint(chromium, files, name, width):
    seen = {}
    for scheme in ("light", "dark"):
        with chromium.page(files[name], width, scheme) as page:
            seen[scheme] = picture(page.screenshot())
            assert page.complaints == []
            assert page.requests == []
            assert page.run("document.documentElement.scrollWidth") == width  # a wide table scrolls by itself
            assert page.run("window.hit") is None
    light, dark = seen["light"], seen["dark"]
    assert light.shape == dark.shape == (900, width, 3)
    for image in (light, dark):  # neither blank nor a single word on a ground
        colours = image @ (1 << 16, 1 << 8, 1)
        assert 0.02 < np.mean(colours != colours[-1, -1]) < 0.6
        assert len(np.unique(colours)) > 50
    assert light.mean() > 200 > 60 > dark.mean()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_but_tables_is_wider_than_the_page(chromium, files, name, width):
    with chromium.page(files[name], width) as page:
        wide = (
            "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide table, svg svg, svg g')"
            " && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"
        )
        assert page.run(wide) == []


def test_letters_of_plots_are_large_enough_on_a_phone(chromium, files):
    with chromium.page(files["many"], 360) as page:
        heights = page.run(
            "[...document.querySelectorAll('svg.plot text')].map(e => parseFloat(getComputedStyle(e).fontSize)"
            " * e.ownerSVGElement.getScreenCTM().a)"
        )
    assert len(heights) > 50 and min(heights) > 9.5


def column(page, number):
    return page.run(f"[...document.querySelectorAll('section tbody tr')].map(r => r.cells[{number}]?.textContent)")


def sorting(page):
    return page.run("[...document.querySelectorAll('section thead th')].map(h => h.getAttribute('aria-sort'))")


BY_TIME = ["torch-fused", "roof", OWN, "numexpr", "numpy-inplace", "optax"]


def test_a_press_on_a_heading_sorts_by_the_figures_and_then_the_other_way(opened):
    assert sorting(opened) == ["none"] * 7
    opened.click("section th:nth-child(2) button")
    assert column(opened, 0) == BY_TIME
    assert sorting(opened) == ["none", "ascending", *["none"] * 5]
    opened.click("section th:nth-child(2) button")
    assert column(opened, 0) == [*BY_TIME[-2::-1], "optax"]  # what was skipped stays last
    assert sorting(opened) == ["none", "descending", *["none"] * 5]
    opened.click("section th:nth-child(1) button")
    assert column(opened, 0) == sorted(BY_TIME)
    assert sorting(opened) == ["ascending", *["none"] * 6]
    opened.click("section th:nth-child(7) button")
    assert column(opened, 6) == ["1.0", "1.0", "1.0", "WRONG: 1e+07", None, ""]  # equal ones stay as they were
    assert column(opened, 0) == [OWN, "numexpr", "torch-fused", "numpy-inplace", "optax", "roof"]
    assert opened.complaints == []


@pytest.mark.parametrize("key", ["Enter", " "])
def test_a_heading_is_reached_and_pressed_by_keys(opened, key):
    opened.run("document.querySelector('section .wide').focus()")
    for _ in range(2):
        opened.press("Tab")
    assert opened.run("document.activeElement.textContent") == "time"
    assert opened.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.press(key)
    assert column(opened, 0) == BY_TIME
    assert opened.run("document.activeElement.textContent") == "time"  # and is still there to be pressed again


def test_tables_sort_apart_and_on_every_page(chromium, files):
    for name in ("many", "curves"):
        with chromium.page(files[name]) as page:
            before = page.run("[...document.querySelectorAll('tbody')].map(b => b.textContent)")
            page.click("thead th:nth-child(4) button")
            page.click("thead th:nth-child(4) button")
            after = page.run("[...document.querySelectorAll('tbody')].map(b => b.textContent)")
            assert before[0] != after[0] and before[1:] == after[1:]
            assert page.complaints == []


def test_sizes_sort_as_numbers(chromium, files):
    with chromium.page(files["many"]) as page:
        page.click("thead th:nth-child(2) button")
        sizes = page.run("[...document.querySelector('tbody').rows].map(r => r.cells[1].textContent)")
    assert sizes == ["64"] * 4 + ["4 k"] * 4 + ["1 M"] * 18 + ["64 M"] * 4


def test_a_name_leads_to_its_figures(chromium, files):
    with chromium.page(files["many"]) as page:
        page.click("tbody tr:nth-child(16) a")
        assert page.run("document.querySelector(':target h3').textContent").startswith("sgd float64, 64 M")
        assert page.run("document.querySelector(':target').getBoundingClientRect().top < innerHeight")
