# SPDX-License-Identifier: Apache-2.0
"""The page of `velo trace` in a real browser: it loads without a complaint, searches, zooms, sorts and folds.

Needs playwright and a Chromium, its own or one on PATH; `VELO_TESTS_PICTURES=FOLDER` keeps the screenshots.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_trace_notes import HOSTILE, line, notes, trace_of
from velo_import.trace.page import page as make_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    own = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    with playwright.sync_playwright() as player:
        try:
            # As root, in a container, Chromium has no sandbox.
            started = player.chromium.launch(
                executable_path=own, args=["--no-sandbox"] if os.geteuid() == 0 else []
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield started
        started.close()


class Page:
    """A trace on the screen, and everything the browser complained about or asked for."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.shown = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        self.shown.on("console", lambda message: self.complaints.append(message.text))
        self.shown.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.shown.on("request", lambda request: self.asked.append(request.url))
        self.shown.goto(path.as_uri())

    def rows(self) -> list[str]:
        """The modules in the table, top to bottom."""
        return [text.lstrip("▸▾ ") for text in self.shown.locator("#rows td:first-child").all_inner_texts()]

    def text(self, where: str) -> str:
        found: str = self.shown.inner_text(where)
        return found


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    """A trace with two trees, a failure and the names of an attacker, against one without Velo."""
    ms = 1_000_000
    lines = [
        line(
            1,
            0,
            "shop",
            1 * ms,
            60 * ms,
            find=1 * ms,
            read=2 * ms,
            unmarshal=4 * ms,
            exec=13 * ms,
            served="velo",
            origin="/shop.py",
        ),
        line(2, 1, "shop.cart", 15 * ms, 40 * ms, find=1 * ms, unmarshal=9 * ms, exec=20 * ms, served="velo"),
        line(
            3,
            2,
            "shop.tax",
            30 * ms,
            10 * ms,
            find=1 * ms,
            compile=6 * ms,
            exec=3 * ms,
            served="python",
            reason="source changed",
        ),
        line(4, 0, "numbers_", 65 * ms, 25 * ms, dlopen=20 * ms, exec=4 * ms, served="velo"),
        line(5, 0, "missing", 96 * ms, 1 * ms, find=1 * ms, served="nobody", error="ModuleNotFoundError"),
        *(line(6 + at, 0, name, (98 + at) * ms, ms // 10, served="other") for at, name in enumerate(HOSTILE)),
    ]
    trace = trace_of(notes(*lines, ascii(("end", 110 * ms))))
    path = tmp_path / "trace.html"
    path.write_text(make_page(trace, 0, trace, 0), encoding="utf-8", errors="backslashreplace")
    return path


def picture(page: Page, name: str) -> bytes:
    """What is on the screen."""
    kept = os.environ.get("VELO_TESTS_PICTURES")
    taken: bytes = page.shown.screenshot(path=Path(kept) / f"{name}.png" if kept else None)
    return taken


def test_the_page_loads(browser: Any, trace_file: Path) -> None:
    """Drawn without a complaint, without asking anybody, and the names of modules are nothing but text."""
    page = Page(browser, trace_file)

    assert page.complaints == []
    assert page.asked == [trace_file.as_uri()]
    assert page.text("h1") == "python app.py"
    assert page.rows()[:2] == ["shop", "numbers_"]
    assert page.shown.title() == "Import trace: python app.py"
    assert page.shown.locator("#rows script, #rows img").count() == 0
    assert page.shown.locator("canvas:visible").count() == 2


def test_search(browser: Any, trace_file: Path) -> None:
    """A part of a name, or of a reason, leaves the modules that have it, wherever they are in the tree."""
    page = Page(browser, trace_file)

    page.shown.fill("#search", "shop")
    assert page.rows() == ["shop", "shop.cart", "shop.tax"]
    assert page.text("#matches").startswith("3 of ")
    page.shown.fill("#search", "source changed")
    assert page.rows() == ["shop.tax"]
    page.shown.fill("#search", "")
    assert "shop.tax" not in page.rows()
    assert page.complaints == []


def test_zoom(browser: Any, trace_file: Path) -> None:
    """A click on a module shows it alone, with what is known about it; the wheel and Escape work as well."""
    page = Page(browser, trace_file)
    whole, before = page.text("#range"), picture(page, "whole")
    box = page.shown.locator("#chart").bounding_box()

    page.shown.mouse.click(box["x"] + box["width"] * 0.3, box["y"] + 19 * 2.5)
    assert page.text("#details h2") == "shop.cart"
    assert page.text("#range") == "14.20 ms to 55.80 ms"
    assert "shop" in page.text("#details dl")
    assert picture(page, "zoomed") != before
    page.shown.keyboard.press("Escape")
    assert page.text("#range") == whole
    page.shown.mouse.move(box["x"] + 300, box["y"] + 30)
    page.shown.mouse.wheel(0, -200)
    page.shown.wait_for_function("text => document.getElementById('range').innerText !== text", arg=whole)
    page.shown.click("#whole")
    assert page.text("#range") == whole
    assert page.complaints == []


def test_fold_and_sort(browser: Any, trace_file: Path) -> None:
    """The tree opens and closes; a click on a heading sorts, a second one the other way round."""
    page = Page(browser, trace_file)

    page.shown.click("#rows tr:first-child .toggle")
    assert page.rows()[:2] == ["shop", "shop.cart"]
    page.shown.click("#expand")
    assert page.rows()[:3] == ["shop", "shop.cart", "shop.tax"]
    page.shown.click("#collapse")
    assert "shop.cart" not in page.rows()
    page.shown.click("#as-list")
    page.shown.click("#head button:text('self ms')")
    assert page.rows()[:3] == ["shop.cart", "numbers_", "shop"]
    page.shown.click("#head button:text('self ms')")
    assert page.rows()[-3:] == ["shop", "numbers_", "shop.cart"]
    assert page.complaints == []


def test_colours_and_themes(browser: Any, trace_file: Path) -> None:
    """By phase or by who served; light, dark, and what the reader chose."""
    light, dark = Page(browser, trace_file), Page(browser, trace_file, "dark")
    ground = "getComputedStyle(document.body).backgroundColor"

    assert light.shown.evaluate(ground) == "rgb(255, 255, 255)"
    assert dark.shown.evaluate(ground) == "rgb(21, 24, 28)"
    by_phase = picture(light, "phase")
    light.shown.select_option("#colour", "served")
    assert picture(light, "served") != by_phase
    assert "velo 3 modules" in light.text("#legend")
    light.shown.click("#theme")
    light.shown.click("#theme")
    assert light.shown.evaluate(ground) == "rgb(21, 24, 28)"
    assert light.complaints == dark.complaints == []
