"""What the tests of devices share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from attlas.engine import Store


def assert_same_store(one: Path, other: Path, tolerance: float) -> None:
    """The same arrays, floats within `tolerance` of their largest value."""
    a, b = Store(one), Store(other)
    assert a.names == b.names
    for name in a.names:
        x, y = a.read(name), b.read(name)
        assert (x.shape, x.dtype) == (y.shape, y.dtype), name
        if x.dtype.kind == "f" and tolerance:
            top = np.nanmax(np.abs(x), initial=0)
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * top, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)
