"""What float32's last bits make of a graph's outputs: how far sound runtimes of a sharp model lie apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...exporter.spec import Output
from ..runtime.rounded import Rounded, last_bits
from .inputs import Batch
from .measures import Measure

__all__ = ["Own"]

# How many of float32's last bits are dropped, one after the other, and the larger difference counts: of a sharp model
# chance decides which rows move, and the largest of one trial may be a third of another's.
DROPPED = (1, 2)


class Own:
    """A graph's differences from itself, with and without the last bits of what is multiplied.

    All run on this processor, so that a fault of the runtime, the store or the cases adds nothing to them.
    """

    def __init__(self, graph: Path, outputs: Sequence[Output], *, computed: bool) -> None:
        """Of these outputs; nothing is loaded until it is called.

        With `computed`, what a batch expects is of this graph on this processor, and is not computed again.
        """
        self._graph, self._shapes = graph, {o.name: tuple(n or 0 for n in o.shape[1:]) for o in outputs}
        self._computed = computed
        self._loaded: tuple[Rounded | None, list[Rounded]] | None = None

    def __call__(self, batch: Batch, measures: Collection[Measure]) -> dict[str, npt.NDArray[np.float64]]:
        """As `Measure.differences` measures them, by output; 0 where they are no numbers.

        Raises:
            AttlasError: onnxruntime cannot load the graph.
        """
        if self._loaded is None:
            plain = None if self._computed else Rounded(self._graph, None, self._shapes)
            edits = (partial(last_bits, dropped=dropped) for dropped in DROPPED)
            self._loaded = plain, [Rounded(self._graph, edit, self._shapes) for edit in edits]
        plain, rounded = self._loaded
        given = batch.pixels, batch.target
        whole = {n: low for n, (low, _) in batch.expected.items()} if plain is None else plain(*given)
        found: dict[str, npt.NDArray[np.float64]] = {}
        for one in rounded:
            moved = one(*given)
            for measure in measures:
                name = measure.output.name
                each = np.nan_to_num(measure.differences(moved[name], (whole[name], whole[name])), posinf=0.0)
                found[name] = np.maximum(found[name], each) if name in found else each
        return found
