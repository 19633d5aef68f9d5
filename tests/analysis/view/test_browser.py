"""The page in a real browser: what is clicked and typed, on a desk and on a phone, and that it asks nobody else."""

from __future__ import annotations

import html
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_report import IMAGES, make_store, spec_of

pytest.importorskip("attlas.analysis.view.api")
playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright: pip install it")
from attlas.analysis.statistics import analyze  # noqa: E402
from attlas.analysis.view import Atlas, Server, write  # noqa: E402
from attlas.analysis.view.single import embedded  # noqa: E402
from attlas.engine.store.store import Store  # noqa: E402

# Playwright's expectations wait; its `wait_for_function` would need the `eval` that the page forbids.
expect = playwright.expect


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, once."""
    expect.set_options(timeout=20_000)
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no chromium: install the system's, or name one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of the same pictures: with registers on a grid that is no square, and without prefix tokens."""
    folder = tmp_path_factory.mktemp("browsed")
    first = make_store(folder / "first.zarr", reduce=True)
    analyze(first.path, ["offset_map_mean", "entropy"])
    second = make_store(folder / "second.zarr", spec_of(grid=(4, 4), prefix=(), layers=3), reduce=True)
    return [Path(first.path), Path(second.path)]


@pytest.fixture
def serve() -> Iterator[Callable[[list[Path]], str]]:
    """Serves stores, and gives the address."""
    servers = []

    def start(stores: list[Path]) -> str:
        servers.append(Server(Atlas(stores)).start())
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def opened(browser: Any, serve: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address; at the end nothing was asked of others, and the console is empty.

    It takes `serve` so that pages close before their servers: a page that still asks would find nobody, and say so.
    """
    contexts, said, asked, home = [], [], [], []

    def open_page(url: str, ready: str = ".cell, .box, figure", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        home.append(url.partition("#")[0])
        page.goto(url)
        page.wait_for_selector(ready)
        expect(page.locator(".attlas")).to_have_attribute("data-busy", "0")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((*home, "data:", "blob:"))] == []


@pytest.fixture
def url(serve: Callable[[list[Path]], str], stores: list[Path]) -> str:
    return serve(stores[:1])


def test_from_the_grid_to_a_patch_of_a_picture(opened: Callable[..., Any], url: str) -> None:
    page = opened(url)
    expect(page.locator(".total")).to_have_text(f"{IMAGES} pictures")
    page.keyboard.press("/")
    page.keyboard.type("answer:wrong")
    expect(page.locator(".total")).to_have_text("10 of 22 pictures")
    page.locator(".cell").first.click()
    page.wait_for_selector(".overlay[data-shows='1/1/attention']")
    expect(page.locator(".says")).to_contain_text("Layer 1, mean of 2 heads: what the class token attends to;")
    page.locator(".box").click(position={"x": 200, "y": 100})
    expect(page.locator(".says").first).to_contain_text("what patch (1, 2) attends to")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("d")
    page.keyboard.press("[")
    page.keyboard.press("1")
    expect(page.locator(".says").first).to_contain_text("head 1: who attends to patch (1, 3)")
    for part in ("image=1&", "layer=0&", "heads=1&", "at=0.7000%2C0.5000", "from=1"):
        expect(page).to_have_url(re.compile(part))
    page.keyboard.press("n")
    page.wait_for_selector(".overlay[data-shows='3/0/attention']")  # the next of those that were found
    linked = opened(page.url)
    expect(linked.locator(".says")).to_contain_text("who attends to patch (1, 3)")
    linked.keyboard.press("m")
    linked.wait_for_selector(".overlay[data-shows='3/0/rollout']")
    linked.keyboard.press("Escape")
    linked.wait_for_selector(".cell")
    linked.keyboard.press("?")
    assert linked.locator("dialog kbd").count() > 20


def test_tiles_are_what_the_store_holds(opened: Callable[..., Any], url: str, stores: list[Path]) -> None:
    """The brightest cell of every small map lies where attention is largest."""
    from attlas.engine.store.store import Store

    page = opened(f"{url}#image=4&at=0.5,0.5")
    page.wait_for_selector(".overlay[data-shows='4/1/attention']")
    brightest = page.evaluate(
        """() => [...document.querySelectorAll('.tile canvas')].slice(0, 4).map(canvas => {
          const data = canvas.getContext('2d').getImageData(0, 0, 5, 3).data, sums = [];
          for (let i = 0; i < 15; i++) sums.push(data[4 * i] + data[4 * i + 1] + data[4 * i + 2]);
          return sums.indexOf(Math.max(...sums));
        })"""
    )
    kept = Store(stores[0]).read("attention", 4)[:, :, 2 + 7, 2:]  # (layer, head, patch); tiles are head by head
    assert brightest == kept.argmax(axis=-1).T.ravel().tolist()


def test_two_stores_are_linked(opened: Callable[..., Any], serve: Any, stores: list[Path]) -> None:
    page = opened(f"{serve(stores)}#image=4&layer=0")
    page.locator(".box").nth(1).hover(position={"x": 5, "y": 5})
    expect(page.locator(".says")).to_contain_text(["patch (0, 0)", "patch (0, 0)"])
    page.locator(".box").nth(1).click(position={"x": 400, "y": 400})
    expect(page.locator(".says")).to_contain_text(["patch (2, 4)", "patch (3, 3)"])
    page.keyboard.press("]")
    page.wait_for_selector(".overlay[data-shows='4/2/attention']")  # by depth: the last of three beside the last of two


def test_on_a_phone_in_the_dark(opened: Callable[..., Any], url: str) -> None:
    phone = {"viewport": {"width": 420, "height": 860}, "color_scheme": "dark", "has_touch": True}
    page = opened(f"{url}#view=dataset", **phone)
    page.locator("circle").first.tap()
    expect(page.locator("dialog .offset")).to_contain_text("Most at")
    page.locator("dialog .toggle").tap()
    page.wait_for_selector(".overlay[data-shows$='/0/attention']")
    page.locator(".box").tap(position={"x": 30, "y": 20})
    expect(page.locator(".says").first).to_contain_text("patch (0, 0)")
    for hash_ in ("#", "#image=0", "#view=dataset"):
        page.goto(f"{url}{hash_}")
        expect(page.locator(".attlas")).to_have_attribute("data-busy", "0")
        assert page.evaluate("document.documentElement.scrollWidth") <= 420
    assert page.evaluate("getComputedStyle(document.querySelector('.attlas')).backgroundColor") == "rgb(21, 24, 29)"
    page.keyboard.press("l")
    assert page.evaluate("getComputedStyle(document.querySelector('.attlas')).backgroundColor") == "rgb(255, 255, 255)"


def test_as_a_widget(opened: Callable[..., Any], url: str) -> None:
    """A notebook's model carries each request as a message; here it asks the server."""
    page = opened(url)
    page.evaluate(
        """async () => {
          const { default: widget } = await import('./atlas.js'), el = document.createElement('div');
          let answer;
          const model = { on: (_, callback) => { answer = callback; }, send: async ({ id, path }) => {
            const found = await fetch(path), text = found.headers.get('Content-Type').startsWith('text/plain');
            if (text) answer({ id, why: await found.text() }, []);
            else answer({ id }, [new DataView(await found.arrayBuffer())]);
          } };
          document.body.replaceChildren(el);
          widget.render({ model, el });
        }"""
    )
    page.locator(".within .cell").nth(1).click()
    expect(page.locator(".within .overlay")).to_have_attribute("data-shows", "1/1/attention")
    assert page.url.rstrip("#") == url
    page.locator(".within .box").click(position={"x": 5, "y": 5})
    expect(page.locator(".within .says")).to_contain_text("patch (0, 0)")
    page.locator(".within").press("n")
    expect(page.locator(".within .overlay")).to_have_attribute("data-shows", "2/1/attention")


def test_a_frame_of_a_report(opened: Callable[..., Any], stores: list[Path], tmp_path: Path) -> None:
    """It has no address of its own that it could change."""
    frame = f'<iframe srcdoc="{html.escape(embedded(stores[0], 2))}" width="1200" height="800"></iframe>'
    path = tmp_path / "report.html"
    path.write_text(f'<!doctype html><figure class="attlas" data-busy="0">{frame}</figure>', "utf-8")
    inside = opened(path.as_uri()).frame_locator("iframe")
    inside.locator(".cell").nth(1).click()
    expect(inside.locator(".overlay")).to_have_attribute("data-shows", re.compile("/attention$"))
    inside.locator(".box").press("s")
    expect(inside.locator("figure").first).to_be_visible()


def test_the_single_file(opened: Callable[..., Any], stores: list[Path], tmp_path: Path) -> None:
    page = opened(write(stores, tmp_path / "atlas.html", count=3).as_uri())
    expect(page.locator(".cell")).to_have_count(3)
    page.locator(".cell").nth(1).click()
    expect(page.locator(".overlay[data-shows$=attention]")).to_have_count(2)
    image = int(str(page.locator(".overlay").first.get_attribute("data-shows")).partition("/")[0])
    store = Store(stores[0])
    row = store.read("attention", (image, 1)).astype(np.float64)[:, 0, len(store.spec.prefix) :]
    tiles = page.locator(".store").first.locator(".tile[aria-label^='Layer 1,']")
    for tile, most in enumerate([*row.max(axis=1), row.mean(axis=0).max()]):  # each head, and their mean
        expect(tiles.nth(tile)).to_have_attribute("title", re.compile(f"at most {float(f'{most:.3g}'):g},"))
    page.locator(".box").first.hover(position={"x": 5, "y": 5})
    expect(page.locator(".says").first).to_contain_text("patch (0, 0)")
    page.keyboard.press("s")
    page.wait_for_selector("figure")
