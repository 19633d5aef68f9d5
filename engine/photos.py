"""A few freely usable photographs for the demo."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..errors import AttlasError

__all__ = ["PHOTOS", "write_photos"]

# Each photograph with its origin, from scikit-image's documentation.
PHOTOS = {
    "astronaut": "NASA, public domain",
    "camera": "Lav Varshney, CC0",
    "chelsea": "Stefan van der Walt, CC0",
    "coffee": "Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
    "hubble_deep_field": "NASA, public domain",
    "rocket": "SpaceX, public domain",
}
EDGE = 384


def write_photos(folder: Path) -> list[str]:
    """Write the photographs as JPEG, the longer edge scaled to 384 pixels; returns a line on the origin of each.

    Raises:
        AttlasError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise AttlasError(
            "the demo's photographs come from scikit-image, which is not installed: `pip install 'attlas[demo]'`"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, origin in PHOTOS.items():
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        picture.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        picture.save(folder / f"{name}.jpg", quality=92)
        lines.append(f"{name}.jpg: {origin}")
    (folder / "ORIGIN.txt").write_text(
        "From scikit-image's data, scaled down.\n" + "".join(f"{line}\n" for line in lines), "utf-8"
    )
    return lines
