"""Gradients in the graph: d logit / d attention, or of the loss, as operators that every runtime has.

The backward pass is traced, not approximated: autograd runs once on tensors without data, and its operators are
recorded. So the graph needs neither PyTorch nor a runtime that can train.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

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
from .tapped import Tapped

__all__ = ["Gradients", "without_classes"]


def without_classes(name: str) -> UsageError:
    """The error for gradients of a model that gives no classes."""
    return UsageError(
        f"{name}: has no classes, so there is no logit to take gradients of; name a tag that has a classifier, pass "
        "texts to a model of open_clip (--text), or export without gradients"
    )


class Gradients:
    """A tapped model with the gradients of one class's logit by its attention as additional outputs.

    `gradient.L` (image, head, query, key) float32 is the derivative of the target class's raw logit by `attention.L`,
    through all later blocks; or with the objective `loss` that of -ln of the class's probability. Images do not affect
    each other.

    Raises:
        UsageError: the model's head gives no classes, so there is no logit to differentiate.
    """

    def __init__(self, tapped: Tapped, name: str, objective: Literal["logit", "loss"] = "logit") -> None:
        if tapped.head != "logits":
            raise without_classes(name)
        self.tapped, self.objective = tapped, objective

    @property
    def names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [*self.tapped.names, *(f"gradient.{layer}" for layer in self.tapped.layers)]

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of `names`; arguments as for `named`."""
        return tuple(self.named(image, target).values())

    def named(self, image: Tensor, target: Tensor, layers: Collection[int] | None = None) -> dict[str, Tensor]:
        """The outputs by name; without those of other blocks than `layers`.

        Args:
            image: (image, y, x, 3) uint8.
            target: (image) int64, a class index; negative for the class with the largest logit.
            layers: some of the graph's; all by default.
        """
        tapped, wanted = self.tapped, self.tapped.layers if layers is None else tuple(layers)
        with torch.enable_grad():
            # Weights stay constant: with a gradient on the pixels, autograd already follows all maps.
            seen, out = tapped.look(tapped.pixels(image).requires_grad_(), wanted)
            logits = tapped.pooled(out)
            chosen = torch.where(target < 0, logits.argmax(-1), target)
            # The gradient of a sum over images is each image's own gradient, because images are independent.
            one_hot = (torch.arange(logits.shape[-1]) == chosen[:, None]).to(logits.dtype)
            # The loss changes with the logits by the probabilities less 1 for the class.
            upstream = one_hot if self.objective == "logit" else logits.detach().softmax(-1) - one_hot
            sources = [source for layer in wanted for _, source in seen.sources[layer]]
            found = iter(torch.autograd.grad(logits, sources, upstream))
        outputs = tapped.outputs(seen, out, wanted)
        for layer in wanted:
            maps = [tapped.taps.effective_gradient(owner, next(found)) for owner, _ in seen.sources[layer]]
            outputs[f"gradient.{layer}"] = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        return {name: value.detach() for name, value in outputs.items()}

    def run(
        self, images: NDArray[np.uint8], target: NDArray[np.int64], *, layers: Collection[int] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The outputs by name, from PyTorch's autograd; arguments as for `named`."""
        return {
            name: value.numpy()
            for name, value in self.named(torch.from_numpy(images), torch.from_numpy(target), layers).items()
        }

    def module(self, image: Tensor, target: Tensor) -> fx.GraphModule:
        """Forward and backward as one module of plain operators, for any number of images.

        Args:
            image: an example of at least two images; its other sizes are fixed in the graph.
            target: an example for as many images.
        """
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        examples = []
        for value in (image, target):
            sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (value.ndim - 1)]
            context: StatelessSymbolicContext[..., object] = StatelessSymbolicContext(sizes)
            examples.append(mode.from_tensor(value, symbolic_context=context))
        table = dict(default_decompositions())
        # Not decomposed: OpenVINO 2026.4 takes the concatenation and reshape for a shuffle of channels.
        table.pop(torch.ops.aten.stack.default, None)
        # It becomes a squeeze of several axes, which ONNX has no translation of.
        table.pop(torch.ops.aten.squeeze.dim, None)
        trace = make_fx(
            lambda *given: self(*given),
            decomposition_table=table,
            tracing_mode="fake",
            _allow_non_fake_inputs=True,
        )
        # Use Python's shape rules: the compiled rules of some operators (such as the padding in stems of hybrid models)
        # turn the batch size into a constant.
        with enable_python_dispatcher():
            module = trace(*examples)
        # Nothing in it depends on the training mode, but torch's exporter checks it.
        return module.eval()
