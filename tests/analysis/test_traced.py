"""The statistics traced to ONNX are those of the kernel and of the formulas, for every kind of model."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attlas.analysis import formulas
from attlas.analysis.kernels.fused import Reducer
from attlas.exporter.spec import GraphSpec, Output
from support import make_spec

pytest.importorskip("ndonnx")

SPECS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers, 3 x 5": {"grid": (3, 5), "prefix": ("class", "register")},
    "no prefix": {"prefix": ()},
    "registers alone": {"prefix": ("register",)},
    "distilled": {"prefix": ("class", "distillation"), "pooling": "distilled"},
}


def pool_spec(keys: int) -> GraphSpec:
    """A model that reads its tokens by attention pooling over the last `keys` of seven tokens."""
    outputs = make_spec(pooling="pool").outputs
    pool = Output("pool_attention", ("image", "head", "pool_query", "key"), (None, 2, 1, keys))
    return make_spec(pooling="pool", outputs=(*outputs, pool))


def sharp(spec: GraphSpec, images: int = 4, dtype: str = "float16", seed: int = 0) -> list[np.ndarray]:
    """Attention far from uniform: one (image, head, query, key) per layer."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in spec.layers:
        a = np.exp(4 * rng.normal(size=(images, spec.heads, spec.tokens, spec.tokens)))
        layers.append((a / a.sum(-1, keepdims=True)).astype(dtype))
    return layers


def compute(
    spec: GraphSpec, layers: list[np.ndarray], pool: np.ndarray | None = None, dtype: Any = "float16"
) -> dict[str, np.ndarray]:
    """Run the traced statistics alone."""
    model = Reducer(spec).graph(dtype)
    assert model is not None
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {f"attention.{layer}": a for layer, a in zip(spec.layers, layers, strict=True)}
    if any(i.name == "pool_attention" for i in session.get_inputs()):
        feed["pool_attention"] = pool
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Within 1e-5 of the largest value, in the same shape and dtype, NaN at the same places."""
    for name, values in expected.items():
        found = got[name]
        assert (found.shape, found.dtype) == (values.shape, values.dtype), name
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-5 * np.nanmax(np.abs(values)), err_msg=name)
        else:
            np.testing.assert_array_equal(found, values, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", SPECS)
def test_traced_statistics_equal_the_kernels(kind: str, dtype: str) -> None:
    """Every array that the reducer gives, in its shape and dtype, for every readout."""
    spec = make_spec(**SPECS[kind])
    layers = sharp(spec, dtype=dtype)
    got = compute(spec, layers, dtype=dtype)
    expected = Reducer(spec)(layers)
    assert got.keys() - {"prefix_attention"} == expected.keys()
    assert_close(got, expected)


def test_traced_statistics_equal_the_formulas_in_float64() -> None:
    """Of attention as it is stored in float16."""
    spec = make_spec(**SPECS["registers, 3 x 5"])
    layers = sharp(spec)
    wide = [a.astype(np.float64) for a in layers]
    expected = {
        "rollout": formulas.rollout(wide, spec.grid, formulas.readout_rows(spec.prefix, spec.grid, "class")),
        "distance": np.stack([formulas.distance(a, spec.grid, spec.patch_size) for a in wide], 1),
        "distance_renormalized": np.stack(
            [formulas.distance_renormalized(a, spec.grid, spec.patch_size) for a in wide], 1
        ),
        "entropy": np.stack([formulas.entropy(a) for a in wide], 1),
        "entropy_patch": np.stack([formulas.entropy_patch(a, 2) for a in wide], 1),
        "prefix_mass": np.stack([formulas.prefix_mass(a, 2) for a in wide], 1),
    }
    assert_close(compute(spec, layers), {name: values.astype(np.float32) for name, values in expected.items()})


@pytest.mark.parametrize("keys", [7, 6])
def test_the_pools_own_map_is_the_readout(keys: int) -> None:
    """Whether the pool sees all tokens or the patches alone."""
    spec = pool_spec(keys)
    layers = sharp(spec)
    pool = np.random.default_rng(1).dirichlet(np.ones(keys), size=(4, 2, 1)).astype(np.float32)
    assert_close(compute(spec, layers, pool), Reducer(spec)(layers, pool))


def test_mixed_attention_has_no_entropy() -> None:
    """What needs rows that are distributions is left out, and the rest is there."""
    spec = make_spec(attention_kind="mixed")
    layers = [a - np.float16(0.01) for a in sharp(spec)]
    got = compute(spec, layers)
    assert not {"entropy", "entropy_patch"} & got.keys()
    assert_close(got, Reducer(spec)(layers))


def test_rows_without_patch_mass_are_left_out_and_counted() -> None:
    """And NaN is where none is left, without a word about the other heads."""
    spec = make_spec()
    layers = sharp(spec)
    layers[0][1, 0, 3] = [1, 0, 0, 0, 0, 0, 0]
    layers[1][2, 1] = [1, 0, 0, 0, 0, 0, 0]
    got = compute(spec, layers)
    assert got["rows_without_patch_mass"][1, 0, 0] == 1
    assert got["rows_without_patch_mass"][2, 1, 1] == spec.tokens
    assert np.argwhere(np.isnan(got["entropy_patch"])).tolist() == [[2, 1, 1]]
    assert_close(got, Reducer(spec)(layers))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_attention_that_is_not_finite_is_flagged(bad: float) -> None:
    """Its image and layer, and no other."""
    spec = make_spec()
    layers = sharp(spec)
    layers[1][2, 1, 4, 5] = bad
    finite = compute(spec, layers)["_finite"]
    assert np.argwhere(~finite).tolist() == [[2, 1]]


def test_prefix_rows_are_the_stored_bits() -> None:
    """Cut out, never computed."""
    spec = make_spec(**SPECS["registers, 3 x 5"])
    layers = sharp(spec)
    np.testing.assert_array_equal(
        compute(spec, layers)["prefix_attention"], np.stack([a[:, :, :2] for a in layers], axis=1)
    )


def test_an_image_alone_has_the_numbers_it_has_in_a_batch() -> None:
    """Any number of images goes through one graph."""
    spec = make_spec()
    layers = sharp(spec, images=5)
    whole = compute(spec, layers)
    for i in (0, 4):
        alone = compute(spec, [a[i : i + 1] for a in layers])
        assert_close(alone, {name: values[i : i + 1] for name, values in whole.items()})


def test_equal_constants_stand_once_in_the_graph() -> None:
    """Patch distances do not grow with the layers, and no branch guards a product."""
    small, large = (Reducer(make_spec(grid=(14, 14), layers=layers)).graph("float16") for layers in (1, 3))
    assert small is not None
    assert large is not None
    assert len(large) - len(small) < 14**4
    graph = onnx.load_from_string(large).graph
    assert not {"If", "Loop", "Scan", "Constant"} & {node.op_type for node in graph.node}
    onnx.checker.check_model(onnx.load_from_string(large), full_check=True)


def test_without_ndonnx_there_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reducer says so by None, and works."""
    monkeypatch.setitem(sys.modules, "ndonnx", None)
    monkeypatch.delitem(sys.modules, "attlas.analysis.kernels.traced", raising=False)
    reducer = Reducer(make_spec())
    assert reducer.graph("float16") is None
    assert reducer(sharp(reducer.spec))["_finite"].all()


@pytest.mark.parametrize(
    "module", ["attlas.engine.runner", "attlas.engine.runtime.cuda", "attlas.analysis.kernels.fused"]
)
def test_nothing_loads_ndonnx_before_a_graph_is_asked_for(module: str) -> None:
    """It takes a second, and most runs do without."""
    code = f"import {module}, sys; sys.exit('ndonnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd="/", check=False).returncode == 0
