"""Rewrite the graph that torch's exporter gives into fewer and plainer nodes, with onnxscript's rules."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, rewrite
from onnxscript.rewriter.rules import common

__all__ = ["simplify"]

# Those of onnxscript's default rules that a Vision Transformer has a use for, in its order. `slice_split_rule` above
# all is left out: for each node it goes over the whole graph, which is half of the time of a graph with gradients.
_COMMUTING = ("mul_by_1_rule", "add_0_rule")
_RULES = (
    "sub_0_rule",
    "div_by_1_rule",
    "dropout_zero_rule",
    "dropout_inference_rule",
    "two_reshapes_matmul_reshape_rule",
    "one_reshape_matmul_reshape_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "flatten_to_reshape_rule",
    "reshape_reshape_rule",
    "squeeze_reshape_1d_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule",
    "no_op_dynamic_scatter_nd_rule",
    "no_op_static_scatter_nd_rule",
    "normalize_pad_format_conv_rule",
    "fuse_pad_into_conv_rule",
    "fuse_batchnorm_into_conv_rule",
    "remove_optional_bias_from_conv_rule",
    "remove_optional_bias_from_gemm_rule",
)
_ROUNDS = 2  # a rule may make what another one, or folding, takes further


def simplify(model: ir.Model) -> None:
    """Fold small constants, apply the rules, and remove what is unused or there twice; in place."""
    rules = RewriteRuleSet([*RewriteRuleSet(_named(_COMMUTING), commute=True), *_named(_RULES)])
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants_ir(model, onnx_shape_inference=True)
        rewrite(model, rules)
    for last in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.NameFixPass(),
    ):
        last(model)


def _named(names: Iterable[str]) -> list[RewriteRule]:
    """The rules of these names that the installed onnxscript has."""
    return [rule for name in names if (rule := getattr(common, name, None)) is not None]
