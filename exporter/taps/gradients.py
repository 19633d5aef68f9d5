"""Gradients in the graph: d logit / d attention, as operators that every runtime has.

The backward pass is traced, not approximated: autograd runs once on tensors without data, and what it would compute
is written down operator by operator. So the graph needs neither PyTorch nor a runtime that can train.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import default_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ...errors import UsageError
from .attention import effective_gradient
from .tapped import Tapped

__all__ = ["Gradients"]


class Gradients:
    """A tapped model with the gradients of one class's logit by its attention as further outputs.

    `gradient.L` (image, head, query, key) float32 is the derivative of the target class's raw logit by
    `attention.L`, all other inputs of the later blocks following from it as in the model. Images do not mix.

    Raises:
        UsageError: the model's head gives no classes, so that there is no logit to derive.
    """

    def __init__(self, tapped: Tapped, name: str) -> None:
        if tapped.head != "logits":
            raise UsageError(
                f"{name}: has no classes, so there is no logit to take gradients of; name a tag that has a "
                "classifier, or export without gradients"
            )
        self.tapped = tapped

    @property
    def names(self) -> list[str]:
        """The outputs, in order."""
        return [*self.tapped.names, *(f"gradient.{layer}" for layer in self.tapped.layers)]

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of `names`.

        Args:
            image: (image, y, x, 3) uint8.
            target: (image) int64, a class each; negative for the one with the largest logit.
        """
        tapped = self.tapped
        with torch.enable_grad():
            # Weights stay constants: a gradient that enters at the pixels is all that the maps need to be followed.
            seen, out = tapped.look(tapped.pixels(image).requires_grad_())
            logits = tapped.pooled(out)
            chosen = torch.where(target < 0, logits.argmax(-1), target)
            # A sum over images has each image's own gradient, since no image reads another.
            one_hot = (torch.arange(logits.shape[-1]) == chosen[:, None]).to(logits.dtype)
            sources = [source for layer in tapped.layers for _, source in seen.sources[layer]]
            found = iter(torch.autograd.grad(logits, sources, one_hot))
        outputs = list(tapped.outputs(seen, out).values())
        for layer in tapped.layers:
            maps = [effective_gradient(owner, next(found)) for owner, _ in seen.sources[layer]]
            outputs.append(maps[0] if len(maps) == 1 else torch.cat(maps, dim=1))
        return tuple(value.detach() for value in outputs)

    def run(self, images: NDArray[np.uint8], target: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """The outputs by name, from PyTorch's autograd; arguments as for the call."""
        values = self(torch.from_numpy(images), torch.from_numpy(target))
        return {name: value.numpy() for name, value in zip(self.names, values, strict=True)}

    def module(self, image: Tensor, target: Tensor) -> fx.GraphModule:
        """Forward and backward as one module of plain operators, for any number of images.

        Args:
            image: an example of at least two images; its other sizes are fixed.
            target: an example of as many.
        """
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        examples = []
        for value in (image, target):
            sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (value.ndim - 1)]
            context: StatelessSymbolicContext[..., object] = StatelessSymbolicContext(sizes)
            examples.append(mode.from_tensor(value, symbolic_context=context))
        table = dict(default_decompositions())
        # As concatenation and reshape it stands where OpenVINO 2026.4 fails to tell it from a shuffle of channels.
        table.pop(torch.ops.aten.stack.default, None)
        trace = make_fx(
            lambda *given: self(*given),
            decomposition_table=table,
            tracing_mode="fake",
            _allow_non_fake_inputs=True,
        )
        # Python's own rules for shapes: the compiled ones of some operators (the padding of hybrids' stems) make a
        # constant of the batch.
        with enable_python_dispatcher():
            module = trace(*examples)
        # It has no parts that train, but whoever exports it asks.
        return module.eval()
