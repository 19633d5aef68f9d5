"""Every statistic of attention, each once, on plain arrays of any library.

Attention is (..., query, key): rows are queries, leading axes (image, layer, head) stay. A statistic that combines
heads takes (..., head, query, key); one that combines layers takes a sequence of these, from input to output. Sums are
in float32 or better.
One module a family; all of them are names of this package. `norms`, `histograms`, `baselines` and `boxes` stand beside.
"""

# ruff: noqa: F403 - each module says by its `__all__` what it gives
from __future__ import annotations

from . import codes, distances, entropies, maps, masses, rollouts, variation
from .codes import *
from .distances import *
from .entropies import *
from .maps import *
from .masses import *
from .rollouts import *
from .variation import *

__all__: list[str] = []
__all__ += codes.__all__
__all__ += distances.__all__
__all__ += entropies.__all__
__all__ += maps.__all__
__all__ += masses.__all__
__all__ += rollouts.__all__
__all__ += variation.__all__
