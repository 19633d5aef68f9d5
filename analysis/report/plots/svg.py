"""SVG for a page: as small as keeps it sharp, and as one URL."""

from __future__ import annotations

import base64
import io
import re
from urllib.parse import quote

from PIL import Image

__all__ = ["data_url", "shrunk"]


def shrunk(svg: str) -> str:
    """The same drawing with rounded paths, and its rasters as WebP."""
    svg = re.sub(r'(?<= d=")[^"]+', lambda path: _shorter(path[0]), svg)
    return re.sub(r"data:image/png;base64,([^\"]+)", lambda image: _repacked(image[1]), svg)


def data_url(svg: str) -> str:
    """SVG as a data URL: escaped, since base64 would make what is base64 inside it longer once more."""
    line = " ".join(svg[svg.index("<svg") :].replace('"', "'").split())
    return "data:image/svg+xml," + quote(line, safe=" !$&'()*+,/:;=?@[]^`{|}~")


def _shorter(path: str) -> str:
    """Path data without what no screen shows: a hundredth of a point is less than a pixel."""
    path = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path)
    return re.sub(r"\s+", ",", re.sub(r"\s*([A-Za-z])\s*", r"\1", path.strip()))


def _repacked(png: str) -> str:
    """A raster as WebP on white: photographs with some loss, maps of few colours with none."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    target = io.BytesIO()
    flat.save(target, "WEBP", lossless=flat.getcolors(256) is not None, quality=85, method=4)
    return f"data:image/webp;base64,{base64.b64encode(target.getvalue()).decode()}"
