"""Pages in a real browser, Debian's Chromium: nothing fails, everything fits, light and dark, telephone and screen."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlpips_jax.reports.charts import Curve, Dots, curve_chart, dot_chart
from rlpips_jax.reports.page import Cell, Charts, Code, Number, Numbers, Pictures, Section, Shown, Table, Text, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
LONG = "a-metric-whose-name-is-as-long-as-the-path-of-a-file.safetensors"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs: pip install playwright"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(OPTIONS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every block, of words and numbers that are hard to fit."""
    rng = np.random.default_rng(0)
    pictures = [Shown(rng.integers(0, 256, (64, 96, 3), np.uint8), LONG, ("distance 0.123",), "bad") for _ in range(7)]
    header = ("metric", *(f"pgd {radius}/255" for radius in range(1, 7)), "signature")
    row = (LONG, *(Cell("0.123", "[0.100, 0.150]", best=True) for _ in range(6)), "parameters=" + 64 * "a")
    curves = [Curve(LONG, number, [0, 1, 4], [1, 0.5, number / 8], ([0.9, 0.4, 0], [1, 0.6, 1])) for number in range(8)]
    kinds = ["blur", "salt_pepper", LONG]
    dots = [Dots("m", number, [(0.5, 0.1, 0.9)] * 3) for number in range(3)]
    by_kind = dot_chart(kinds, dots, title="k", x_label="x")
    blocks = [
        Text(f"Words, `{LONG}{LONG}` and [a link](https://example.org/)."),
        Numbers([Number("0.913 → 0.256", f"`{LONG}`", "note", "bad")] * 3),
        Table(header, [row] * 3, "Wide"),
        Charts([curve_chart(curves, title=LONG, x_label="x", y_label="y"), by_kind]),
        Pictures([("small", pictures)]),
        Pictures([("", pictures[:5])], size="large"),
        Code([200 * "x", "rlpips distance a.png b.png"]),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(f"A page of {LONG}", "All of it.", [Section("All", blocks)]), encoding="utf-8")
    return path


OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(of => {
    const box = of.getBoundingClientRect();
    return box.width > 0 && !of.closest('thead') && !of.closest('svg')
        && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(of => of.outerHTML.slice(0, 120))"""

CUT = """() => [...document.querySelectorAll('tbody td, tbody th')].filter(
    of => of.getClientRects().length && of.scrollWidth > of.clientWidth + 1).map(of => of.outerHTML.slice(0, 120))"""

CONTRAST = """() => {
    const channel = value => { value /= 255; return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4 };
    const luminance = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
        return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b) };
    const behind = of => { for (; of; of = of.parentElement) {
        const colour = getComputedStyle(of).backgroundColor;
        if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return colour } return 'rgb(255, 255, 255)' };
    return [...document.querySelectorAll('p, td span, th, h1, h2, h4, figcaption, li, b, small, code, summary, footer')]
        .filter(of => of.getClientRects().length).map(of => {
            const [a, b] = [luminance(getComputedStyle(of).color), luminance(behind(of))];
            return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), of.outerHTML.slice(0, 120)] })
        .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_a_page_can_be_read(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("[...document.images].every(of => of.complete && of.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(CUT) == []
    # Readable by the definition of WCAG 2 AA.
    assert page.evaluate(CONTRAST) == []
    smallest = (
        "Math.min(...[...document.querySelectorAll('td, th, p')].map(of => parseFloat(getComputedStyle(of).fontSize)))"
    )
    assert page.evaluate(smallest) >= 13
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark.removeprefix("rgb(").removesuffix(")").split(","))) < 200) == (scheme == "dark")
    context.close()
