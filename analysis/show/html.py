"""What a notebook shows of a graph's result: each picture, the readout over it, and its likeliest classes."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.image import imsave

from ...engine.runtime.results import Result
from ...errors import AttlasError
from ...words import counted
from ..report.plots.overlay import blended, colours_of
from .maps import Choice, mean_of, readout_views
from .subject import of_result, probability

__all__ = ["of_result_html"]

MOST = 4  # pictures
TABLE = "border-collapse:collapse;border:0;background:none"
CELL = "padding:2px 10px 2px 0;border:0;text-align:left;vertical-align:top;background:none"


def of_result_html(result: Result) -> str:
    """HTML that is complete in itself, for light and dark notebooks: it has no colours of its own but the pictures'."""
    count, spec = len(result.pixels), result.spec
    rows = [_row(result, index) for index in range(min(count, MOST))]
    more = f"<p>and {counted(count - MOST, 'more picture')}</p>" if count > MOST else ""
    arrays = ", ".join(
        f"<code>{html.escape(name)}</code> ({', '.join(result.dims(name)) or ' × '.join(map(str, values.shape))})"
        for name, values in result.items()
    )
    random = " · random weights: the maps mean nothing" if spec.weights.source == "random" else ""
    head = f"<b>{html.escape(spec.name)}</b> · {counted(count, 'picture')}{random}"
    return f'<div><p>{head}</p><table style="{TABLE}">{"".join(rows)}</table>{more}<p>{arrays}</p></div>'


def _row(result: Result, index: int) -> str:
    """One picture."""
    one = of_result(result, "the result", index)
    cells = [_image(result.pixels[index], one.name)]
    try:
        views = readout_views(one, Choice())
        values = mean_of(views)
        made = blended(result.pixels[index], values, colours_of(values, root=True))
        cells.append(_image(made, f"attention of the last layer, at most {values.max():.1f} × uniform"))
    except (AttlasError, KeyError):  # a session may have been asked for other outputs alone
        cells.append("")
    top = "".join(
        f'<tr><td style="{CELL}">{html.escape(name)}</td>'
        f'<td style="{CELL};text-align:right">{html.escape(probability(share))}</td></tr>'
        for name, share in one.top()
    )
    cells.append(f'<table style="{TABLE}">{top}</table>')
    return f"<tr>{''.join(f'<td style="{CELL}">{cell}</td>' for cell in cells)}</tr>"


def _image(pixels: Any, words: str) -> str:
    """A picture with words under it."""
    target = io.BytesIO()
    imsave(target, pixels, format="png")
    data = base64.b64encode(target.getvalue()).decode()
    said = html.escape(words, quote=True)
    return f'<img src="data:image/png;base64,{data}" width="224" alt="{said}"><br><small>{said}</small>'
