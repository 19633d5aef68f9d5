"""Names of overlays, where the image's own is as long as a file system takes."""

from __future__ import annotations

import pytest

folder = pytest.importorskip("attlas.analysis.show.folder")


def test_a_long_name_is_shortened_and_stays_unlike_others() -> None:
    """With room for what is put around it while it is written; short names are as they were."""
    assert folder._fitting("p2.png") == "p2.png.png"
    assert folder._fitting("a" * 216 + ".png") == "a" * 216 + ".png.png"
    long = ["a" * 251 + ".png", "a" * 251 + ".jpg", "猫" * 83 + "xx.png"]
    made = [folder._fitting(name) for name in long]
    assert len(set(made)) == 3
    assert all(len(f".{name}.{2**22}.partial".encode()) <= 255 and name.endswith(".png") for name in made)
    assert made[2].startswith("猫" * 60)
