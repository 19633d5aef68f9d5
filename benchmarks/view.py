"""How fast the atlas is in a browser: first paint on 10,000 pictures, a click, a hover, and the size of one file.

    python benchmarks/view.py STORE.zarr --images 10000

STORE is one with attention, such as deit_tiny's of some dozen photographs. Its chunks are linked, over and over, into
a store of so many pictures, of which 256 are kept. Chromium is /usr/bin/chromium, or CHROMIUM; Playwright drives it.

deit_tiny_patch16_224, float16, batches of 4; Chromium without a window, 1400 x 900; 2 cores, which other work kept at a
load of 28, so that a free machine is faster (2026-11-26, five rounds):

| what | median | worst |
|---|---|---|
| the store opened, the server up | 0.03 s | |
| open 10,000 pictures: first paint | 0.68 s | 0.82 s |
| the whole screen, thumbnails and labels | 1.65 s | 4.54 s |
| filter by a column (entropy>4) for the first time | 1.66 s | |
| another picture, its chunk not read before: its map | 62 ms | 110 ms |
| the same: all 12 layers | 238 ms | 309 ms |
| click a patch: every layer and head | 13 ms | 19 ms |
| hover a patch: every layer and head | 5 ms | 9 ms |
| click a layer and head | 20 ms | 25 ms |
| one file of 24 pictures | 25.6 MB | |
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from attlas.analysis.view import Atlas, Server, write
from attlas.engine.plan import spread
from attlas.engine.store.store import ArraySpec, Store
from playwright.sync_api import Page, sync_playwright

ROUNDS = 5
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")

# Resolves after `action` when `there` holds at a frame: the milliseconds that a person waits.
WAIT = """async ([action, there]) => {
  const start = performance.now();
  eval(action);
  while (!eval(there)) await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
SHOWN = "document.querySelector('.overlay').dataset.shows"


def enlarged(source: Store, path: Path, images: int) -> Store:
    """A store of `images` pictures whose chunks are those of `source`, linked."""
    plan = dataclasses.replace(source.plan, images=images, sample=tuple(spread(images, 256)))
    specs, values = [], {}
    for name in set(source.names).difference(source.attrs.get("analyzed", ())):
        array, dims = source.array(name), source.dims(name)
        rows = {"image": images, "sample": len(plan.sample)}
        shape = tuple(rows.get(dim, n) for dim, n in zip(dims, array.shape, strict=True))
        text = array.dtype.kind in "OUT"
        fixed = name in ("path", "label", "label_class", "sample")
        chunks = shape if fixed else array.chunks
        dtype = "str" if text else str(array.dtype)
        specs.append(ArraySpec(name, dims, shape, chunks, dtype, array.fill_value, dict(array.attrs)))
        if dims[:1] != ("image",) and name not in ("pixels", "sample"):
            values[name] = source.read(name)
    of = np.arange(images) % (source.plan.images // source.plan.unit * source.plan.unit)
    values["path"] = np.array([f"{i // 1000:03}/{i:06}.jpg" for i in range(images)], dtype=np.dtypes.StringDType())
    values["label"], values["label_class"] = source.read("label")[of], source.read("label_class")[of]
    values["sample"] = np.array(plan.sample, np.int64)
    attrs = {key: value for key, value in source.attrs.items() if key not in ("spec", "plan", "analyzed")}
    assert isinstance(source.path, Path)
    store = Store.create(path, source.spec, plan, specs, values=values, attrs=attrs)
    for place in range(len(plan.sample)):
        like = source.path / source.chunk_key("pixels", (place % len(source.plan.sample), 0, 0, 0))
        (path / store.chunk_key("pixels", (place, 0, 0, 0))).hardlink_to(like)
    whole = source.plan.images // source.plan.unit
    for k in range(plan.units):
        for key, old in zip(_keys(store, k), _keys(source, k % whole), strict=True):
            (path / key).hardlink_to(source.path / old)
        (path / store.chunk_key("run/done", [k])).hardlink_to(source.chunk_path("run/done", [0]))  # not synced: fast
    return store


def _keys(store: Store, k: int) -> Iterator[str]:
    return (key for key in store.unit_keys(k) if not key.startswith("pixels/"))


def opened(page: Page, url: str) -> tuple[float, float]:
    """Seconds to the first paint, and to the last picture of the screen."""
    page.goto("about:blank")
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_function(
        "document.querySelector('.attlas')?.dataset.busy === '0' && document.querySelectorAll('.cell').length > 20 && "
        "[...document.querySelectorAll('.thumb')].every(t => [...t.querySelectorAll('img')].every(i => i.complete))"
    )
    whole = time.perf_counter() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return paint / 1e3, whole


def waited(page: Page, action: str, there: str) -> float:
    return float(page.evaluate(WAIT, [action, there]))


def rows(page: Page, url: str, count: int, unit: int) -> Iterator[tuple[str, list[float], str]]:
    """Each line of the table: what, its times, their unit."""
    times = [opened(page, url) for _ in range(ROUNDS)]
    yield f"open {count:,} pictures: first paint", [t[0] for t in times], "s"
    yield "the whole screen, thumbnails and labels", [t[1] for t in times], "s"
    search = (
        "const i = document.querySelector('input[type=search]'); i.value = 'entropy>4'; "
        "i.dispatchEvent(new Event('input'))"
    )
    yield (
        "filter by a column (entropy>4), first time",
        [waited(page, search, "/ of /.test(document.querySelector('.total').textContent)")],
        "ms",
    )
    step = "dispatchEvent.call(document, new KeyboardEvent('keydown', { key: 'n', bubbles: true }))"
    far = [(count // 2 + 997 * n) // unit * unit - 1 for n in range(ROUNDS)]
    clicks, every = [], []
    for image in far:  # the next picture is in a chunk that nobody has read
        page.goto(f"{url}#image={image}&layer=11")
        page.reload()
        page.wait_for_function(
            "document.querySelector('.overlay')?.dataset.shows && "
            "document.querySelector('.attlas').dataset.busy === '0'"
        )
        clicks.append(waited(page, step, f"{SHOWN}.startsWith('{image + 1}/')"))
        every.append(waited(page, "0", "document.querySelector('.attlas').dataset.busy === '0'") + clicks[-1])
    yield "another picture, chunk not read before: its map", clicks, "ms"
    yield "the same: all 12 layers", every, "ms"
    patch = (
        "const b = document.querySelector('.box'), r = b.getBoundingClientRect(); b.dispatchEvent(new PointerEvent("
        "'{kind}', {{ clientX: r.left + r.width * {x}, clientY: r.top + r.height * 0.3, bubbles: true }}))"
    )
    for kind, name in (("click", "click a patch"), ("pointermove", "hover a patch")):
        yield (
            f"{name}: every layer and head",
            [
                waited(
                    page,
                    patch.format(kind=kind, x=0.1 + n / 10),
                    f"document.querySelector('.says').textContent.includes('(4, {int((0.1 + n / 10) * 14)})')",
                )
                for n in range(ROUNDS)
            ],
            "ms",
        )
    tile = "document.querySelectorAll('.tile')[{n}].click()"
    yield (
        "click a layer and head",
        [
            waited(
                page, tile.format(n=3 + n), f"document.querySelector('.says').textContent.startsWith('Layer {3 + n},')"
            )
            for n in range(ROUNDS)
        ],
        "ms",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    source = Store(options.store)
    print("| what | median | worst |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.store.parent) as folder, sync_playwright() as playwright:
        path = Path(folder) / "many.zarr"
        enlarged(source, path, options.images)
        start = time.perf_counter()
        server = Server(Atlas([path])).start()
        report("start: the store opened, the server up", [time.perf_counter() - start], "s")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900}, bypass_csp=True)  # `WAIT` evaluates text
        for name, times, unit in rows(page, server.url, options.images, source.plan.unit):
            report(name, times, unit)
        browser.close()
        server.close()
        single = write(source.path, Path(folder) / "atlas.html", count=24)
        print(f"| one file of 24 pictures | {single.stat().st_size / 1e6:.1f} MB | |")


def report(name: str, times: list[float], unit: str) -> None:
    form: Callable[[float], str] = lambda x: f"{x:.2f} {unit}" if unit == "s" else f"{x:.0f} {unit}"  # noqa: E731
    print(f"| {name} | {form(statistics.median(times))} | {form(max(times))} |", flush=True)


if __name__ == "__main__":
    main()
