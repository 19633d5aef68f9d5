"""SVG for a page: as small as keeps it sharp, in the page's own light or dark, and as one URL."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from urllib.parse import quote

from PIL import Image

__all__ = ["data_url", "for_page"]


def for_page(svg: str, dark: Mapping[str, str]) -> str:
    """The same drawing with rounded paths, its rasters as WebP, and other colours where the page is dark.

    Args:
        svg: as matplotlib writes it.
        dark: the colour on a dark page by the colour on a light one, "#rrggbb".
    """
    svg = re.sub(r'(?<= d=")[^"]+', lambda path: _shorter(path[0]), svg)
    # Once instead of at every word, and without quotes, which a data URL could not tell from its own.
    family = re.search(r"font-family: ([^;\"]+); ", svg)
    svg = svg.replace(family[0], "") if family else svg
    svg = re.sub(r'(?<= style=")[^"]+', lambda style: style[0].replace("'", ""), svg)
    words = f"text{{font-family:{family[1]}}}".replace("'", "") if family else ""
    svg = re.sub(r"data:image/png;base64,([^\"]+)", lambda image: _repacked(image[1]), svg)
    used = [light for light in dark if light in svg]
    for light in used:
        svg = re.sub(rf"((?:fill|stroke): ){light}\b", rf"\1var(--c{light[1:]})", svg)
    named = [";".join(f"--c{c[1:]}:{shade[c]}" for c in used) for shade in ({c: c for c in used}, dark)]
    rules = f":root{{{named[0]}}}@media (prefers-color-scheme:dark){{:root{{{named[1]}}}}}"
    return re.sub(r"(<svg[^>]*>)", lambda tag: f"{tag[1]}<style>{words}{rules}</style>", svg, count=1)


def data_url(svg: str) -> str:
    """SVG as a data URL: escaped, since base64 would make what is base64 inside it longer once more."""
    line = " ".join(svg[svg.index("<svg") :].replace('"', "'").split())
    return "data:image/svg+xml," + quote(line, safe=" !$&'()*+,/:;=?@[]^`{|}~")


def _shorter(path: str) -> str:
    """Path data without what no screen shows: a hundredth of a point is less than a pixel."""
    path = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path)
    return re.sub(r"\s+", ",", re.sub(r"\s*([A-Za-z])\s*", r"\1", path.strip()))


def _repacked(png: str) -> str:
    """A raster as WebP: photographs with some loss, maps of few colours and maps with gaps with none."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    if picture.getchannel("A").getextrema() == (255, 255):
        picture = picture.convert("RGB")
    flat = picture.mode == "RGBA" or picture.getcolors(256) is not None
    target = io.BytesIO()
    picture.save(target, "WEBP", lossless=flat, quality=85, method=4)
    return f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode()}"
